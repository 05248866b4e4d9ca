"""The native modules between the residual stream and a node: what is read from a stream, what is written into one.

Norms are computed anew for every input, never frozen or folded; projections, qk-norm and rotation stay native.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...models import Site
from ...models.places.points import point, unwrap

if TYPE_CHECKING:
    from ...models import Model

Stream = Float[Tensor, "*batch pos d_model"]


def projections(
    model: "Model", layer: int, kinds: set[str], resid_pre: Float[Tensor, "batch pos d_model"]
) -> dict[str, Float[Tensor, "batch pos head d_head"]]:
    """The sites q, k, v of a layer (those in `kinds`) for any stream that could enter it. A fused module runs once."""
    if not kinds:
        return {}
    read = normed(model, layer, "ln1", resid_pre)
    done: dict[nn.Module, Tensor] = {}
    found = {}
    for kind in sorted(kinds):
        place = point(model, Site(kind, layer))
        if place.module not in done:
            done[place.module] = place.module(read)
        found[kind] = place.split(done[place.module])
    return found


def mlp_write(
    model: "Model", layer: int, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """What the MLP adds to the stream when it reads `stream` (resid_mid, or resid_pre in parallel blocks)."""
    out = unwrap(model.blocks[layer].get_submodule(model.family.mlp)(normed(model, layer, "ln2", stream)))
    return added(model, layer, "mlp", out)


def head_write(
    model: "Model",
    layer: int,
    z: Float[Tensor, "batch pos head d_head"],
    change: Float[Tensor, "*sets batch pos d_model"],
) -> Float[Tensor, "*sets batch pos d_model"]:
    """By how much attention's share of the stream changes when `change` is added to its output before a post-norm.

    Without a post-norm that is `change` (times the residual multiplier); a post-norm is applied to the whole branch
    with and without it.
    """
    if model.branch_norm(layer, "attn") is None:
        return change * model.residual_multiplier
    raw = point(model, Site("z", layer)).module(z.flatten(-2))
    before = added(model, layer, "attn", raw)
    after = added(model, layer, "attn", (raw + change).to(raw.dtype))
    return (after - before).to(change.dtype)


def normed(model: "Model", layer: int, which: Any, stream: Tensor) -> Tensor:
    norm = model.norm_module(layer, which)
    return stream if norm is None else norm(stream)


def added(model: "Model", layer: int, branch: Any, out: Tensor) -> Tensor:
    """A branch's output as the stream receives it."""
    norm = model.branch_norm(layer, branch)
    return (out if norm is None else norm(out)) * model.residual_multiplier


def wide(model: "Model") -> torch.dtype:
    """Differences are kept in at least float32."""
    return torch.promote_types(model.dtype, torch.float32)
