"""Which part of a captured activation is kept: token positions and heads, cut out inside the hook.

The part is always a copy of its own, so that the whole activation is freed as soon as the model is done with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ...errors import BadInput
from ..places.sites import Site
from ..tokens import TokenBatch

if TYPE_CHECKING:
    from ..model import Model

Positions = int | Sequence[int] | slice | Literal["last"]

_BY_HEAD = {"q": 2, "z": 2, "rot_q": 2, "result": 2, "scores": 1, "pattern": 1}  # axis of the query heads
_BY_KV_HEAD = {"k": 2, "v": 2, "rot_k": 2}


@dataclass(frozen=True)
class Kept:
    """The part of every captured site that a run keeps.

    Attributes:
        columns: for each row, the columns of the kept tokens, `batch kept`; None for all.
        heads: query heads; at k, v and rot_k the kv head that each of them reads. None for all.
        groups: query heads for each kv head.
        width: columns of the token batch; activations of another length (logits of the last token alone) stay whole.
    """

    columns: Int[Tensor, "batch kept"] | None = None
    heads: tuple[int, ...] | None = None
    groups: int = 1
    width: int = 0

    @staticmethod
    def of(
        model: "Model", tokens: TokenBatch, positions: Positions | None = None, heads: int | Sequence[int] | None = None
    ) -> "Kept":
        """Raises `BadInput` for a position or head that is not there, and for rows that would keep unequal numbers."""
        listed = None if heads is None else (heads,) if isinstance(heads, int) else tuple(map(int, heads))
        for head in listed or ():
            if not 0 <= head < model.cfg.n_heads:
                raise BadInput(f"heads: {model.name} has heads 0 to {model.cfg.n_heads - 1}, not {head}")
        columns = None if positions is None else columns_of(tokens, positions)
        return Kept(columns, listed, model.cfg.n_heads // model.cfg.n_kv_heads, tokens.ids.shape[1])

    def __bool__(self) -> bool:
        return self.columns is not None or self.heads is not None

    def rows(self, rows: slice) -> "Kept":
        return Kept(None if self.columns is None else self.columns[rows], self.heads, self.groups, self.width)

    def __call__(self, site: Site, value: Tensor) -> Tensor:
        """The kept part of a site's activation, with memory of its own wherever it is a part."""
        part = value
        if self.heads is not None and site.name in _BY_HEAD:
            part = part.index_select(_BY_HEAD[site.name], torch.tensor(self.heads, device=part.device))
        elif self.heads is not None and site.name in _BY_KV_HEAD:
            own = [head // self.groups for head in self.heads]
            part = part.index_select(_BY_KV_HEAD[site.name], torch.tensor(own, device=part.device))
        if self.columns is not None and part.shape[site.query_axis] == self.width:
            axis = site.query_axis
            shape = (len(part), *[1] * (axis - 1), self.columns.shape[1], *[1] * (part.ndim - axis - 1))
            index = self.columns.to(part.device).reshape(shape)
            part = part.gather(axis, index.expand(*part.shape[:axis], -1, *part.shape[axis + 1 :]))
        return part


def columns_of(tokens: TokenBatch, positions: Positions) -> Int[Tensor, "batch kept"]:
    """Columns of token positions: 0 is a row's first real token, negative numbers count from its end."""
    lengths = tokens.lengths.tolist()
    if isinstance(positions, slice):
        wanted = [list(range(*positions.indices(length))) for length in lengths]
    else:
        given = [-1] if positions == "last" else [positions] if isinstance(positions, int) else list(positions)
        wanted = [[int(p) + length if int(p) < 0 else int(p) for p in given] for length in lengths]  # type: ignore[arg-type]
    if len({len(row) for row in wanted}) > 1 or not wanted[0]:
        counts = sorted({len(row) for row in wanted})
        raise BadInput(f"positions={positions} keeps {counts} tokens of the rows; it must be one number, above 0")
    for number, (row, length) in enumerate(zip(wanted, lengths)):
        if bad := [p for p in row if not 0 <= p < length]:
            raise BadInput(f"positions: prompt {number} has {length} tokens, position {bad[0]} is not one of them")
    first = tokens.mask.long().argmax(-1, keepdim=True).cpu()
    return torch.tensor(wanted) + first
