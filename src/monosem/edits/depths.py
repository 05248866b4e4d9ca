"""Edits at several places at once: one operation at each site, and an ablation of all that the stream is made of."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import BadInput
from ..models import Model, Site, SiteLike
from .along import ablate, orthonormal
from .changes import Amount, checked, site_and_vector
from .edit import Edit


def each(operation: Callable[..., Edit], parts: Mapping[SiteLike, tuple[Tensor, Amount]], **options: Any) -> list[Edit]:
    """The same operation at several sites, with a vector and an amount of each: a control vector of many layers is
    `each(edits.add, {"resid_post.10": (v10, 2.0), "resid_post.11": (v11, 1.5)})`.

    Args:
        operation: `add`, `ablate`, `set_to`, ...: a function of `(site, vector)` and an amount.
        options: of the operation, for all sites.
    """
    if not parts:
        raise BadInput("each needs sites, each with a vector and an amount: {'resid_post.10': (vector, 2.0)}")
    return [operation((Site.parse(site), vector), amount, **options) for site, (vector, amount) in parts.items()]


def kernel(
    layers: Iterable[int], centre: float, width: float, shape: Literal["triangular", "gaussian"] = "triangular"
) -> dict[int, float]:
    """Amounts by layer that fall off from 1 at a centre, which may lie between layers; layers of amount 0 are left out.

    Args:
        width: from the centre to where a triangle is 0; the standard deviation of a Gaussian.
    """
    if shape not in ("triangular", "gaussian") or not (width > 0 and math.isfinite(width)):
        raise BadInput(f"kernel: shape is 'triangular' or 'gaussian', of a width above 0; got {shape!r} and {width!r}")
    away = {int(layer): abs(layer - centre) / width for layer in layers}
    if shape == "gaussian":
        return {layer: math.exp(-(far**2) / 2) for layer, far in away.items()}
    return {layer: 1 - far for layer, far in away.items() if far < 1}


def writes(model: Model) -> list[Site]:
    """Every site whose values the stream is a sum of: the embeddings, and what each branch adds."""
    once = [Site("embed"), *([Site("pos_embed")] if model.has("pos_embed") else [])]
    return [*once, *(branch.out for branch in model.branches())]


def ablate_writes(model: Model, direction: Any, amount: Amount = 1.0) -> list[Edit]:
    """Remove a direction from every write into the stream, so that no state between blocks has it (Arditi et al. 2024,
    arXiv:2406.11717). In models without norms after the branches it is what orthogonalised weights do
    (`edits.weights.orthogonalise`).

    Args:
        direction: a `Direction` (whose site is no matter here), a vector `d_model`, or a list or matrix `k d_model` of
            several, which are removed together.
    """
    basis = stream_basis(model, direction, "ablate_writes")
    return [ablate((site, basis), amount, axes="direction d_model") for site in writes(model)]


def stream_basis(model: Model, direction: Any, what: str) -> Tensor:
    """`k d_model`, orthonormal: of a direction, vector, matrix or a list of these. Raises `BadInput`, and `Mismatch`
    for a direction of another model."""
    if (one := checked(direction)) is not None:
        one.check(model)
    if isinstance(direction, Tensor):
        vectors = torch.atleast_2d(direction)
    else:
        given = direction if isinstance(direction, list) else [direction]
        vectors = torch.stack([one if isinstance(one, Tensor) else site_and_vector(one)[1] for one in given])
    if vectors.ndim != 2 or vectors.shape[1] != model.cfg.d_model:
        raise BadInput(
            f"{what}: directions of the stream of {model.name} have {model.cfg.d_model} entries, not "
            f"{list(vectors.shape)}"
        )
    return orthonormal(vectors.float().cpu(), what)
