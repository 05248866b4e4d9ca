"""The rest of a model's pass, from an activation that was computed before."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from .. import edits
from ..models import Model, Site, TokenBatch


def rerun(
    model: Model,
    tokens: TokenBatch,
    site: Site,
    value: Float[Tensor, "batch pos *d"],
    *,
    logits: Literal[True, "last"] = True,
    grad: bool = False,
) -> Float[Tensor, "batch *pos vocab"]:
    """Logits with the activation at `site` replaced. The blocks before it are left out where a run can start there."""
    layer = site.layer
    if site.name == "resid_post" and layer is not None and layer + 1 < model.cfg.n_layers and not model.ambient_edits:
        run = model.run(tokens, start=(("resid_pre", layer + 1), value), logits=logits, grad=grad)
    else:
        run = model.run(tokens, edits=edits.patch(site, value, tokens=tokens), logits=logits, grad=grad)
    assert run.logits is not None
    return run.logits
