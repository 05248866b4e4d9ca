"""The rest of a model's pass, from an activation that was computed before."""

from collections.abc import Iterable
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from .. import edits
from ..models import Model, Run, Site, TokenBatch


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
    run = rest_of_run(model, tokens, site, value, logits=logits, grad=grad)
    assert run.logits is not None
    return run.logits


def rest_of_run(
    model: Model,
    tokens: TokenBatch,
    site: Site,
    value: Float[Tensor, "batch pos *d"],
    *,
    logits: Literal[True, "last"] = True,
    grad: bool = False,
    capture: Iterable[Site] = (),
) -> Run:
    """The same, with the activations at later sites."""
    layer, options = site.layer, dict[str, Any](logits=logits, grad=grad, capture=list(capture))
    if site.name == "resid_post" and layer is not None and layer + 1 < model.cfg.n_layers and not model.ambient_edits:
        return model.run(tokens, start=(("resid_pre", layer + 1), value), **options)
    return model.run(tokens, edits=edits.patch(site, value, tokens=tokens), **options)
