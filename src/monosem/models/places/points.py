"""Where a site is read and written in the native modules: a module, its input or output, a layout of that tensor."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from ...errors import UnknownName
from .families import Family
from .layouts import Layout, layout_of
from .sites import ROUTER, Site

if TYPE_CHECKING:
    from ..model import Model


@dataclass(frozen=True)
class Point:
    """`split` takes the site's tensor out of the module's tensor; `join` puts a new one back.

    Attributes:
        item: which of the module's outputs it is, where there are several.
        flat: the module sees `batch*pos` rows (routers).
    """

    module: nn.Module
    when: Literal["in", "out"]
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


def point(model: "Model", site: Site) -> Point:
    """The native place of a site that is not inside the attention function.

    Raises:
        UnknownName: the architecture has no such place; the message says why.
    """
    if reason := _missing(model, site):
        raise UnknownName(f"{site}: {reason}")
    family = model.family
    template, when, view = _PLACES[site.name]
    module = model.hf.get_submodule(template.format(block=f"{family.layers}.{site.layer}", **_names(family)))
    item = ROUTER.index(site.name) if site.name in ROUTER else 0
    return Point(module, when, layout_of(model, view), item, flat=site.name in ROUTER)


@cache
def _names(family: Family) -> dict[str, str]:
    """What fills a path in `_PLACES`, but for the block."""
    names = {key: value for key, value in vars(family).items() if isinstance(value, str)}
    names["attn_write"] = family.attn_norm or family.attention
    names["mlp_read"] = family.ln2 or family.mlp
    names["mlp_write"] = family.mlp_norm or family.mlp
    return names


def _missing(model: "Model", site: Site) -> str | None:
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


def _has(model: "Model", layer: int | None, path: str | None) -> bool:
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
