"""ReLU with a penalty on the codes (Bricken et al. 2023, Towards Monosemanticity), its exponent annealed on request.

The penalty is the mean L1 norm of the codes, in units of the root variance of the activations. With `p_end` the
exponent falls linearly from 1 at half of the run to it at the end (Karvonen et al. 2024, arXiv 2408.00113). Their
coefficient is adapted so that the penalty keeps its size; here this is done in each batch: the value of the penalty
stays the L1 norm, its gradient is along the L_p norm's.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..form import TrainingForm
from ..settings import DictionarySettings
from .kind import Kind, Moment, Pass, encoded, encoded_at, places, rebuilt, risen, total

DEFAULT = 0.15  # see docs/training.md
SMALL = 1e-3  # added to codes, in units, before a power below 1: its slope at 0 is infinite
ANNEAL_FROM = 0.5


def _sparse(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    support = places(form, x)
    return rebuilt(form, x, encoded_at(form, x, support).relu(), support)


def _dense(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    return rebuilt(form, x, encoded(form, x).relu(), None)


def exponent(settings: DictionarySettings, done: float) -> float:
    """1 up to half of the run, then down to `p_end`."""
    end = 1.0 if settings.p_end is None else settings.p_end
    return 1.0 + (end - 1.0) * max(done - ANNEAL_FROM, 0.0) / (1.0 - ANNEAL_FROM)


def norm(codes: Tensor, p: float) -> Float[Tensor, ""]:
    """Summed L1 norm; for p < 1 with the gradient of the L_p one, at the same value."""
    if p == 1.0:
        return total(codes)
    l1 = total(codes.detach())
    small = total((codes + SMALL).pow(p) * (codes.detach() > 0))
    return torch.where(l1 > 0, small * (l1 / small.detach().clamp(min=1e-12)), small)


def _penalty(form: TrainingForm, done: Pass, y: Tensor, settings: DictionarySettings, moment: Moment) -> Tensor:
    assert done.values is not None
    return l1_penalty(done.values, len(y), settings, moment)


def l1_penalty(codes: Tensor, tokens: int, settings: DictionarySettings, moment: Moment) -> Tensor:
    """Of codes in any layout."""
    weight = DEFAULT if settings.sparsity is None else settings.sparsity
    return weight * risen(settings, moment) * norm(codes / moment.unit, exponent(settings, moment.done)) / tokens


RELU = Kind(
    use="the oldest and simplest, with codes that are shrunk; for comparison with older work",
    forward={"sparse": _sparse, "dense": _dense},
    saved="relu",
    architecture="standard",
    penalty=_penalty,
    revives=False,
    own=("sparsity", "sparsity_warmup", "p_end"),
)
