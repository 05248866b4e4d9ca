"""Where a site is read and written in the native modules: a module, its input or output, a layout of that tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import UnknownName
from ..native import Native
from .blocks import Slot
from .mixers import Side
from .sites import Site


# ---------------------------------------------------------------------- how a site lies in a module's tensor
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


def layout_of(model: Native, view: str, slot: Slot | None) -> Layout:
    """The layout that a place names; the sizes are the model's."""
    cfg = model.cfg
    if view == "whole" or slot is None:
        return scaled(model.embed_scale) if view == "embedding" else whole()
    mixer = slot.mixer
    if view == "branch":
        return scaled(slot.scale)
    if view == "z":
        return by_head(cfg.n_heads)
    if view in ("gate", "up"):
        fused = mixer.parts["pre"] == mixer.parts.get("pre_linear")
        return block((cfg.d_mlp, cfg.d_mlp), ("gate", "up").index(view)) if fused else whole()
    heads, third = (cfg.n_heads if view == "q" else cfg.n_kv_heads), "qkv".index(view)
    if mixer.fused == "stacked":
        widths = (cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head)
        return block(widths, third, heads)
    if mixer.fused == "interleaved":
        return interleaved(third, heads)
    clipped = mixer.clip and getattr(model.hf.config, mixer.clip) is not None
    return by_head_clipped(heads) if clipped else by_head(heads)


# ---------------------------------------------------------------------- the places
@dataclass(frozen=True)
class Point:
    """`split` takes the site's tensor out of the module's tensor; `join` puts a new one back.

    Attributes:
        when: the module's input or output; "inside" an attention function; "around" a norm, whose input it is made of.
        order: when it is computed, among all sites.
        item: which of the module's outputs it is, where there are several.
        flat: the module sees `batch*pos` rows (routers).
        sum_of: what a stream between branches is the sum of.
    """

    module: nn.Module
    when: Side
    layout: Layout
    order: tuple[int, int]
    item: int = 0
    flat: bool = False
    sum_of: tuple[str, ...] = ()

    def split(self, whole: Tensor) -> Tensor:
        return self.layout.split(whole)

    def join(self, whole: Tensor, part: Tensor) -> Tensor:
        return self.layout.join(whole, part)


# site -> (what of the family's row is its module, side, layout), in the order of computation
_ONCE: dict[str, tuple[str, Side, str]] = {
    "embed": ("embed", "out", "embedding"),
    "pos_embed": ("positions", "out", "whole"),
    "final_scale": ("final_norm", "around", "whole"),
    "final_normalized": ("final_norm", "around", "whole"),
    "final_norm": ("final_norm", "out", "whole"),
    "logits": ("", "out", "whole"),
}


def point(model: Native, site: Site) -> Point:
    """The native place of a site.

    Raises:
        UnknownName: the model has no such layer or place; the message says why.
    """
    if site.layer is None:
        return _point_once(model, site)
    if not 0 <= site.layer < model.cfg.n_layers:
        raise UnknownName(f"{site}: {model.name} has layers 0 to {model.cfg.n_layers - 1}")
    block = model.anatomy[site.layer]
    place = block.places.get(site.name)
    if place is None:
        raise UnknownName(f"{site}: layer {site.layer} of {model.name} {block.why_not(site.name)}")
    if place.side == "inside" and not model.hf._can_set_attn_implementation():
        kind = type(model.hf).__name__
        raise UnknownName(f"{site}: {kind} is not on transformers' attention registry; use q, k, v, z")
    path, side, view, slot, item, flat, sum_of = place
    module = model.blocks[site.layer].get_submodule(path)
    order = site.layer, list(block.places).index(site.name)
    return Point(module, side, layout_of(model, view, slot), order, item, flat, sum_of)


def _point_once(model: Native, site: Site) -> Point:
    attribute, side, view = _ONCE[site.name]
    path = getattr(model.family, attribute) if attribute else ""
    if path is None:
        raise UnknownName(f"{site}: {model.name} has no learned positions (it rotates queries and keys)")
    order = list(_ONCE).index(site.name)
    early = site.name in ("embed", "pos_embed")
    module = model.hf.get_submodule(path)
    return Point(module, side, layout_of(model, view, None), (-1 if early else model.cfg.n_layers, order))


# Modules return a tensor, a tuple or a ModelOutput, and the choice changes between transformers releases: one helper.
def unwrap(output: Any, item: int = 0) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[item]


def rewrap(output: Any, value: Tensor, item: int = 0) -> Any:
    if isinstance(output, Tensor):
        return value
    if hasattr(output, "logits"):
        output.logits = value
        return output
    return (*output[:item], value, *output[item + 1 :])


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def with_first_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})
