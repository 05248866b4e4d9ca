"""Edits that turn an activation, move it by an affine map, or keep its norm."""

import warnings
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import BadInput
from ..models import Moment, Site, SiteLike
from .along import Axis, OneDirection, orthonormal, rule_of
from .changes import Amount, amounts, checked, per_row, shown, site_and_vector
from .edit import Edit
from .values import TOKEN_AXES, Value, axes_of

NEAR = 1e-6  # a cosine this near to -1 leaves no plane to turn in


class Opposite(UserWarning):
    """An activation points exactly away from the direction that it should be turned to, so it stayed as it was."""


def rotate(
    direction: OneDirection,
    other: Tensor,
    degrees: Amount,
    *,
    mode: Literal["to", "by"] = "to",
    adaptive: bool = False,
) -> Edit:
    """Turn x within the plane of two vectors; what lies outside of the plane stays, and so does the norm (angular
    steering, Vu & Nguyen 2025).

    Args:
        direction: 0 degrees. other: a second vector, towards which degrees count: its part across the direction is 90.
        degrees: one for all rows, or one for each.
        mode: "to" this angle, whatever it was; or "by" this angle.
        adaptive: only where x · direction is above 0.

    Raises:
        BadInput: the vectors span no plane.
    """
    if mode not in ("to", "by"):
        raise BadInput(f"rotate: mode is 'to' an angle or 'by' an angle, not {mode!r}")
    site, vector = site_and_vector(direction)
    plane = orthonormal(torch.stack([torch.as_tensor(v).float().flatten() for v in (vector, other)]), "rotate")
    # an orthonormal basis may point the other way; the first is the direction, the second on the other's side
    signs = [float(torch.as_tensor(v).float().flatten() @ row) for v, row in zip((vector, other), plane)]
    plane = plane * torch.tensor(signs).sign()[:, None]
    axis, angle = Axis(site, basis=plane), amounts(degrees)

    def fn(x: Tensor, moment: Moment) -> Tensor:
        p = axis.coordinates(x, moment)
        wanted = torch.deg2rad(per_row(angle, x, moment))
        if mode == "by":
            wanted = wanted + torch.atan2(p[..., 1:], p[..., :1])
        new = p.norm(dim=-1, keepdim=True) * torch.cat(
            [wanted.cos().expand_as(p[..., :1]), wanted.sin().expand_as(p[..., :1])], -1
        )
        if adaptive:
            new = torch.where(p[..., :1] > 0, new, p)
        return x.float() + axis.vectors(new - p, x, moment)

    label = f"rotate {mode} {shown(degrees)} degrees"
    return Edit(site, fn, label, by_row=True, dictionary=rule_of(direction), made_of=checked(direction))


def slerp(direction: OneDirection, degrees: Amount, *, axes: str | None = None) -> Edit:
    """Turn x towards a direction on the sphere of its norm, by this angle and no further than the direction (negative:
    away from it). An x that points exactly away has no way to turn: it stays, with the warning `Opposite`."""
    axis, angle = Axis.of(direction, axes, "slerp"), amounts(degrees)

    def fn(x: Tensor, moment: Moment) -> Tensor:
        wide, unit = x.float(), axis.units(x, moment)
        size = wide.norm(dim=-1, keepdim=True)
        own = wide / size.clamp(min=1e-30)
        cosine = (own * unit).sum(-1, keepdim=True)
        lost = (cosine < NEAR - 1) & (size > 0)
        reached = moment.mask if moment.chosen is None else moment.chosen
        if bool((lost.flatten(2).any(-1) & reached).any()):
            warnings.warn(f"{site} has an activation exactly opposite to the direction of slerp; it stays", Opposite, 2)
        between = cosine.clamp(-1 + 1e-7, 1 - 1e-7).arccos()
        by = torch.minimum(torch.deg2rad(per_row(angle, x, moment)), between).maximum(between - torch.pi)
        across = torch.nn.functional.normalize(unit - cosine * own, dim=-1)
        new = size * (by.cos() * own + by.sin() * across)
        return torch.where(lost | (size == 0), wide, new)

    site = axis.site
    return Edit(
        site,
        fn,
        f"slerp by {shown(degrees)} degrees",
        by_row=True,
        dictionary=rule_of(direction),
        made_of=checked(direction),
    )


