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
    clean: Run | None = None,
    logits: Literal[True, "last"] = True,
    grad: bool = False,
    capture: Iterable[Site] = (),
) -> Run:
    """The same, with the activations at later sites.

    Args:
        clean: a run of the same tokens without the value that captured the `entry` of the site. With it, the blocks
            before the site are left out wherever in its block the site is.
    """
    options = dict[str, Any](logits=logits, grad=grad, capture=list(capture))
    if not model.ambient_edits:  # inside `editing` the stream may have their edits already
        if (begins := _stream(model, site)) is not None:
            return model.run(tokens, start=(begins, value), **options)
        if clean is not None and (before := entry(model, site)) is not None:
            options["start"] = (before, clean[before])
    return model.run(tokens, edits=edits.patch(site, value, tokens=tokens), **options)


def entry(model: Model, site: Site) -> Site | None:
    """Where a pass can start that comes by the site: the stream before its block. None where that saves nothing."""
    if site.side or not site.layer or _stream(model, site) is not None:
        return None
    return Site("resid_pre", site.layer)


def _stream(model: Model, site: Site) -> Site | None:
    """The place of the stream where a pass can start with this site's activation."""
    if site.side or site.layer is None:
        return None
    layer = {"resid_pre": site.layer, "resid_post": site.layer + 1}.get(site.name, model.cfg.n_layers)
    return Site("resid_pre", layer) if layer < model.cfg.n_layers else None
