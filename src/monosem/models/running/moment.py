"""What an edit is told about an activation, and what a session needs of an edit."""

from dataclasses import dataclass, replace
from typing import Protocol

from jaxtyping import Bool, Int
from torch import Tensor

from ..places.sites import Site
from ..tokens import last_column


@dataclass
class Moment:
    """What an edit is told about the activation that it changes.

    Attributes:
        mask: which tokens of this chunk are real, `batch pos`.
        positions: index of each token among the real tokens of its row, counted from the start of the prompt.
        prompt_lengths: number of prompt tokens of each row, `batch`.
        column: column of the first token of this chunk in the (padded) whole sequence; > 0 with a KV cache.
        ids: token ids of this chunk.
        rows: which rows of the whole batch these are, when it runs in parts; None for all of them.
        batch: number of rows of the whole batch.
        columns: for a chunk of each row's last token alone, which columns these are in the whole sequence.
    """

    mask: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]
    prompt_lengths: Int[Tensor, "batch"]
    column: int
    ids: Int[Tensor, "batch pos"]
    rows: slice | Int[Tensor, "part"] | None = None
    batch: int = 0
    columns: Int[Tensor, "batch 1"] | None = None

    def rows_of(self, per_row: Tensor) -> Tensor:
        """These rows of a tensor with one item for each row of the whole batch; other tensors stay as they are."""
        return per_row[self.rows] if self.rows is not None and len(per_row) == self.batch else per_row

    def of_rows(self, part: slice, rows: Int[Tensor, "part"] | None, batch: int) -> "Moment":
        """The same for some rows alone, `rows` of a whole batch of `batch` of their own; None: they are the whole."""
        cut = {name: getattr(self, name)[part] for name in ("mask", "positions", "prompt_lengths", "ids")}
        columns = None if self.columns is None else self.columns[part]
        return replace(self, **cut, rows=rows, batch=batch if rows is not None else 0, columns=columns)

    @property
    def last(self) -> "Moment":
        """The same for the last real token of each row alone (`batch 1`)."""
        at = last_column(self.mask)[:, None]
        mask, positions, ids = (part.gather(1, at) for part in (self.mask, self.positions, self.ids))
        column = self.column + self.mask.shape[1] - 1
        return replace(self, mask=mask, positions=positions, column=column, ids=ids, columns=self.column + at)


class EditLike(Protocol):
    """What a session needs of an edit (`monosem.edits.Edit`)."""

    @property
    def site(self) -> Site: ...

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        """The new activation, and whether the edit reached at least one token."""
        ...
