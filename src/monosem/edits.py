"""Edits: pure functions from an activation to an activation, attached to a site.

Every constructor returns an `Edit`; narrow it with `.at(positions=, rows=, heads=)` and `.when(gate)`. Edits compose in
the order in which they are given, compute in float32 and are cast back, work the same in `run` and in `generate` (with
the KV cache), and never touch padding. One that reaches no token raises `EditDidNotFire`.

Editing one latent keeps the dictionary's error term: x' = x + (c - f_i) W_dec[i], so setting a latent to the value that
it has changes nothing. `splice` is the other thing, the reconstruct-only arm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import BadInput, Mismatch, UnknownName
from .models import Moment, Positions, Site, SiteLike
from .models.numbers import whole_numbers
from .models.running.selection import at_positions

Scope = Literal["all", "prompt", "generated"]
Gate = Callable[[Tensor, Moment], Bool[Tensor, "batch pos"]]
Latent = int | Int[Tensor, "batch"] | Sequence[int]
Amount = float | Float[Tensor, "batch"] | Sequence[float]


class DirectionLike(Protocol):
    """What `add` and `ablate` need of a direction."""

    site: Site
    vector: Float[Tensor, "d_model"]


@dataclass(frozen=True, eq=False)
class Edit:
    """`fn(x, moment)` at a site; x has its shape (`monosem.models.places.sites`), or one chunk of it with a KV cache.

    Attributes:
        positions: token indices in a row (0 = its first real token, negative counts from the end of the prompt),
            a slice of the same, "last" for the last prompt token, None for all.
        rows: batch rows to edit; None for all.
        heads: heads to edit, of the site's own (kv heads at k, v and rot_k); None for all.
        scope: "prompt" tokens, "generated" tokens, or "all".
        gate: which tokens to edit, decided from the activation itself; a closed gate is not a missed edit.
        by_row: every row is edited alone (with `moment.rows_of` of data by row), so that a run may split the batch.
    """

    site: Site
    fn: Callable[[Tensor, Moment], Tensor]
    label: str
    positions: Positions | None = None
    rows: Sequence[int] | None = None
    scope: Scope = "all"
    gate: Gate | None = None
    by_row: bool = False
    heads: int | Sequence[int] | None = None

    def __str__(self) -> str:
        return f"edit {self.label} at {self.site}"

    def at(
        self,
        positions: Positions | None = None,
        rows: Sequence[int] | None = None,
        scope: Scope | None = None,
        heads: int | Sequence[int] | None = None,
    ) -> "Edit":
        """The same edit at some token positions, batch rows or heads, or only on the prompt or the generated tokens.

        What is not given stays as it is: `.at(rows=[1]).at(positions=-1)` is both.
        """
        if scope not in (None, "all", "prompt", "generated"):
            raise BadInput(f"scope is 'all', 'prompt' or 'generated', not {scope!r}")
        if heads is not None and self.site.head_axis is None:
            raise BadInput(f"{self.site} has no heads; attention has heads at z, result, q, k, v, pattern")
        narrower: dict[str, Any] = {"positions": positions, "rows": rows, "scope": scope, "heads": heads}
        return replace(self, **{name: value for name, value in narrower.items() if value is not None})

    def when(self, gate: Gate) -> "Edit":
        """The same edit where `gate(x, moment)`, a boolean `batch pos`, is true."""
        return replace(self, gate=gate)

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        """The edited activation, and whether any token was reached."""
        chosen = self._chosen(moment)
        if not bool(chosen.any()):
            return x, False
        new = self.fn(x, moment)
        if new.shape != x.shape:
            raise BadInput(f"{self} returned shape {tuple(new.shape)} for an activation of shape {tuple(x.shape)}")
        new = new.to(x.dtype)
        if self.gate is not None:
            chosen = chosen & self.gate(x, moment)
        if bool(chosen.all()) and self.heads is None:
            return new, True
        where = _spread(chosen, x, self.site.query_axis)
        return torch.where(where if self.heads is None else where & self._of_heads(x), new, x), True

    def _of_heads(self, x: Tensor) -> Bool[Tensor, "..."]:
        """Which entries of x belong to the heads, in a shape that broadcasts."""
        axis, listed = self.site.head_axis, whole_numbers(self.heads, "heads")
        assert axis is not None
        if bad := [head for head in listed if not 0 <= head < x.shape[axis]]:
            raise BadInput(f"{self}: heads are 0 to {x.shape[axis] - 1}, not {bad[0]}")
        chosen = torch.isin(torch.arange(x.shape[axis]), torch.tensor(listed, dtype=torch.long)).to(x.device)
        return chosen.reshape(*[1] * axis, -1, *[1] * (x.ndim - axis - 1))

    def _chosen(self, moment: Moment) -> Bool[Tensor, "batch pos"]:
        chosen = moment.mask
        lengths = moment.prompt_lengths[:, None]
        if self.scope != "all":
            in_prompt = moment.positions < lengths
            chosen = chosen & (in_prompt if self.scope == "prompt" else ~in_prompt)
        if self.positions is not None:
            chosen = chosen & at_positions(self.positions, moment.positions, lengths)
        if self.rows is not None:
            n = moment.batch or len(chosen)
            if bad := [row for row in self.rows if not -n <= row < n]:
                raise BadInput(f"{self}: the batch has rows 0 to {n - 1}, not {bad[0]}")
            in_rows = torch.zeros(n, dtype=torch.bool, device=chosen.device)
            in_rows[torch.as_tensor(self.rows, device=chosen.device)] = True
            chosen = chosen & moment.rows_of(in_rows)[:, None]
        return chosen


def _spread(chosen: Tensor, x: Tensor, axis: int) -> Tensor:
    """`batch pos` to a shape that broadcasts over x, whose positions are on `axis`."""
    return chosen.reshape(chosen.shape[0], *([1] * (axis - 1)), chosen.shape[1], *([1] * (x.ndim - axis - 1)))


# ---------------------------------------------------------------------- activations


def function(site: SiteLike, fn: Callable[[Tensor], Tensor], label: str = "function", by_row: bool = False) -> Edit:
    """Any function of the activation. `by_row=True` says that it treats every row alone (`run(..., memory=)` asks)."""
    return Edit(Site.parse(site), lambda x, _: fn(x), label, by_row=by_row)


def patch(site: SiteLike, value: Tensor | float) -> Edit:
    """Replace the activation by `value`: of the site's shape in this batch's layout, or one that broadcasts."""
    parsed = Site.parse(site)

    def fn(x: Tensor, moment: Moment) -> Tensor:
        new = torch.as_tensor(value, device=x.device)
        new = moment.rows_of(new) if new.ndim == x.ndim else new
        axis = parsed.query_axis - x.ndim  # from the right, so that a missing batch axis does not matter
        try:
            if new.ndim >= -axis and new.shape[axis] > 1:
                new = _chunk(new, axis, x, moment)
            return new.expand_as(x)
        except RuntimeError:
            raise BadInput(f"patch at {parsed}: value {tuple(new.shape)} does not fit {tuple(x.shape)}") from None

    return Edit(parsed, fn, "patch", by_row=True)


def _chunk(whole: Tensor, axis: int, x: Tensor, moment: Moment) -> Tensor:
    """The columns of a whole value that this chunk has."""
    if moment.columns is None:
        return whole.narrow(axis, moment.column, min(x.shape[axis], whole.shape[axis] - moment.column))
    columns = moment.columns.to(x.device).reshape(-1, *[1] * (-1 - axis), 1)  # logits alone come so
    return whole.expand(len(x), *whole.shape[axis:]).gather(1, columns.expand(-1, -1, *x.shape[2:]))


def scale(site: SiteLike, factor: float) -> Edit:
    """Multiply the activation; 0 is zero ablation."""
    return Edit(Site.parse(site), lambda x, _: x.float() * factor, f"scale by {factor:g}", by_row=True)


def add(direction: DirectionLike | tuple[SiteLike, Tensor], amount: Amount = 1.0) -> Edit:
    """x + amount · v. A `Direction` knows its site; a bare vector comes as `(site, vector)`."""
    site, vector = _site_and_vector(direction)

    def fn(x: Tensor, moment: Moment) -> Tensor:
        return x.float() + _per_row(amount, x, moment) * vector.to(x.device, torch.float32)

    return Edit(site, fn, f"add {_shown(amount)}", by_row=True)


def ablate(direction: DirectionLike | tuple[SiteLike, Tensor], amount: float = 1.0) -> Edit:
    """x - amount · (x · v̂) v̂: remove what x has along the (normalised) direction."""
    site, vector = _site_and_vector(direction)

    def fn(x: Tensor, moment: Moment) -> Tensor:
        unit = torch.nn.functional.normalize(vector.to(x.device, torch.float32), dim=0)
        return x.float() - amount * (x.float() @ unit)[..., None] * unit

    return Edit(site, fn, f"ablate {amount:g}", by_row=True)


# ---------------------------------------------------------------------- latents


def clamp(dictionary: Any, latent: Latent, value: Amount) -> Edit:
    """Set a latent to a value, error term kept: x + (value - f_i) W_dec[i].

    Args:
        latent: one latent for all rows, or one for each row of the batch.
        value: in the latent's own units; one for all rows, or one for each.
    """
    return _latent_edit(dictionary, latent, lambda f, v: v - f, value, f"clamp {_shown(latent)} to {_shown(value)}")


def scale_latent(dictionary: Any, latent: Latent, factor: Amount) -> Edit:
    """Multiply a latent's activation, error term kept; does nothing where the latent is silent."""
    return _latent_edit(
        dictionary, latent, lambda f, v: (v - 1) * f, factor, f"scale {_shown(latent)} by {_shown(factor)}"
    )


