"""Edits of what an activation has along a direction: x + change(p) r̂ with p = x · r̂, each vector by itself.

r̂ is the direction at length 1, whatever length it is given with; p is in units of activation. Most operations differ in
`change` alone (`CHANGES`); those that act along several directions at once take an orthonormal basis of their span.

These edits read the activation, so they leave out the tokens that a `Direction` was not fitted on, as edits of latents
do: at an attention sink p is hundreds of times as large as elsewhere and means nothing. `.at(everywhere=True)` acts on
these, too; `(site, vector)` names no rule and acts on all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..models import Moment, Site, SiteLike
from .changes import Amount, DirectionLike, amounts, checked, per_row, shown, site_and_vector
from .edit import Edit, Trained
from .values import TOKEN_AXES, Value

OneDirection = DirectionLike | tuple[SiteLike, Tensor]
Directions = OneDirection | Sequence[OneDirection]

# what is added to the coordinates p, `... direction`: of p, the activation's norm and the amount
CHANGES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ablate": lambda p, size, amount: -amount * p,
    "scale along": lambda p, size, amount: (amount - 1) * p,
    "reflect": lambda p, size, amount: -2 * p,
    "set to": lambda p, size, amount: amount - p,
    "floor": lambda p, size, amount: (amount - p).clamp(min=0),
    "ceiling": lambda p, size, amount: (amount - p).clamp(max=0),
    "push": lambda p, size, amount: amount * p.sign(),
    "add by cosine": lambda p, size, amount: amount * (p / size.clamp(min=1e-30)).clamp(min=0),
}


@dataclass(frozen=True, eq=False)
class Axis:
    """A direction, or several as an orthonormal basis of what they span.

    Attributes:
        given: one direction, which may differ by row, position or head. basis: several. One of the two is there.
    """

    site: Site
    given: Value | None = None
    basis: Float[Tensor, "direction d"] | None = None

    @staticmethod
    def of(direction: Any, axes: str | None, what: str, several: bool = False) -> "Axis":
        """Read one direction; a list of directions at one site, or a matrix with `axes="direction d_model"`.

        Raises:
            BadInput: no vector, one of zeros; several where one is needed, that depend on each other, or at two sites.
        """
        if several and axes is None and getattr(direction, "basis", None) is not None:
            return Axis(direction.site, basis=orthonormal(direction.basis, f"{what} at {direction.site}"))
        if isinstance(direction, list) or (axes is not None and axes.split()[:1] == ["direction"]):
            if not several:
                raise BadInput(f"{what} acts along one direction; ablate, scale_along and reflect take several")
            return _several(direction, what)
        site, vector = site_and_vector(direction)
        given = Value.of(site, vector, axes, what)
        if not given.axes or given.axes[-1] in (*TOKEN_AXES, "head", "1"):
            raise BadInput(f"{given.what}: a direction is a vector, not {list(given.tensor.shape)} at {site}")
        if not bool(given.tensor.any()):
            raise BadInput(f"{given.what}: a vector of zeros has no direction")
        return Axis(site, given)

    def units(self, x: Tensor, moment: Moment) -> Float[Tensor, "... d"]:
        """The direction at length 1, in a shape that broadcasts over x."""
        assert self.given is not None
        return torch.nn.functional.normalize(self.given.fit(x, moment).float(), dim=-1)

    def length(self, x: Tensor, moment: Moment) -> Float[Tensor, "... 1"]:
        """The length that the direction was given with."""
        assert self.given is not None
        return self.given.fit(x, moment).float().norm(dim=-1, keepdim=True)

    def coordinates(self, x: Tensor, moment: Moment) -> Float[Tensor, "... direction"]:
        if self.basis is None:
            return (x.float() * self.units(x, moment)).sum(-1, keepdim=True)
        if x.shape[-1] != self.basis.shape[1]:
            raise BadInput(f"directions of {self.basis.shape[1]} entries, and {self.site} has {x.shape[-1]}")
        return x.float() @ self.basis.to(x.device).T

    def vectors(self, p: Float[Tensor, "... direction"], x: Tensor, moment: Moment) -> Float[Tensor, "... d"]:
        """What has these coordinates."""
        return p * self.units(x, moment) if self.basis is None else p @ self.basis.to(x.device)


def ablate(direction: Directions, amount: Amount = 1.0, *, axes: str | None = None) -> Edit:
    """x - amount · (x · r̂) r̂: remove what x has along a direction, of each head by itself where the site has heads.

    Later layers write it again: to remove it from the whole model, ablate every write (`ablate_writes`).

    Args:
        direction: a `Direction` (one with a `basis` of several: all of it), or `(site, vector)`. Several, as a list or
            with `axes="direction d_model"`, are removed together: x - amount · RᵀR x, R an orthonormal basis.
        amount: 1 removes it, 0 changes nothing; one for all rows, or one for each.
        axes: of a vector that differs by row, position or head, as in `patch`.

    Raises:
        BadInput: a site whose last axis is no vector's, a vector of zeros, directions that depend on each other.
    """
    return _along("ablate", direction, amount, axes, several=True)


def scale_along(direction: Directions, factor: Amount, *, axes: str | None = None) -> Edit:
    """x + (factor - 1) (x · r̂) r̂: multiply what x has along a direction, or in the span of several. 1 changes nothing,
    0 is `ablate`, -1 `reflect`. Arguments as in `ablate`."""
    return _along("scale along", direction, factor, axes, several=True)


def reflect(direction: Directions, *, axes: str | None = None) -> Edit:
    """x - 2 (x · r̂) r̂ (Householder): turn round what x has along a direction; norms stay. Arguments as in `ablate`."""
    return _along("reflect", direction, 1.0, axes, several=True)


def set_to(direction: OneDirection, value: Amount, *, axes: str | None = None) -> Edit:
    """x + (value - x · r̂) r̂: x · r̂ becomes `value`, whatever it was (in units of activation)."""
    return _along("set to", direction, value, axes)


def floor(direction: OneDirection, value: Amount, *, axes: str | None = None) -> Edit:
    """x · r̂ becomes `value` where it is below."""
    return _along("floor", direction, value, axes)


def ceiling(direction: OneDirection, value: Amount, *, axes: str | None = None) -> Edit:
    """x · r̂ becomes `value` where it is above (activation capping)."""
    return _along("ceiling", direction, value, axes)


def push(direction: OneDirection, amount: Amount, *, axes: str | None = None) -> Edit:
    """x + amount · sign(x · r̂) r̂: further along the direction on whichever side x is (RepE's piecewise operator)."""
    return _along("push", direction, amount, axes)


def add_by_cosine(direction: OneDirection, amount: Amount, *, axes: str | None = None) -> Edit:
    """x + amount · max(0, cos(x, r̂)) r̂: much where x points there already, nothing where it points away."""
    return _along("add by cosine", direction, amount, axes)


def affine(direction: OneDirection, origin: Tensor, amount: Amount = 0.0, *, axes: str | None = None) -> Edit:
    """x - (x · r̂) r̂ + (origin · r̂) r̂ + amount · v: affine concept editing (Marshall et al. 2024, arXiv:2411.09003).

    With v the difference of two classes' means and `origin` the mean of the class without the concept, amount 0 makes x
    look like that class along v, and 1 like the other.

    Args:
        origin: a vector of the site's last axis.
    """
    axis, amount = Axis.of(direction, axes, "affine"), amounts(amount)
    start = Value.of(axis.site, origin, None, "the origin of affine")

    def fn(x: Tensor, moment: Moment) -> Tensor:
        target = axis.coordinates(start.fit(x, moment).expand_as(x), moment)
        target = target + per_row(amount, x, moment) * axis.length(x, moment)
        return x.float() + axis.vectors(target - axis.coordinates(x, moment), x, moment)

    return Edit(
        axis.site, fn, f"affine {shown(amount)}", by_row=True, dictionary=rule_of(direction), made_of=checked(direction)
    )


def _along(name: str, direction: Any, amount: Amount, axes: str | None, several: bool = False) -> Edit:
    change, amount = CHANGES[name], amounts(amount)
    axis = Axis.of(direction, axes, name, several)

    def fn(x: Tensor, moment: Moment) -> Tensor:
        wide = x.float()
        p = axis.coordinates(wide, moment)
        size = wide.norm(dim=-1, keepdim=True)
        return wide + axis.vectors(change(p, size, per_row(amount, x, moment)), x, moment)

    label = name if name == "reflect" else f"{name} {shown(amount)}"
    return Edit(axis.site, fn, label, by_row=True, dictionary=rule_of(direction), made_of=checked(direction))


def rule_of(direction: Any) -> Trained | None:
    """What says which tokens a direction (of several: the first that says it) was not fitted on."""
    given = direction if isinstance(direction, list) else [direction]
    return next((one for one in given if hasattr(one, "left_out") and hasattr(one, "prepare")), None)


def orthonormal(vectors: Float[Tensor, "direction d"], what: str) -> Float[Tensor, "direction d"]:
    """An orthonormal basis of the span of some vectors, in float32, computed in float64.

    Raises:
        BadInput: vectors that are not finite, or of which one is (nearly) a sum of the others.
    """
    if vectors.ndim != 2 or not bool(vectors.isfinite().all()):
        raise BadInput(f"{what}: directions are finite vectors of one length, not {list(vectors.shape)}")
    lengths = vectors.double().norm(dim=1, keepdim=True)
    if not bool(lengths.all()):
        raise BadInput(f"{what}: a vector of zeros has no direction")
    Q, R = torch.linalg.qr((vectors.double() / lengths).T)
    if len(vectors) > vectors.shape[1] or bool((R.diagonal().abs() < 1e-4).any()):
        raise BadInput(f"{what}: {len(vectors)} directions of which one is a sum of the others; leave it out")
    return Q.T.float()


def _several(direction: Any, what: str) -> Axis:
    if isinstance(direction, list):
        pairs = [site_and_vector(one) for one in direction]
        sites = {site for site, _ in pairs}
        if len(sites) != 1:
            shown_ = ", ".join(sorted(map(str, sites))) or "none"
            raise BadInput(f"{what}: several directions belong to one site; these belong to: {shown_}")
        site, vectors = pairs[0][0], torch.stack([torch.as_tensor(vector).float().flatten() for _, vector in pairs])
    else:
        site, vectors = site_and_vector(direction)
    return Axis(site, basis=orthonormal(torch.as_tensor(vectors), f"{what} at {site}"))
