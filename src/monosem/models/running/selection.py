"""Token positions and heads that are meant: by a capture, whose part is cut out inside the hook, or by an edit.

A kept part is always a copy of its own, so that the whole activation is freed as soon as the model is done with it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...errors import BadInput
from ..native import Native
from ..numbers import whole_numbers, whole_slice
from ..places.blocks import Place
from ..places.sites import HEADS, Site, host_of
from ..tokens import TokenBatch

# token indices in a row: 0 is its first real token, negative ones count from the end of the prompt; "last" is -1
Positions = int | Sequence[int] | slice | Literal["last"]


@dataclass(frozen=True)
class Kept:
    """The part of every captured site that a run keeps.

    Attributes:
        columns: for each row, the columns of the kept tokens, `batch kept`; None for all.
        heads: heads by the numbers of each site: query heads, and kv heads at k, v and rot_k. None for all.
        source: what is kept at sites whose positions are the source's, of an encoder–decoder.
        width: columns of the token batch; activations of another length (logits of the last token alone) stay whole.
    """

    columns: Int[Tensor, "batch kept"] | None = None
    heads: tuple[int, ...] | None = None
    width: int = 0
    source: "Kept | None" = None

    @staticmethod
    def of(
        model: Native,
        tokens: TokenBatch,
        positions: Positions | None = None,
        heads: int | Sequence[int] | None = None,
        sites: Iterable[Site] = (),
    ) -> "Kept":
        """Raises `BadInput` for a position or head that is not there, and for rows that would keep unequal numbers."""
        chosen = None if heads is None else tuple(whole_numbers(heads, "heads"))
        if chosen == ():
            raise BadInput("heads=[] keeps no head; name one at least, or leave heads= out")
        for site in sites:
            if chosen is not None and site.head_axis is not None:
                check_heads(site, chosen, heads_at(model, site), _sizes(model, site)[1])
        source, sites = None, [host_of(site) for site in sites]
        if tokens.source is not None and any(site.in_source for site in sites):
            source = Kept.of(model, tokens.source, positions, heads)
            if all(site.in_source for site in sites):
                return Kept(None, chosen, tokens.ids.shape[1], source)
        columns = None if positions is None else columns_of(tokens, positions)
        return Kept(columns, chosen, tokens.ids.shape[1], source)

    def __bool__(self) -> bool:
        return self.columns is not None or self.heads is not None or self.source is not None

    def __call__(self, site: Site, value: Tensor, rows: slice | Tensor | None = None) -> Tensor:
        """The kept part of a site's activation, with memory of its own wherever it is a part.

        Args:
            rows: which rows of the batch the value has, where a pass runs some of them.
        """
        if self.source is not None and host_of(site).in_source:
            return self.source(site, value, rows)
        part = value
        if self.heads is not None and (axis := site.head_axis) is not None:
            part = part.index_select(axis, torch.tensor(self.heads, device=part.device))
        if self.columns is not None and part.shape[site.query_axis] == self.width:
            axis = site.query_axis
            columns = self.columns if rows is None else self.columns[rows]
            shape = (len(part), *[1] * (axis - 1), columns.shape[1], *[1] * (part.ndim - axis - 1))
            index = columns.to(part.device).reshape(shape)
            part = part.gather(axis, index.expand(*part.shape[:axis], -1, *part.shape[axis + 1 :]))
        return part


def heads_at(model: Native, site: Site) -> int:
    """How many heads a site has: kv heads at k, v, rot_k and values."""
    place = _place(model, site)
    slot = None if place is None else place.slot
    axis = next((axis for axis in site.shape if axis in HEADS), "head")
    if slot is not None and axis in slot.sizes:
        return slot.sizes[axis]
    kv_heads, heads = _sizes(model, site)
    return kv_heads if axis == "kv_head" else heads


def _place(model: Native, site: Site) -> Place | None:
    side = model.encoder if site.side and model.encoder is not None else model
    return None if site.layer is None else side.anatomy[site.layer].places.get(site.name)


def _sizes(model: Native, site: Site) -> tuple[int, int]:
    """The numbers of kv heads and query heads in a site's layer."""
    place = _place(model, site)
    heads = None if place is None or place.slot is None else place.slot.heads
    return (model.cfg.n_kv_heads, model.cfg.n_heads) if heads is None else (heads.n_kv, heads.n)


