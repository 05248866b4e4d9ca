"""TransformerLens's hook functions as edits, and its ways to name activations as sites."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput, UnknownName
from ..places.places import Places
from ..places.sites import GLOBAL, GLOBAL_ON_REQUEST, ON_REQUEST, PER_LAYER, Site
from ..running.moment import Moment

Filter = str | Callable[[str], bool]
Names = Filter | Iterable[str] | None
HookFunction = Callable[..., Tensor | None]


@dataclass
class HookPoint:
    """What a hook function is told of its place: `hook.name`, `hook.layer()`, and `hook.ctx` to keep things in."""

    site: Site
    ctx: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.site.hook_name

    def layer(self) -> int:
        if self.site.layer is None:
            raise BadInput(f"{self.name} belongs to no layer")
        return self.site.layer


@dataclass(eq=False)
class Hook:
    """A hook function as an edit; `backward` ones see the gradient."""

    point: HookPoint
    fn: HookFunction
    backward: bool = False

    @property
    def site(self) -> Site:
        return self.point.site

    def __str__(self) -> str:
        return f"hook at {self.point.name}"

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        if self.backward and not torch.is_grad_enabled():
            raise BadInput(f"{self} sees gradients and this pass keeps none: call the model, or model.run(grad=True)")
        if self.backward:
            x = x if x.requires_grad else x.detach().requires_grad_()
            x.register_hook(lambda grad: self.fn(grad, hook=self.point))
            return x, True
        copy = x.clone()  # a function may write into what it is given, and return it or nothing
        new = self.fn(copy, hook=self.point)
        new = copy if new is None else new
        if new.shape != x.shape:
            raise BadInput(f"{self} returned shape {tuple(new.shape)} for an activation of shape {tuple(x.shape)}")
        return new.to(x.dtype), True


def all_sites(model: Places, on_request: bool = False) -> list[Site]:
    """Every site that this model has, layer by layer; those that are captured only when named with `on_request`."""
    layered, once = (ON_REQUEST, GLOBAL_ON_REQUEST) if on_request else (PER_LAYER, GLOBAL)
    sites = [Site(name, layer) for layer in model.layers() for name in layered] + [Site(name) for name in once]
    return [site for site in sites if model.has(site)]


def named_sites(model: Places, names: Names) -> list[Site]:
    """The sites of a `names_filter`: a name, several, a function of TransformerLens names, or None for all.

    Raises:
        UnknownName: a name that the model does not have, or a function that chooses nothing.
    """
    if names is None:
        return all_sites(model)
    if callable(names):
        for on_request in (False, True):
            if sites := [site for site in all_sites(model, on_request) if names(site.hook_name)]:
                return sites
        raise UnknownName("the names_filter function chose no activation; names look like blocks.0.hook_resid_pre")
    if isinstance(names, str) or (isinstance(names, tuple) and len(names) > 1 and isinstance(names[1], int)):
        names = [names]  # type: ignore[list-item]
    return [model.site(name) for name in names]


def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The TransformerLens name of an activation: `get_act_name("resid_post", 5)` is `blocks.5.hook_resid_post`."""
    if name in ("scale", "normalized") and layer is None:
        return f"ln_final.hook_{name}"
    site = name if layer is None else (name, layer, layer_type or "ln1")
    return Site.parse(site).hook_name
