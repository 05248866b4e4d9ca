"""Gated (Rajamanoharan et al. 2024, arXiv 2404.16014): one bias decides whether a latent is active, another how much.

gate π = z W_enc + b_enc, magnitude = ReLU(z W_enc e^r + b_mag), codes = magnitude where π > 0, for z = x − centre. The
penalty is the L1 norm of ReLU(π), and the error of what ReLU(π) rebuilds with a decoder that learns nothing from it.

The file is a jumprelu, the same function: of its pre-activation z W_enc e^r + b_mag, π > 0 is to be above
b_mag − b_enc e^r.
"""

import torch
from torch import Tensor

from ..form import TrainingForm
from ..settings import DictionarySettings
from ..sparse import Support
from .kind import Kind, Moment, Pass, encoded_at, places, rebuilt, written
from .relu import l1_penalty


def _forward(form: TrainingForm, x: Tensor, support: Support | None) -> Pass:
    gate = encoded_at(form, x, support)
    own = (form.b_enc, form.own["r_mag"], form.own["b_mag"])
    b_enc, r_mag, b_mag = own if support is None else (parameter[support.columns] for parameter in own)
    magnitude = ((gate - b_enc) * r_mag.exp() + b_mag).relu()
    done = rebuilt(form, x, magnitude * (gate.detach() > 0), support)
    done.pre = gate
    return done


def _sparse(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    return _forward(form, x, places(form, x))


def _dense(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    return _forward(form, x, None)


def _penalty(form: TrainingForm, done: Pass, y: Tensor, settings: DictionarySettings, moment: Moment) -> Tensor:
    assert done.pre is not None
    assert done.offset is not None
    gate = done.pre.relu()
    rest = y - written(form.W_dec.detach(), gate, done.support) - done.offset.detach()
    return l1_penalty(gate, len(y), settings, moment) + rest.square().sum() / (len(y) * moment.unit**2)


def _canonical(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    factor, b_mag = weights["own.r_mag"].exp(), weights["own.b_mag"]
    threshold = b_mag - weights["b_enc"] * factor
    return {"W_enc": weights["W_enc"] * factor[:, None], "b_enc": b_mag, "threshold": threshold}


def _filled(b_enc: Tensor, threshold: Tensor | None) -> dict[str, Tensor]:
    """A gate π = pre − θ, and pre itself as the magnitude."""
    gate = b_enc if threshold is None else b_enc - threshold
    return {"b_enc": gate, "own.b_mag": b_enc, "own.r_mag": torch.zeros_like(b_enc)}


GATED = Kind(
    use="as relu, with codes that are not shrunk; twice the work of relu",
    forward={"sparse": _sparse, "dense": _dense},
    saved="jumprelu",
    architecture="gated",
    penalty=_penalty,
    plain=False,
    revives=False,
    own=("sparsity", "sparsity_warmup", "p_end"),
    own_parameters=lambda settings: {name: torch.zeros(settings.width) for name in ("r_mag", "b_mag")},
    canonical=_canonical,
    filled=_filled,
)
