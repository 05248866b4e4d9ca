"""How a site's tensor lies in the tensor of a native module: pairs of functions that take it out and put it back."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..model import Model


class Layout(NamedTuple):
    """`split(whole)` is the site's tensor; `join(whole, part)` is the whole with another one in its place."""

    split: Callable[[Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]


def whole() -> Layout:
    return Layout(lambda whole: whole, lambda whole, part: part)


def scaled(by: float) -> Layout:
    """The model multiplies the module's output by a constant before it enters the stream."""
    return whole() if by == 1 else Layout(lambda whole: whole * by, lambda whole, part: part / by)


def by_head(heads: int) -> Layout:
    return Layout(lambda whole: whole.unflatten(-1, (heads, -1)), lambda whole, part: part.flatten(-2))


def by_head_clipped(heads: int) -> Layout:
    """The model clips the module's output in place: what is captured, and what is written, need memory of their own."""
    return Layout(lambda whole: whole.unflatten(-1, (heads, -1)).clone(), lambda whole, part: part.flatten(-2).clone())


def block(sizes: tuple[int, ...], index: int, heads: int | None = None) -> Layout:
    """One of several blocks side by side: [q | k | v] of GPT-2 and Phi-3, [gate | up]."""

    def split(whole: Tensor) -> Tensor:
        part = whole.split(sizes, dim=-1)[index]
        return part if heads is None else part.unflatten(-1, (heads, -1))

    def join(whole: Tensor, part: Tensor) -> Tensor:
        parts = list(whole.split(sizes, dim=-1))
        parts[index] = part if heads is None else part.flatten(-2)
        return torch.cat(parts, dim=-1)

    return Layout(split, join)


def _split_interleaved(whole: Tensor, third: int, heads: int) -> Tensor:
    return whole.unflatten(-1, (heads, 3, -1))[..., third, :]


def _join_interleaved(whole: Tensor, part: Tensor, third: int, heads: int) -> Tensor:
    parts = list(whole.unflatten(-1, (heads, 3, -1)).unbind(-2))
    parts[third] = part
    return torch.stack(parts, dim=-2).flatten(-3)


def interleaved(third: int, heads: int) -> Layout:
    """GPT-NeoX: q k v of head 0, q k v of head 1, ..."""
    return Layout(
        partial(_split_interleaved, third=third, heads=heads), partial(_join_interleaved, third=third, heads=heads)
    )


def layout_of(model: "Model", view: str) -> Layout:
    """The layout that a row of the table of places names; the sizes are the model's."""
    family, cfg = model.family, model.cfg
    if view == "embedding":
        return scaled(model.embed_scale)
    if view == "branch":
        return scaled(model.residual_multiplier)
    if view == "z":
        return by_head(cfg.n_heads)
    if view in ("gate", "up"):
        fused = family.pre == family.pre_linear
        return block((cfg.d_mlp, cfg.d_mlp), ("gate", "up").index(view)) if fused else whole()
    if view not in ("q", "k", "v"):
        return whole()
    heads, third = (cfg.n_heads if view == "q" else cfg.n_kv_heads), "qkv".index(view)
    if family.fused == "stacked":
        widths = (cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head)
        return block(widths, third, heads)
    if family.fused == "interleaved":
        return interleaved(third, heads)
    clipped = family.clip and getattr(model.hf.config, family.clip) is not None
    return by_head_clipped(heads) if clipped else by_head(heads)
