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
from .kind import Kind, Moment, Pass, encoded, rebuilt
from .relu import penalty as sparsity


def forward(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    gate = encoded(form, x)
    magnitude = ((gate - form.b_enc) * form.own["r_mag"].exp() + form.own["b_mag"]).relu()
    done = rebuilt(form, x, magnitude * (gate.detach() > 0))
    done.pre, done.offset = gate, form.offset(x)
    return done


def _penalty(form: TrainingForm, done: Pass, y: Tensor, settings: DictionarySettings, moment: Moment) -> Tensor:
    assert done.pre is not None
    assert done.offset is not None
    gate = done.pre.relu()
    rest = y - gate @ form.W_dec.detach() - done.offset.detach()
    done.codes = gate  # what the L1 norm is of
    return sparsity(form, done, y, settings, moment) + rest.square().sum() / (len(y) * moment.unit**2)


def _canonical(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    factor, b_mag = weights["own.r_mag"].exp(), weights["own.b_mag"]
    threshold = b_mag - weights["b_enc"] * factor
    return {"W_enc": weights["W_enc"] * factor[:, None], "b_enc": b_mag, "threshold": threshold}


GATED = Kind(
    use="as relu, with codes that are not shrunk; twice the work of relu",
    forward={"dense": forward},
    saved="jumprelu",
    architecture="gated",
    penalty=_penalty,
    revives=False,
    own=("sparsity", "sparsity_warmup", "p_end"),
    own_parameters=lambda settings: {name: torch.zeros(settings.width) for name in ("r_mag", "b_mag")},
    canonical=_canonical,
)
