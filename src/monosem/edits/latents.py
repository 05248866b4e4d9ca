"""Edits on latents of a dictionary, error term kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import BadInput, UnknownName
from ..models import Moment
from ..models.places.sites import Inner
from .changes import Amount, per_row, shown
from .edit import Edit, Gate
from .values import numbers

Latent = int | Int[Tensor, "batch"] | Sequence[int]


@dataclass(frozen=True, eq=False)
class LatentEdit(Edit):
    """An edit of a latent, at the site of its dictionary, of whose latents it computes one. Where a dictionary writes
    elsewhere than it reads, it acts inside alone.

    Attributes:
        place: the dictionary's latents.
        latents: which of them: one, or one a row.
        codes: what the edit makes of some of them, `batch pos n`, of the latents that the last argument lists (None:
            of all).
    """

    place: Inner | None = None
    latents: Int[Tensor, "*batch"] | None = None
    codes: Callable[[Tensor, Moment, Tensor | None], Tensor] | None = None

    def inside(self, columns: Int[Tensor, "n"] | None) -> Edit:
        """The same edit at the place of the latents, of which `columns` are there (None: all).

        Raises `BadInput` where it is narrowed to heads.
        """
        assert self.place is not None
        assert self.codes is not None
        if self.heads is not None:
            raise BadInput(
                f"{self}, narrowed to heads, does not go with places inside its dictionary: latents have none"
            )
        codes = self.codes
        return replace(
            self,
            site=self.place,
            fn=lambda x, moment: codes(x, moment, columns),
            dictionary=None,
            everywhere=self.trained is None,
            place=None,
            gate=self._gate_inside(),
        )

    def _gate_inside(self) -> Gate | None:
        """The gate, which decides from what the dictionary reads also there."""
        gate, place = self.gate, self.place
        assert place is not None
        if gate is None or hasattr(gate, "sites"):
            return gate
        return lambda _, moment: gate(moment.notes[place.owner.site][1], moment)


def clamp(dictionary: Any, latent: Latent, value: Amount, *, everywhere: bool = False) -> Edit:
    """Set a latent to a value, error term kept: x + (value - f_i) W_dec[i].

    Args:
        latent: one latent for all rows, or one for each row of the batch.
        value: in the latent's own units; one for all rows, or one for each.
        everywhere: also tokens that the dictionary was not trained on (its `skip` rule; by default the first of a text,
            special tokens and norm outliers), where codes mean nothing.
    """
    label = f"clamp {shown(latent)} to {shown(value)}"
    return _latent_edit(dictionary, latent, lambda f, v: v - f, value, label, everywhere)


def scale_latent(dictionary: Any, latent: Latent, factor: Amount, *, everywhere: bool = False) -> Edit:
    """Multiply a latent's activation, error term kept; does nothing where the latent is silent. `everywhere` as in
    `clamp`."""
    label = f"scale {shown(latent)} by {shown(factor)}"
    return _latent_edit(dictionary, latent, lambda f, v: (v - 1) * f, factor, label, everywhere)


def add_latent(dictionary: Any, latent: Latent, amount: Amount, *, everywhere: bool = False) -> Edit:
    """Add to a latent's activation, whatever it is. `everywhere` as in `clamp`."""
    label = f"add {shown(amount)} of {shown(latent)}"
    return _latent_edit(dictionary, latent, lambda f, v: v.expand_as(f), amount, label, everywhere)


def ablate_latent(dictionary: Any, latent: Latent, *, everywhere: bool = False) -> Edit:
    """Clamp to zero, error term kept: removes exactly what the latent contributes. `everywhere` as in `clamp`."""
    return replace(clamp(dictionary, latent, 0.0, everywhere=everywhere), label=f"ablate {shown(latent)}")


def _latent_edit(
    dictionary: Any,
    latent: Latent,
    change: Callable[[Tensor, Tensor], Tensor],
    amount: Amount,
    label: str,
    everywhere: bool,
) -> Edit:
    dictionary = getattr(dictionary, "dictionary", dictionary)  # of an SAE with SAELens's methods
    latents = numbers(latent, label)  # of a table's column they are NumPy's
    if latents.ndim > 1 or latents.is_floating_point() or latents.dtype == torch.bool:
        raise BadInput(f"{label}: a latent is a whole number; give one, or one a row, not {latent!r:.60}")
    if latents.numel() == 0 or int(latents.min()) < 0 or int(latents.max()) >= dictionary.width:
        raise UnknownName(f"{label}: the dictionary has latents 0 to {dictionary.width - 1}")

    def rows_of(x: Tensor, moment: Moment) -> Tensor:
        if latents.ndim and len(latents) != moment.size:
            raise BadInput(f"{label}: {len(latents)} latents for {moment.size} rows; give one, or one a row")
        return moment.rows_of(latents.to(x.device)) if latents.ndim else latents.to(x.device).expand(len(x))

    def inside(codes: Tensor, moment: Moment, columns: Tensor | None = None) -> Tensor:
        rows = rows_of(codes, moment)
        at = rows if columns is None else torch.searchsorted(columns.to(rows.device), rows.contiguous())
        at = at[:, None, None].expand(*codes.shape[:2], 1)
        active = codes.gather(-1, at)[..., 0]
        changed = change(active, per_row(amount, codes, moment).flatten(1))
        return codes.scatter_add(-1, at, changed[..., None].to(codes))

    def fn(x: Tensor, moment: Moment) -> Tensor:
        check_whole(dictionary, moment, label)
        flat = x.flatten(2)  # z is batch pos head d_head, read by dictionaries as batch pos d_in
        rows = rows_of(x, moment)
        if not latents.ndim:
            active = dictionary.latent_activations(flat, rows[:1])[..., 0].float()
        else:
            active = dictionary.latent_activations_rowwise(flat, rows).float()
        changed = change(active, per_row(amount, x, moment).flatten(1))
        delta = changed[..., None] * dictionary.decoder_rows(rows).float()[:, None]
        if (factor := dictionary.token_scale(flat)) is not None:
            delta = delta * factor
        return x.float() + delta.reshape(x.shape)

    place = dictionary.latents
    about: dict[str, Any] = {"by_row": True, "place": place, "latents": latents, "codes": inside}
    if dictionary.site != dictionary.site_out:  # a transcoder's are changed where it writes
        return LatentEdit(place, inside, label, everywhere=everywhere, **about)
    return LatentEdit(dictionary.site, fn, label, dictionary=None if everywhere else dictionary, **about)


def check_whole(dictionary: Any, moment: Moment, label: str) -> None:
    """Raises `BadInput` where codes depend on the tokens before, and not all are here, or padding is among them."""
    if dictionary.whole_texts and (moment.column or moment.columns is not None or not bool(moment.mask.all())):
        raise BadInput(
            f"{label}: a {dictionary.kind} dictionary's codes depend on all tokens before, which a step of generation "
            "with a cache lacks, and which padding would change; use run, on texts of one length"
        )
