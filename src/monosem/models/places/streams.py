"""Several residual streams side by side: how they are made from the embedding, and what is unembedded of them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def spread(
    projections: nn.Module | None, embedded: Float[Tensor, "batch pos d_model"], streams: int
) -> Float[Tensor, "batch pos stream d_model"]:
    """What enters the first block: copies of the embedding, or projections of it as loud as it is (AltUp)."""
    if projections is None:
        return embedded[:, :, None].expand(-1, -1, streams, -1)
    made = [_as_loud(projection(embedded), embedded) for projection in projections.children()]
    return torch.stack([embedded, *made], dim=-2)


def collapsed(module: nn.Module, streams: Float[Tensor, "*batch stream d_model"]) -> Float[Tensor, "*batch d_model"]:
    """What the final norm reads: a module's own mix, or the mean of projections as loud as the first stream (AltUp)."""
    if not isinstance(module, nn.ModuleList):
        return module(streams)  # type: ignore[no-any-return]
    first, *others = streams.unbind(-2)
    made = [_as_loud(projection(other), first) for projection, other in zip(module, others)]
    return torch.stack([first, *made]).mean(0)


def _as_loud(x: Tensor, like: Tensor) -> Tensor:
    """Vectors with the root mean square of others."""
    size, own = (one.square().mean(-1, keepdim=True) for one in (like, x))
    return x * size**0.5 / own.clamp(min=1e-5).sqrt()