def add_latent(dictionary: Any, latent: Latent, amount: Amount) -> Edit:
    """Add to a latent's activation, whatever it is."""
    return _latent_edit(
        dictionary, latent, lambda f, v: v.expand_as(f), amount, f"add {_shown(amount)} of {_shown(latent)}"
    )


def ablate_latent(dictionary: Any, latent: Latent) -> Edit:
    """Clamp to zero, error term kept: removes exactly what the latent contributes."""
    return replace(clamp(dictionary, latent, 0.0), label=f"ablate {_shown(latent)}")


def splice(dictionary: Any) -> Edit:
    """Replace the activation by the dictionary's reconstruction: the reconstruct-only arm, error term lost."""
    _one_site(dictionary)
    return Edit(dictionary.site, lambda x, _: dictionary(x), "splice", by_row=True)


def _latent_edit(
    dictionary: Any, latent: Latent, change: Callable[[Tensor, Tensor], Tensor], amount: Amount, label: str
) -> Edit:
    _one_site(dictionary)
    latents = torch.atleast_1d(torch.as_tensor(latent))  # numbers of a table's column are NumPy's
    if latents.numel() == 0 or int(latents.min()) < 0 or int(latents.max()) >= dictionary.width:
        raise UnknownName(f"{label}: the dictionary has latents 0 to {dictionary.width - 1}")

    def fn(x: Tensor, moment: Moment) -> Tensor:
        flat = x.flatten(2)  # z is batch pos head d_head, read by dictionaries as batch pos d_in
        rows = latents.to(x.device).expand(len(x)) if len(latents) == 1 else moment.rows_of(latents.to(x.device))
        if len(rows) != len(x):
            raise BadInput(f"{label}: {len(rows)} latents for {len(x)} rows; give one, or one a row")
        if len(latents) == 1:
            active = dictionary.latent_activations(flat, latents.to(x.device))[..., 0].float()
        else:
            active = dictionary.latent_activations_rowwise(flat, rows).float()
        changed = change(active, _per_row(amount, x, moment).flatten(1))
        delta = changed[..., None] * dictionary.decoder_rows(rows).float()[:, None]
        if (factor := dictionary.token_scale(flat)) is not None:
            delta = delta * factor
        return x.float() + delta.reshape(x.shape)

    return Edit(dictionary.site, fn, label, by_row=True)


def _one_site(dictionary: Any) -> None:
    if dictionary.site != dictionary.site_out:
        raise Mismatch(
            f"this dictionary reads {dictionary.site} and writes {dictionary.site_out}; "
            "latent edits and splicing need a dictionary that reads and writes one site"
        )


def _site_and_vector(direction: DirectionLike | tuple[SiteLike, Tensor]) -> tuple[Site, Tensor]:
    if isinstance(direction, tuple):
        return Site.parse(direction[0]), direction[1]
    return direction.site, direction.vector


def _per_row(amount: Amount, x: Tensor, moment: Moment) -> Tensor:
    """A number, or one a row, as `batch|1 1 ...` against x."""
    values = torch.as_tensor(amount, dtype=torch.float32, device=x.device)
    values = moment.rows_of(values) if values.ndim == 1 else values
    if values.ndim == 1 and len(values) not in (1, len(x)):
        raise BadInput(f"{len(values)} values for {len(x)} rows; give one, or one a row")
    return values.reshape(-1, *([1] * (x.ndim - 1)))


def _shown(value: Any) -> str:
    if isinstance(value, Real):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"{len(value)} values"
