"""Edits that replace, scale, add or do anything to an activation."""

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..models import Moment, Run, Site, SiteLike, TokenBatch
from .edit import Edit
from .values import Value, numbers

Amount = float | Float[Tensor, "batch"] | Sequence[float]


class DirectionLike(Protocol):
    """What edits need of a direction."""

    @property
    def site(self) -> Site: ...

    @property
    def vector(self) -> Float[Tensor, "d_model"]: ...


def function(site: SiteLike, fn: Callable[[Tensor], Tensor], label: str = "function", by_row: bool = False) -> Edit:
    """Any function of the activation, which it is given a copy of: the columns as they pass, with padding, and token
    after token in generation. Tokens are chosen with `.at`, not by their column.

    Args:
        fn: at `scores`, keys that a query may not see are NaN for it, at `pattern` 0 (`Edit`). `Edit(site, fn, label)`
            takes a function of activation and `Moment`, which knows positions, ids and which keys are visible.
        by_row: it treats every row alone, so that `run(..., memory=)` may split the batch.
    """
    if not callable(fn):
        raise BadInput(f"function takes a function of the activation, not {fn!r}")
    return Edit(Site.parse(site), lambda x, _: fn(x), label, by_row=by_row)


def patch(
    site: SiteLike, value: Tensor | float | Run, *, axes: str | None = None, tokens: TokenBatch | None = None
) -> Edit:
    """Replace the activation by `value`.

    Args:
        value: a number; a tensor; or a run, whose activation at the site is taken. A run's value follows its tokens: by
            row, and by index among the row's real tokens, wherever padding is; what the run kept (`positions=`,
            `heads=`) is what can be written.
        axes: which axes a tensor has, in its order, such as "batch d_model", "position d_model" or "batch head d_head";
            along the others it is the same for all. Not needed for all axes of the site, or the last ones without
            tokens (`d_model`; `head d_head`). Names are "batch" and what `Site.shape` says.
        tokens: the batch that a tensor with positions belongs to; needed where rows have unequal lengths.

    Raises:
        BadInput: axes that can be read in several ways; when run, other sizes than the activation's, or tokens that
            the value has nothing for.
    """
    parsed = Site.parse(site)
    given = Value.of(parsed, value, axes, "patch", tokens)
    edit = Edit(parsed, lambda x, moment: given.fit(x, moment).expand_as(x), "patch", by_row=True)
    return edit if given.heads is None else edit.at(heads=given.heads)


def scale(site: SiteLike, factor: Amount) -> Edit:
    """Multiply the activation; 0 is zero ablation (at scores: uniform attention to the keys that a query may see)."""
    return Edit(
        Site.parse(site), lambda x, m: x.float() * per_row(factor, x, m), f"scale by {shown(factor)}", by_row=True
    )


def add(direction: DirectionLike | tuple[SiteLike, Tensor], amount: Amount = 1.0, *, axes: str | None = None) -> Edit:
    """x + amount · v. A `Direction` knows its site; a bare vector comes as `(site, vector)`.

    Args:
        amount: one for all rows, or one for each.
        axes: of a vector that differs by row, position or head, as in `patch`.
    """
    site, vector = site_and_vector(direction)
    given = Value.of(site, vector, axes, "add")

    def fn(x: Tensor, moment: Moment) -> Tensor:
        return x.float() + per_row(amount, x, moment) * given.fit(x, moment).float()

    return Edit(site, fn, f"add {shown(amount)}", by_row=True, made_of=checked(direction))


def checked(direction: Any) -> Any:
    """The direction (of several: the first) that can say whether it belongs to a model; None where none can."""
    given = direction if isinstance(direction, list) else [direction]
    return next((one for one in given if hasattr(one, "check")), None)


def site_and_vector(direction: DirectionLike | tuple[SiteLike, Tensor]) -> tuple[Site, Tensor]:
    if isinstance(direction, tuple) and len(direction) == 2:
        return Site.parse(direction[0]), direction[1]
    if not (hasattr(direction, "site") and hasattr(direction, "vector")):
        raise BadInput(f"a direction is a Direction, or a site and its vector: (site, vector), not {direction!r:.60}")
    return direction.site, direction.vector  # type: ignore[union-attr]


def per_row(amount: Amount, x: Tensor, moment: Moment) -> Tensor:
    """A number, or one a row, as `batch|1 1 ...` against x. Raises `BadInput` for another number of them."""
    values = amounts(amount).to(x.device)
    values = moment.rows_of(values) if values.ndim == 1 else values
    return values.reshape(-1, *([1] * (x.ndim - 1)))


def amounts(amount: Any) -> Tensor:
    """A number, or one a row. Raises `BadInput` for what is neither a finite number nor a row of them."""
    values = numbers(amount, "an amount", torch.float64)
    if values.ndim > 1:
        raise BadInput(f"amounts are one number, or one a row, not {list(values.shape)}")
    if not bool((held := values.float()).isfinite().all()):
        raise BadInput(f"an amount must be finite in float32, not {values[~held.isfinite()][0].item():g}")
    return held


def shown(value: Any) -> str:
    value = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
    if isinstance(value, Real):
        return str(int(value)) if isinstance(value, Integral) else f"{float(value):g}"
    return f"{len(value)} values" if hasattr(value, "__len__") else str(value)
