"""Where a site is read and written in the native modules: a module, its input or output, a layout of that tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import UnknownName
from ..native import Native
from .families import Family
from .sites import ATTENTION, NORMS, ROUTER, Site


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


def layout_of(model: Native, view: str) -> Layout:
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


# ---------------------------------------------------------------------- the places
@dataclass(frozen=True)
class Point:
    """`split` takes the site's tensor out of the module's tensor; `join` puts a new one back.

    Attributes:
        when: the module's input or output; "inside" an attention function; "around" a norm, whose input it is made of.
        item: which of the module's outputs it is, where there are several.
        flat: the module sees `batch*pos` rows (routers).
    """

    module: nn.Module
    when: Literal["in", "out", "inside", "around"]
    layout: Layout
    item: int = 0
    flat: bool = False

    def split(self, whole: Tensor) -> Tensor:
        return self.layout.split(whole)

    def join(self, whole: Tensor, part: Tensor) -> Tensor:
        return self.layout.join(whole, part)


# site -> (module path, side, layout); braces are filled from the family's row
_PLACES: dict[str, tuple[str, Literal["in", "out"], str]] = {
    "embed": ("{embed}", "out", "embedding"),
    "pos_embed": ("{positions}", "out", "whole"),
    "resid_pre": ("{block}", "in", "whole"),
    "q": ("{block}.{attention}.{q}", "out", "q"),
    "k": ("{block}.{attention}.{k}", "out", "k"),
    "v": ("{block}.{attention}.{v}", "out", "v"),
    "z": ("{block}.{attention}.{out}", "in", "z"),
    "result": ("{block}.{attention}.{out}", "in", "z"),
    "attn_raw": ("{block}.{attention}", "out", "whole"),
    "attn_out": ("{block}.{attn_write}", "out", "branch"),
    "resid_mid": ("{block}.{mlp_read}", "in", "whole"),
    "router_logits": ("{block}.{mlp}.{router}", "out", "whole"),
    "expert_weights": ("{block}.{mlp}.{router}", "out", "whole"),
    "expert_indices": ("{block}.{mlp}.{router}", "out", "whole"),
    "mlp_pre": ("{block}.{mlp}.{pre}", "out", "gate"),
    "mlp_pre_linear": ("{block}.{mlp}.{pre_linear}", "out", "up"),
    "mlp_post": ("{block}.{mlp}.{down}", "in", "whole"),
    "mlp_raw": ("{block}.{mlp}", "out", "whole"),
    "mlp_out": ("{block}.{mlp_write}", "out", "branch"),
    "resid_post": ("{block}", "out", "whole"),
    "final_norm": ("{final_norm}", "out", "whole"),
    "logits": ("", "out", "whole"),
}
_NEURONS = ("mlp_pre", "mlp_pre_linear", "mlp_post")


def point(model: Native, site: Site) -> Point:
    """The native place of a site.

    Raises:
        UnknownName: the model has no such layer or place; the message says why.
    """
    if site.layer is not None and not 0 <= site.layer < model.cfg.n_layers:
        raise UnknownName(f"{site}: {model.name} has layers 0 to {model.cfg.n_layers - 1}")
    if site.name in ATTENTION:
        return Point(_attention_module(model, site), "inside", whole())
    if site.name in NORMS:
        return Point(_norm_module(model, site), "around", whole())
    if reason := _missing(model, site):
        raise UnknownName(f"{site}: {reason}")
    family = model.family
    template, when, view = _PLACES[site.name]
    module = model.hf.get_submodule(template.format(block=f"{family.layers}.{site.layer}", **_names(family)))
    item = ROUTER.index(site.name) if site.name in ROUTER else 0
    return Point(module, when, layout_of(model, view), item, flat=site.name in ROUTER)


def _attention_module(model: Native, site: Site) -> nn.Module:
    """The attention module of a site's layer, if the architecture calls the registered attention function."""
    if not model.hf._can_set_attn_implementation():
        kind = type(model.hf).__name__
        raise UnknownName(f"{site}: {kind} is not on transformers' attention registry; use q, k, v, z")
    return model.blocks[site.layer].get_submodule(model.family.attention)  # type: ignore[index]


def _norm_module(model: Native, site: Site) -> nn.Module:
    """The norm that a scale or normalized site belongs to."""
    which: Any = NORMS[site.name]
    if which == "final":
        return model.hf.get_submodule(model.family.final_norm)
    assert site.layer is not None
    module = model.norm_module(site.layer, which)
    if module is None:
        raise UnknownName(f"{site}: blocks of {model.name} have no norm before this branch, only one after it")
    if which == "ln2" and module is model.norm_module(site.layer, "ln1"):
        raise UnknownName(f"{site}: one norm serves both branches of {model.name}; use {site.name.replace('2', '1')}")
    return module


@cache
def _names(family: Family) -> dict[str, str]:
    """What fills a path in `_PLACES`, but for the block."""
    names = {key: value for key, value in vars(family).items() if isinstance(value, str)}
    names["attn_write"] = family.attn_norm or family.attention
    names["mlp_read"] = family.ln2 or family.mlp
    names["mlp_write"] = family.mlp_norm or family.mlp
    return names


def _missing(model: Native, site: Site) -> str | None:
    """Why a model has no such site, None if it has it."""
    family = model.family
    if site.name == "resid_mid" and model.parallel:
        return f"in {model.name} attention and MLP both read resid_pre (parallel blocks), so there is no resid_mid"
    if site.name == "pos_embed" and family.positions is None:
        return f"{model.name} has no learned positions (it rotates queries and keys)"
    if site.name in ROUTER and not _has(model, site.layer, family.router):
        return f"layer {site.layer} of {model.name} has no router: it is not a mixture of experts"
    if site.name in _NEURONS and _has(model, site.layer, family.router):
        return (
            f"layer {site.layer} of {model.name} is a mixture of experts, whose neurons are batched parameters without "
            "a module to read; use mlp_out, router_logits, expert_weights or expert_indices"
        )
    if site.name == "mlp_pre_linear" and family.pre_linear is None:
        return f"the MLP of {model.name} is not gated; use mlp_pre"
    return None


def _has(model: Native, layer: int | None, path: str | None) -> bool:
    if path is None or layer is None:
        return False
    return hasattr(model.blocks[layer].get_submodule(model.family.mlp), path)


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
