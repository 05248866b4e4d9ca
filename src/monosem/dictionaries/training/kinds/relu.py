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
from .kind import Kind, Moment, Pass, encoded, rebuilt, risen

DEFAULT = 0.3  # see docs/training.md
SMALL = 1e-3  # added to codes, in units, before a power below 1: its slope at 0 is infinite
ANNEAL_FROM = 0.5


def forward(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    return rebuilt(form, x, encoded(form, x).relu())


def exponent(settings: DictionarySettings, done: float) -> float:
    """1 up to half of the run, then down to `p_end`."""
    end = 1.0 if settings.p_end is None else settings.p_end
    return 1.0 + (end - 1.0) * max(done - ANNEAL_FROM, 0.0) / (1.0 - ANNEAL_FROM)


def norm(codes: Float[Tensor, "batch width"], p: float) -> Float[Tensor, ""]:
    """Mean L1 norm of the rows; for p < 1 with the gradient of the L_p one, at the same value."""
    if p == 1.0:
        return codes.sum(1).mean()
    l1 = codes.detach().sum(1).mean()
    small = ((codes + SMALL).pow(p) * (codes.detach() > 0)).sum(1).mean()
    return torch.where(l1 > 0, small * (l1 / small.detach().clamp(min=1e-12)), small)


def penalty(form: TrainingForm, done: Pass, y: Tensor, settings: DictionarySettings, moment: Moment) -> Tensor:
    assert done.codes is not None
    weight = DEFAULT if settings.sparsity is None else settings.sparsity
    return weight * risen(settings, moment) * norm(done.codes / moment.unit, exponent(settings, moment.done))


RELU = Kind(
    use="the oldest and simplest, with codes that are shrunk; for comparison with older work",
    forward={"dense": forward},
    saved="relu",
    architecture="standard",
    penalty=penalty,
    revives=False,
    own=("sparsity", "sparsity_warmup", "p_end"),
)