def erase(place: Any, read: Tensor | None = None, write: Tensor | None = None, mean: Tensor | None = None) -> Edit:
    """x - Σᵢ ((x - mean) · readᵢ) writeᵢ: a linear eraser, such as LEACE (Belrose et al. 2023, arXiv:2306.03819).

    For two classes with δ the difference of their means and Σ the covariance: write = δ, read = Σ⁻¹δ / (δᵀΣ⁻¹δ).

    Args:
        place: a `Direction` with `read` and `centre`, as LEACE finds it: nothing else is needed. Or a site.
        read, write: `d` each, or `k d` for k directions. mean: `d`, of all data; it stays where it is.

    Raises:
        BadInput: other shapes, or a map that erases nothing for good: readᵢ · writeⱼ must be 1 for i = j, else 0.
    """
    direction = place
    if read is write is mean is None and getattr(direction, "read", None) is not None:
        place, write, mean = direction.site, direction.vector, direction.centre
        read = direction.read / (direction.read.double() @ write.double()).float()
    if read is None or write is None or mean is None:
        raise BadInput("erase takes a Direction with read and centre (of LEACE), or a site with read, write and mean")
    site = Site.parse(place)
    R, W = (torch.atleast_2d(torch.as_tensor(one).float()) for one in (read, write))
    centre = torch.as_tensor(mean).float()
    if R.shape != W.shape or centre.shape != R.shape[1:]:
        shapes = ", ".join(str(list(one.shape)) for one in (R, W, centre))
        raise BadInput(f"erase: read and write are [k, d] and mean [d]; got {shapes}")
    products = R.double() @ W.double().T
    if not torch.allclose(products, torch.eye(len(R), dtype=torch.double), atol=1e-3):
        raise BadInput(
            "erase: read · write must be 1 (of several, the identity matrix), else what is erased comes back in part; "
            f"here it is {products.flatten().tolist()[0]:g}: divide read by it"
        )

    def fn(x: Tensor, moment: Moment) -> Tensor:
        if x.shape[-1] != R.shape[1]:
            raise BadInput(f"erase at {site}: vectors of {R.shape[1]} entries for activations of {x.shape[-1]}")
        return x.float() - ((x.float() - centre.to(x.device)) @ R.to(x.device).T) @ W.to(x.device)

    return Edit(site, fn, "erase", by_row=True, dictionary=rule_of(direction), made_of=checked(direction))


def transport(site: SiteLike, factor: Tensor, shift: Tensor, amount: Amount = 1.0) -> Edit:
    """(1 - amount) x + amount (factor ⊙ x + shift): a map of each coordinate alone (Linear-AcT, Rodriguez et al. 2024,
    arXiv:2410.23054).

    Args:
        factor, shift: of the site's last axis. amount: 0 changes nothing; one for all rows, or one for each.
    """
    place, amount = Site.parse(site), amounts(amount)
    times, plus = (
        Value.of(place, one, None, f"the {name} of transport") for one, name in ((factor, "factor"), (shift, "shift"))
    )

    def fn(x: Tensor, moment: Moment) -> Tensor:
        moved = times.fit(x, moment).float() * x.float() + plus.fit(x, moment).float()
        return x.float() + per_row(amount, x, moment) * (moved - x.float())

    return Edit(place, fn, f"transport {shown(amount)}", by_row=True)


def keep_norm(edit: Edit, when: Literal["always", "if_grew"] = "always") -> Edit:
    """The edit, after which each vector (of a token, or of a token's head) has the norm again that it had before it.

    Args:
        when: "always" (as repeng's `normalize`), or only where the norm "if_grew" (as CAST).

    Raises:
        BadInput: an edit of latents or a splice, which change an activation by what latents write.
    """
    if when not in ("always", "if_grew"):
        raise BadInput(f"keep_norm: when is 'always' or 'if_grew', not {when!r}")
    if type(edit) is not Edit or axes_of(edit.site)[-1] in (*TOKEN_AXES, "head", "1"):
        raise BadInput(f"keep_norm takes an edit of vectors, such as add or rotate, not {edit}")
    before = edit.fn

    def fn(x: Tensor, moment: Moment) -> Tensor:
        old = x.float().norm(dim=-1, keepdim=True)
        new = before(x, moment).float()
        size = new.norm(dim=-1, keepdim=True)
        wanted = old if when == "always" else torch.minimum(old, size)
        return new * (wanted / size.clamp(min=1e-30))

    return replace(
        edit, fn=fn, label=f"{edit.label}, norm kept" if when == "always" else f"{edit.label}, norm not grown"
    )
