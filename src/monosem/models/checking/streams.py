"""What a block's branches add to its streams: to one stream, or to several that the block mixes."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..places.blocks import Sum
from .checks import Checks


@torch.no_grad()
def total(c: Checks, layer: int, one: Sum, parts: list[Tensor]) -> Tensor:
    """A stream as its block makes it from its parts, without a norm or factor at the end."""
    if one.keeps is not None:
        with c.model.turn():
            parts = [one.keeps(c.model.blocks[layer], parts[0]), *parts[1:]]
    if not one.streams:
        return reduce(torch.add, parts)  # rounds where the model does
    module: Any = c.model.blocks[layer].get_submodule(one.streams)
    with c.model.turn():
        return _alternating(module, one.stream, *parts) if c.model.family.alternating else _hyper(module, *parts)


def how(c: Checks, one: Sum) -> str:
    """What the parts are, and how they become the stream."""
    parts = " + ".join(one.parts)
    if one.keeps is not None:
        return f"{one.parts[0]} as it is kept + {' + '.join(one.parts[1:])}"
    if not one.streams:
        return parts
    if not c.model.family.alternating:
        return f"{parts}, mixed and spread over its streams"
    return (
        f"{parts}, predicted"
        if one.stream == "active"
        else f"({parts}) / √2"
        if one.stream == "resid_mid"
        else f"{parts}, corrected"
    )


def _hyper(module: Any, streams: Tensor, out: Tensor) -> Tensor:
    """Hyper-connections: streams are mixed where the module mixes them, and a branch's output is spread over them."""
    weights, *mix, _ = module(streams)
    mixed = torch.einsum("btjk,btjd->btkd", mix[0].to(streams.dtype), streams) if mix else streams
    return mixed + weights.to(out.dtype)[..., None] * out[:, :, None]


def _alternating(module: Any, stream: str, *parts: Tensor) -> Tensor:
    """AltUp (arXiv:2301.13310): one stream is predicted from all, branches write into it, and it corrects all."""
    if stream == "resid_mid":
        return sum(parts[1:], parts[0]) / 2**0.5
    before, *written = parts
    predicted, active = module.predict(before.permute(2, 0, 1, 3)), module.config.altup_active_idx
    if stream == "active":
        return predicted[active]  # type: ignore[no-any-return]
    middle, out, *given = written
    corrected = module.correct(predicted, middle + out)
    if stream == "corrected":
        first = corrected[active]
        return module.forward(first) if module.config.altup_correct_scale else first  # type: ignore[no-any-return]
    corrected[1:] += given[0]
    return corrected.permute(1, 2, 0, 3)  # type: ignore[no-any-return]