def check_heads(site: Site, heads: Iterable[int], count: int, n_heads: int) -> None:
    """Raises `BadInput` for a head that a site with `count` heads does not have; a model has `n_heads` query heads."""
    if bad := [head for head in heads if not 0 <= head < count]:
        grouped = f" (kv heads: query head h reads kv head h // {n_heads // count})" if 0 < count < n_heads else ""
        raise BadInput(f"{site} has heads 0 to {count - 1}{grouped}, not {bad[0]}")


def columns_of(tokens: TokenBatch, positions: Positions) -> Int[Tensor, "batch kept"]:
    """Columns of token positions. Raises `BadInput` for a position that is not there, or unequal numbers of them."""
    lengths = tokens.lengths.tolist()
    if isinstance(positions, slice):
        wanted = [list(range(*whole_slice(positions, "positions").indices(length))) for length in lengths]
    else:
        for number, length in enumerate(lengths):
            if bad := [p for p in listed(positions) if not -length <= p < length]:
                raise BadInput(f"positions: prompt {number} has {length} tokens, position {bad[0]} is not one of them")
        wanted = [[p + length if p < 0 else p for p in listed(positions)] for length in lengths]
    if len({len(row) for row in wanted}) > 1 or not wanted[0]:
        counts = sorted({len(row) for row in wanted})
        raise BadInput(f"positions={positions} keeps {counts} tokens of the rows; it must be one number, above 0")
    real = [mask.nonzero()[:, 0] for mask in tokens.mask.cpu()]  # not side by side where padding is between them
    return torch.stack([columns[torch.tensor(row)] for columns, row in zip(real, wanted)])


def at_positions(
    positions: Positions, index: Int[Tensor, "batch pos"], lengths: Int[Tensor, "batch 1"]
) -> Bool[Tensor, "batch pos"]:
    """Which tokens are meant, numbered by `index` in rows with prompts of `lengths`; generated tokens have an index
    from the length on, which an open slice includes."""
    if isinstance(positions, slice):
        return _in_slice(whole_slice(positions, "positions"), index, lengths)
    chosen = torch.zeros_like(index, dtype=torch.bool)
    for position in listed(positions):
        chosen |= index == (position if position >= 0 else lengths + position)
    return chosen


def from_the_end(positions: Positions | None) -> bool:
    """Whether some of the positions are counted from the end of the prompt."""
    if isinstance(positions, slice):
        backwards = positions.step is not None and positions.step < 0
        return backwards or any(bound is not None and bound < 0 for bound in (positions.start, positions.stop))
    return positions is not None and any(position < 0 for position in listed(positions))


def listed(positions: int | Sequence[int] | Literal["last"]) -> list[int]:
    """Positions one by one; errors as `whole_number`."""
    if isinstance(positions, str) and positions == "last":
        return [-1]
    return whole_numbers(positions, "positions")


def _in_slice(positions: slice, index: Int[Tensor, "batch pos"], lengths: Int[Tensor, "batch 1"]) -> Tensor:
    """As Python slices a list of `lengths` items; an end that is not given lies after all tokens."""
    step = 1 if positions.step is None else positions.step

    def place(at: int | None, default: Tensor) -> Tensor:
        if at is None:
            return default
        return torch.full_like(lengths, at) if at >= 0 else (lengths + at).clamp(min=0 if step > 0 else -1)

    if step > 0:
        start, stop = place(positions.start, torch.zeros_like(lengths)), place(positions.stop, index.amax() + 1)
        return (index >= start) & (index < stop) & ((index - start) % step == 0)
    start = place(positions.start, lengths - 1).minimum(lengths - 1)
    stop = place(positions.stop, torch.full_like(lengths, -1))
    return (index <= start) & (index > stop) & ((start - index) % -step == 0)
