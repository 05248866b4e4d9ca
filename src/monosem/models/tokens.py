"""A batch of token ids with its mask: what every run and generation starts from."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import BadInput


def last_column(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch"]:
    """Column of the last real token of each row; -1 in rows without one."""
    return torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).amax(-1)


def empty_prompt(number: int) -> BadInput:
    return BadInput(f"prompt {number} is empty; to start from nothing, generate with no prompt (BOS alone)")


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token ids and which of them are real; padding never changes a result, because mask and positions travel along.

    Shapes: `ids`, `mask`, `positions` are `batch pos`; `lengths`, `last` are `batch`.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]

    @staticmethod
    def of(rows: list[list[int]], pad: int, side: str = "right") -> "TokenBatch":
        """Pad rows of ids to one length on the `"right"` or `"left"`.

        Raises:
            BadInput: no rows, or an empty row (its number is named).
        """
        if not rows:
            raise BadInput("no prompts given; give at least one")
        for number, row in enumerate(rows):
            if not row:
                raise empty_prompt(number)
        ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True, pad, side)
        lengths, columns = torch.tensor([[len(row)] for row in rows]), torch.arange(ids.shape[1])
        return TokenBatch(ids, columns < lengths if side == "right" else columns >= ids.shape[1] - lengths)

    @staticmethod
    def whole(ids: Int[Tensor, "batch pos"]) -> "TokenBatch":
        """Rows without padding, such as windows of a corpus."""
        return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    def laid(self, side: str, pad: int) -> "TokenBatch":
        """The rows padded on this side, without gaps between tokens; the batch itself where it is so already."""
        step = self.mask[:, 1:].int() - self.mask[:, :-1].int()
        if not bool((step > 0 if side == "right" else step < 0).any()):
            return self
        return TokenBatch.of(self.rows(), pad, side).to(self.ids.device)

    def __len__(self) -> int:
        return self.ids.shape[0]

    @cached_property
    def padded(self) -> bool:
        return not bool(self.mask.all())

    @cached_property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Index of each token among the real tokens of its row; 0 on left padding."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    @cached_property
    def lengths(self) -> Int[Tensor, "batch"]:
        return self.mask.sum(-1)

    @cached_property
    def last(self) -> Int[Tensor, "batch"]:
        """Column of the last real token of each row."""
        return last_column(self.mask)

    @cached_property
    def gap(self) -> int | None:
        """The first row with padding between its real tokens, if there is one."""
        parted = (self.last - self.mask.long().argmax(-1) + 1 != self.lengths).nonzero()
        return int(parted[0]) if len(parted) else None

    def rows(self) -> list[list[int]]:
        """The real ids of each row, without padding."""
        return [ids[mask].tolist() for ids, mask in zip(self.ids, self.mask)]

    def to(self, device: torch.device | str) -> "TokenBatch":
        return TokenBatch(self.ids.to(device), self.mask.to(device))

    def __getitem__(self, rows: slice | list[int] | Tensor) -> "TokenBatch":
        """Some of the rows, trimmed of columns that are padding in all of them."""
        mask = self.mask[rows]
        keep = mask.any(0)
        return TokenBatch(self.ids[rows][:, keep], mask[:, keep])
