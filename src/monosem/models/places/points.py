"""Where a site is read and written in the native modules: a module, its input or output, a layout of that tensor."""

import inspect
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import UnknownName
from ..native import Native
from ..numbers import ranges
from .attention import can_attend
from .blocks import Slot
from .kinds import Side
from .mixers import module_at
from .sites import EMBEDDINGS, Site


# ---------------------------------------------------------------------- how a site lies in a module's tensor
class Layout(NamedTuple):
    """`split(whole)` is the site's tensor; `join(whole, part)` is the whole with another one in its place."""

    split: Callable[[Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]


def whole() -> Layout:
    return Layout(lambda whole: whole, lambda whole, part: part)


def scaled(by: float, plus: Tensor | None = None) -> Layout:
    """The model multiplies the module's output by a constant before it enters the stream, and adds a bias."""
    if plus is None:
        return whole() if by == 1 else Layout(lambda whole: whole * by, lambda whole, part: part / by)
    return Layout(lambda whole: whole * by + plus, lambda whole, part: (part - plus) / by)


def kept(layout: Layout) -> Layout:
    """The model writes into the tensor later: what is captured, and what is written, need memory of their own."""
    return Layout(lambda x: layout.split(x).clone(), lambda whole, part: layout.join(whole, part).clone())


def by_head(heads: int) -> Layout:
    return Layout(lambda whole: whole.unflatten(-1, (heads, -1)), lambda whole, part: part.flatten(-2))


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


def behind(width: int) -> Layout:
    """The last numbers of a wider output."""
    return Layout(lambda whole: whole[..., -width:], lambda whole, part: torch.cat([whole[..., :-width], part], dim=-1))


def within_heads(sizes: tuple[int, ...], index: int, heads: int) -> Layout:
    """Several side by side head by head: [query | gate] of Qwen3-Next, [key | value] of latents, [q | k | v] of
    MiniMax. A module that reads the latents of a cache sees `batch 1 pos` of them."""

    def parts(whole: Tensor) -> list[Tensor]:
        flat = whole.squeeze(1) if whole.ndim == 4 else whole
        return list(flat.unflatten(-1, (heads, -1)).split(sizes, dim=-1))

    def join(whole: Tensor, part: Tensor) -> Tensor:
        there = parts(whole)
        there[index] = part
        return torch.cat(there, dim=-1).flatten(-2).reshape(whole.shape)

    return Layout(lambda whole: parts(whole)[index], join)


def interleaved(third: int, heads: int, kv_heads: int) -> Layout:
    """GPT-NeoX: q k v of head 0, q k v of head 1, ...; Falcon: the q of all heads of kv head 0, its k, its v, ..."""
    sizes = (heads // kv_heads, 1, 1)

    def thirds(whole: Tensor) -> list[Tensor]:
        return list(whole.unflatten(-1, (kv_heads, sum(sizes), -1)).split(sizes, -2))

    def join(whole: Tensor, part: Tensor) -> Tensor:
        part = part.unflatten(-2, (kv_heads, sizes[third]))
        return torch.cat([*thirds(whole)[:third], part, *thirds(whole)[third + 1 :]], dim=-2).flatten(-3)

    return Layout(lambda whole: thirds(whole)[third].flatten(-3, -2), join)


def quarters(third: int, heads: int) -> Layout:
    """CodeGen: four blocks [q | v | k], a quarter of the heads in each."""
    order = (0, 2, 1)[third]

    def parts(whole: Tensor) -> list[Tensor]:
        return list(whole.unflatten(-1, (4, 3, -1)).unbind(-2))

    def join(whole: Tensor, part: Tensor) -> Tensor:
        part = part.flatten(-2).unflatten(-1, (4, -1))
        return torch.stack([*parts(whole)[:order], part, *parts(whole)[order + 1 :]], dim=-2).flatten(-3)

    return Layout(lambda whole: parts(whole)[order].flatten(-2).unflatten(-1, (heads, -1)), join)


def added_to(model: Native, layer: int, slot: Slot) -> Tensor | None:
    """The bias that a block adds to what a branch's modules return."""
    name = slot.mixer.bias
    return None if name is None else module_at(model.blocks[layer], f"{slot.mixer.path}.{name}")


def layout_of(model: Native, view: str, slot: Slot | None, layer: int = 0) -> Layout:
    """The layout that a place names; the sizes are the model's, or the layer's own."""
    cfg = model.cfg
    if view == "streams_first":
        return Layout(lambda whole: whole.permute(1, 2, 0, 3), lambda whole, part: part.permute(2, 0, 1, 3))
    if view == "whole" or slot is None:
        if view == "readout":
            return scaled(model.read_scale)
        embedding = scaled(model.embed_scale) if view == "embedding" else whole()
        return kept(embedding) if view == "embedding" and model.entry else embedding  # GIT adds positions in place
    mixer = slot.mixer
    if view in ("raw", "branch"):
        layout = whole() if view == "raw" else scaled(slot.scale, added_to(model, layer, slot))
        return kept(layout) if mixer.in_place else layout
    if view == "kept":
        return kept(whole())
    if view == "units":
        return by_head(slot.sizes["mixer_head"])
    if view == "gate_units":
        return _gate(slot)
    if view.startswith("head"):
        return within_heads((slot.sizes["mixer_dim"],) * 3, int(view[-1]), slot.sizes["mixer_head"])
    if view.startswith("third"):
        return block((slot.sizes["channel"],) * 3, int(view[-1]))
    if view in ("gate", "up"):
        fused = mixer.parts["pre"] == mixer.parts.get("pre_linear")
        return block((cfg.d_mlp, cfg.d_mlp), ("gate", "up").index(view)) if fused else whole()
    return _of_heads(model, view, slot)


def _of_heads(model: Native, view: str, slot: Slot) -> Layout:
    """The layouts of softmax attention; the sizes are the layer's own."""
    mixer, heads = slot.mixer, slot.heads
    assert heads is not None
    if view == "k_rope":  # behind the latent, which is as wide as what its norm leaves
        return behind(heads.qk - heads.nope)
    if view in ("k_nope", "v_of_latent"):
        return within_heads((heads.nope, heads.v), ("k_nope", "v_of_latent").index(view), heads.n)
    if mixer.gated_queries and view in ("q", "attn_gate"):
        return within_heads((heads.qk, heads.v), ("q", "attn_gate").index(view), heads.n)
    if view in ("z", "attn_gate"):
        return by_head(heads.n)
    count, third = (heads.n if view == "q" else heads.n_kv), "qkv".index(view)
    if mixer.fused == "stacked":
        return block((heads.n * heads.qk, heads.n_kv * heads.qk, heads.n_kv * heads.v), third, count)
    if mixer.fused == "interleaved":
        return interleaved(third, heads.n, heads.n_kv)
    if mixer.fused == "quarters":
        return quarters(third, count)
    clipped = mixer.clip is not None and attrgetter(mixer.clip)(model.config)  # in place
    return kept(by_head(count)) if clipped else by_head(count)


def _gate(slot: Slot) -> Layout:
    """The gate of linear attention or a state space, by head: alone, or in one projection with what is convolved."""
    layout, by = _gate_as_given(slot), slot.scales.get("gate", 1.0)
    if by == 1:
        return layout
    return Layout(lambda whole: layout.split(whole) * by, lambda whole, part: layout.join(whole, part / by))


def _gate_as_given(slot: Slot) -> Layout:
    sizes, heads = slot.sizes, slot.sizes["mixer_head"]
    width = heads * sizes["mixer_dim"]
    where = slot.mixer.gate_at
    if where == "whole":
        return by_head(heads)
    if where == "last":
        return block((sizes["channel"], width), 1, heads)
    if where == "first":
        return block((width, sizes["channel"] + heads), 0, heads)
    return grouped(sizes["key_head"], heads, sizes["mixer_dim"])


def grouped(groups: int, heads: int, width: int) -> Layout:
    """Qwen3-Next: q k v gate of the heads that share a key, then of the next ones; the gate is the last of these."""
    size = heads // groups * width

    def split(whole: Tensor) -> Tensor:
        return whole.unflatten(-1, (groups, -1))[..., -size:].unflatten(-1, (-1, width)).flatten(-3, -2)

    def join(whole: Tensor, part: Tensor) -> Tensor:
        before = whole.unflatten(-1, (groups, -1))[..., :-size]
        return torch.cat([before, part.unflatten(-2, (groups, -1)).flatten(-2)], dim=-1).flatten(-2)

    return Layout(split, join)


# ---------------------------------------------------------------------- the places
class Point(NamedTuple):
    """A site's native place.

    Attributes:
        split: takes the site's tensor out of the module's tensor. join: puts a new one back.
        order: when it is computed, among all sites.
        when, item, flat, sum_of, role, fixed: see `blocks.Place`.
        call: which of the module's calls in a pass it is; None where there is one.
        side: "encoder" where it is in the encoder beside a decoder.
        keeps: what the first of `sum_of` becomes before the others are added.
    """

    module: nn.Module
    split: Callable[[Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    order: tuple[int, int]
    when: Side
    item: int = 0
    flat: bool = False
    sum_of: tuple[str, ...] = ()
    role: str = ""
    fixed: str = ""
    call: int | None = None
    side: str = ""
    keeps: Callable[[Tensor], Tensor] | None = None


def point(model: Native, site: Site) -> Point:
    """The native place of a site.

    Raises:
        UnknownName: the model has no such layer or place; the message says why.
    """
    if site.side:
        return _in_encoder(model, site)
    if site.layer is None:
        return _point_once(model, site)
    if not 0 <= site.layer < model.cfg.n_layers:
        raise UnknownName(f"{site}: {model.name} has layers 0 to {model.cfg.n_layers - 1}")
    block = model.anatomy[site.layer]
    place = block.places.get(site.name)
    if place is None:
        others = [layer for layer, other in enumerate(model.anatomy) if site.name in other.places]
        which = f"; it is in layer{'s' * (len(others) > 1)} {ranges(others)}" if others else ""
        raise UnknownName(f"{site}: layer {site.layer} of {model.name} {block.why_not(site.name)}{which}")
    registered = place.slot is None or place.slot.mixer.registered
    if place.side == "inside" and not (registered and can_attend(model.hf)):
        kind = type(model.hf).__name__
        raise UnknownName(f"{site}: {kind} is not on transformers' attention registry; use q, k, v, z")
    path, side, view, slot, item, flat, sum_of, role, fixed, keeps = place
    module = model.blocks[site.layer].get_submodule(path)
    order = site.layer, list(block.places).index(site.name)
    call = model.nth[site.layer] if model.loops else None
    layout = layout_of(model, view, slot, site.layer)
    kept_as = None if keeps is None else partial(keeps, model.blocks[site.layer])
    return Point(module, *layout, order, side, item, flat, sum_of, role, fixed, call, "", kept_as)


def _in_encoder(model: Native, site: Site) -> Point:
    """The place in the encoder beside a decoder; it is computed before every place of the decoder's."""
    bare = Site(site.name, site.layer)
    encoder = model if model.whole is not model.hf else model.encoder
    if encoder is None:
        raise UnknownName(f"{site}: {model.name} has no encoder beside a decoder; write {bare}")
    place = point(encoder, bare)
    layer, number = place.order
    return place._replace(order=(layer - encoder.cfg.n_layers - 2, number), side=site.side)


# where the sites that exist once are: what of the model (`ends.Ends`), side, layout; in the order of computation
_ONCE: dict[str, tuple[str, Side, str]] = {
    "embed": ("embedding", "out", "embedding"),
    "pos_embed": ("position_module", "out", "whole"),
    "type_embed": ("type_module", "out", "whole"),
    "embed_norm": ("entry_norm", "out", "whole"),
    "final_input": ("last_norm", "in", "whole"),
    "final_scale": ("last_norm", "around", "whole"),
    "final_normalized": ("last_norm", "around", "whole"),
    "final_norm": ("before_unembedding", "out", "readout"),
    "logits_raw": ("unembedding", "out", "whole"),
    "logits": ("hf", "out", "whole"),
}


def _point_once(model: Native, site: Site) -> Point:
    attribute, side, view = _ONCE[site.name]
    if model.headless and site.name in ("logits_raw", "logits"):
        raise UnknownName(f"{site}: {model.name} {model.lacks(site.name)}")
    module: nn.Module | None = getattr(model, attribute)
    if module is None and site.name == "final_norm" and not model.headless:  # the last stream is read as it is
        module, side = model.unembeddings[0], "in"
    if module is None:
        raise UnknownName(f"{site}: {model.name} {model.lacks(site.name)}")
    early = site.name in EMBEDDINGS
    twice = model.last_norm is not None and model.last_norm is model.entry_norm  # nanochat
    call = int(not early) if twice and module is model.last_norm else None
    order = -1 if early else model.cfg.n_layers, list(_ONCE).index(site.name)
    return Point(module, *layout_of(model, view, None), order, side, call=call)


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
    if isinstance(output, list):  # OpenAI GPT
        return [*output[:item], value, *output[item + 1 :]]
    return (*output[:item], value, *output[item + 1 :])


def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], item: int) -> Tensor:
    """An argument by its number, however it was given; the first is the stream."""
    return args[item] if item < len(args) else kwargs[_name(module, item)]


def with_given(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], item: int, value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if item >= len(args):
        return args, {**kwargs, _name(module, item): value}
    if item:
        return (*args[:item], value, *args[item + 1 :]), kwargs
    same = 3 if len(args) >= 3 and args[0] is args[1] is args[2] else 1  # CTRL: attention is given v, k and q
    return (*[value] * same, *args[same:]), kwargs


def _name(module: nn.Module, item: int) -> str:
    return [*inspect.signature(module.forward).parameters][item] if item else "hidden_states"
