"""Where a site is read and written in the native modules: a module, its input or output, and a view of that tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UnknownName
from .sites import Site

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class Point:
    """`split` takes the site's tensor out of the module's tensor; `join` puts a new one back."""

    module: nn.Module
    when: Literal["in", "out"]
    split: Callable[[Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]


# site -> (module path, side, view); braces are filled from the family's row
_PLACES: dict[str, tuple[str, Literal["in", "out"], str]] = {
    "embed": ("{embed}", "out", "whole"),
    "resid_pre": ("{block}", "in", "whole"),
    "q": ("{block}.{attention}.{q}", "out", "q"),
    "k": ("{block}.{attention}.{k}", "out", "k"),
    "v": ("{block}.{attention}.{v}", "out", "v"),
    "z": ("{block}.{attention}.{out}", "in", "q"),
    "attn_out": ("{block}.{attn_write}", "out", "whole"),
    "resid_mid": ("{block}.{ln2}", "in", "whole"),
    "mlp_pre": ("{block}.{mlp}.{pre}", "out", "whole"),
    "mlp_pre_linear": ("{block}.{mlp}.{pre_linear}", "out", "whole"),
    "mlp_post": ("{block}.{mlp}.{down}", "in", "whole"),
    "mlp_out": ("{block}.{mlp_write}", "out", "whole"),
    "resid_post": ("{block}", "out", "whole"),
    "final_norm": ("{final_norm}", "out", "whole"),
    "logits": ("", "out", "whole"),
}


def point(model: "Model", site: Site) -> Point:
    """The native place of a site that is not inside the attention function.

    Raises:
        UnknownName: the architecture has no such place; the message says why.
    """
    family = model.family
    if site.name == "resid_mid" and model.parallel:
        raise UnknownName(
            f"{site}: in {model.name} attention and MLP both read resid_pre (parallel blocks), so there is no resid_mid"
        )
    if site.name == "mlp_pre_linear" and family.pre_linear is None:
        raise UnknownName(f"{site}: the MLP of {model.name} is not gated; use mlp_pre")
    template, when, view = _PLACES[site.name]
    names = {key: value for key, value in vars(family).items() if isinstance(value, str)}
    names["block"] = f"{family.layers}.{site.layer}"
    names["attn_write"] = family.attn_norm or family.attention
    names["mlp_write"] = family.mlp_norm or family.mlp
    split, join = _view(model, view, fused=site.name != "z")
    return Point(model.hf.get_submodule(template.format(**names)), when, split, join)


def _view(
    model: "Model", view: str, fused: bool
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    if view == "whole":
        return _same, _replaced
    heads = model.cfg.n_heads if view == "q" else model.cfg.n_kv_heads
    if fused and model.family.fused:
        split, join = _FUSED[model.family.fused]
        third = "qkv".index(view)
        return partial(split, third=third, heads=heads), partial(join, third=third, heads=heads)
    return partial(_split_heads, heads=heads), _join_heads


def _same(whole: Tensor) -> Tensor:
    return whole


def _replaced(whole: Tensor, part: Tensor) -> Tensor:
    return part


def _split_heads(whole: Tensor, heads: int) -> Tensor:
    return whole.unflatten(-1, (heads, -1))


def _join_heads(whole: Tensor, part: Tensor) -> Tensor:
    return part.flatten(-2)


def _split_thirds(whole: Tensor, third: int, heads: int) -> Tensor:
    return whole.chunk(3, dim=-1)[third].unflatten(-1, (heads, -1))  # GPT-2: [q | k | v]


def _join_thirds(whole: Tensor, part: Tensor, third: int, heads: int) -> Tensor:
    parts = list(whole.chunk(3, dim=-1))
    parts[third] = part.flatten(-2)
    return torch.cat(parts, dim=-1)


def _split_interleaved(whole: Tensor, third: int, heads: int) -> Tensor:
    return whole.unflatten(-1, (heads, 3, -1))[..., third, :]  # GPT-NeoX: q k v of head 0, q k v of head 1, ...


def _join_interleaved(whole: Tensor, part: Tensor, third: int, heads: int) -> Tensor:
    parts = list(whole.unflatten(-1, (heads, 3, -1)).unbind(-2))
    parts[third] = part
    return torch.stack(parts, dim=-2).flatten(-3)


_FUSED = {"thirds": (_split_thirds, _join_thirds), "interleaved": (_split_interleaved, _join_interleaved)}


# Modules return a tensor, a tuple or a ModelOutput, and the choice changes between transformers releases: one helper.
def unwrap(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def rewrap(output: Any, value: Tensor) -> Any:
    if isinstance(output, Tensor):
        return value
    if hasattr(output, "logits"):
        output.logits = value
        return output
    return (value, *output[1:])


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def with_first_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})
