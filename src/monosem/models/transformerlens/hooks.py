"""TransformerLens's hook functions as edits, and its ways to name activations as sites."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput, UnknownName
from ..places.places import Places
from ..places.sites import GLOBAL, GLOBAL_ON_REQUEST, ON_REQUEST, PER_LAYER, Inner, Site
from ..running.moment import Moment
from .names import ALIASES

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
            x.register_hook(self._gradient)
            return x, True
        copy = x.clone()  # a function may write into what it is given, and return it or nothing
        if moment.visible is not None and self.site.name.endswith("scores"):
            copy = copy.masked_fill(~moment.visible, -torch.inf)  # as there; put back afterwards
        new = self.fn(copy, hook=self.point)
        new = copy if new is None else new
        if new.shape != x.shape:
            raise BadInput(f"{self} returned shape {tuple(new.shape)} for an activation of shape {tuple(x.shape)}")
        return new.to(x.dtype), True

    def _gradient(self, grad: Tensor) -> Tensor | None:
        """What goes on backwards: what the function returns, also in a tuple as TransformerLens has it, or `grad`."""
        new: Any = self.fn(grad, hook=self.point)
        new = new[0] if isinstance(new, tuple) and len(new) == 1 else new
        if new is not None and not (isinstance(new, Tensor) and new.shape == grad.shape):
            shape = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise BadInput(f"{self} returned {shape} for a gradient of shape {tuple(grad.shape)}")
        return new


def all_sites(model: Places, every: bool = False) -> list[Site]:
    """The sites that a run keeps when none is named, layer by layer; with `every` all that this model has."""
    layered = [*PER_LAYER, *(ON_REQUEST if every else ())]
    once = [*GLOBAL, *(GLOBAL_ON_REQUEST if every else ())]
    sites = [Site(name, layer) for layer in model.layers() for name in layered] + [Site(name) for name in once]
    return [site for site in sites if model.has(site)]


def spellings(site: Site) -> list[str]:
    """All names of a site in TransformerLens's versions, the one in caches first."""
    block = "" if site.layer is None else f"blocks.{site.layer}."
    others = [f"{block}{alias}" for alias, name in ALIASES.items() if name == site.name and "hook" in alias]
    return list(dict.fromkeys([site.hook_name, *others]))


def _chosen(model: Places, names: Callable[[str], bool]) -> list[Site]:
    """What a function of names chooses: among the names of 3.x that are always there, or else among all names."""
    sites = all_sites(model, every=True)
    usual = set(all_sites(model))
    usual |= {site for site in sites if site.name.endswith(("_scale", "_normalized"))}
    return [site for site in sites if site in usual and names(site.hook_name)] or [
        site for site in sites if any(names(spelled) for spelled in spellings(site))
    ]


def named_sites(model: Places, names: Names) -> list[Site]:
    """The sites of a `names_filter`: a name, several, a function of TransformerLens names, or None for all.

    Raises:
        UnknownName: a name that the model does not have, or a function that chooses nothing.
    """
    inner = inner_places(model)
    if names is None:
        return [*all_sites(model), *inner]
    if callable(names):
        if sites := [*_chosen(model, names), *(place for place in inner if names(place.hook_name))]:
            return sites
        raise UnknownName("the names_filter function chose no activation; names look like blocks.0.hook_resid_pre")
    if isinstance(names, str) or (isinstance(names, tuple) and len(names) > 1 and isinstance(names[1], int)):
        names = [names]  # type: ignore[list-item]
    return [_inner(inner, name) if _is_inner(name) else model.site(name) for name in names]


def inner_places(model: Places) -> list[Inner]:
    """The places inside the dictionaries that `model.saes(...)` or `model.editing(...)` has put into the model."""
    return [place for edit in model.ambient_edits for place in getattr(edit, "places", ())]


def _is_inner(name: Any) -> bool:
    return isinstance(name, str) and ".hook_sae_" in name


def _inner(places: list[Inner], name: str) -> Inner:
    """The place with this name of SAELens. Raises `UnknownName` where no dictionary in the model has it."""
    by_name = {place.hook_name: place for place in places}
    if name not in by_name:
        known = f"there are {', '.join(by_name)}" if by_name else "no dictionary is in the model: use model.saes([...])"
        raise UnknownName(f"{name!r} is not a place inside a dictionary here; {known}")
    return by_name[name]


def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The TransformerLens name of an activation: `get_act_name("resid_post", 5)` is `blocks.5.hook_resid_post`."""
    if name in ("scale", "normalized") and layer is None:
        return f"ln_final.hook_{name}"
    site = name if layer is None else (name, layer, layer_type or "ln1")
    return Site.parse(site).hook_name
