"""Fast sweeps: every cell is a row that is born in its layer and runs on from there, only from its first token on.

A set of cells is one row as well: it is born with its first cell and meets the others on its way.

Two facts save the work. A patch in layer l leaves the layers before l as they were, so one pass over the layers serves
all cells: at layer l the rows of the cells of l join the batch. A patch at position p leaves earlier positions as they
were (attention is causal), so its row holds the tokens from p on, and reads the keys and values of the earlier ones
from the unpatched run, or begins with the memory of them. Cells that change nothing cost nothing. The native layers do
the work: their arguments (mask, rotations, positions) are recorded once and cut to the tokens from p on (`tape.py`);
nothing here knows an architecture. Where layers do not go on from a memory, rows hold all tokens.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput
from ...models import Model, Moment, Site
from ...models.places.attention import NAME, attending, can_attend
from ...models.running.budget import bytes_of, shown
from ...models.running.session import Session
from ..cells import Cell
from ..trials import Trial, Writes
from .tape import Tape
from .whole_runs import CellSet, Patched

# a call of a layer costs about as much as this many tokens in it: measured on a CPU with 135M parameters; else a guess
CALL_TOKENS = {"cpu": 16}
CALL_TOKENS_ELSEWHERE = 512
_OWN_MASKS = ("sdpa", "eager", NAME)  # attention functions that take a mask of any shape


@torch.no_grad()
def growing(trial: Trial, sets: Sequence[CellSet], memory: str | int) -> Patched:
    """Every set of cells as a row, grouped by the first position that they change.

    Raises:
        NotApplicable: this model's layers cannot be called so.
    """
    births = [min(_entry(cell)[0] for cell in cells) for cells in sets]
    with _masks(trial.model):
        tape = Tape.of(trial.model, trial.base.tokens, trial.edits, min(births))
    groups: dict[int, list[int]] = defaultdict(list)
    for i, cells in enumerate(sets):
        changes = [first for cell in cells if (first := trial.first_change(cell)) is not None]
        groups[min(changes, default=-1) if tape.continues or not changes else 0].append(i)
    if unchanged := groups.pop(-1, []):
        yield unchanged, trial.unpatched(len(unchanged))
    for start, members in _merged(groups, CALL_TOKENS.get(trial.model.device.type, CALL_TOKENS_ELSEWHERE)):
        members.sort(key=lambda i: births[i])
        for chunk in _chunks(tape, members, start, bytes_of(memory)):
            with _masks(trial.model):
                hidden = _grow(tape, trial, [sets[i] for i in chunk], start)
            yield chunk, trial.read(hidden)


def _merged(groups: dict[int, list[int]], call_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Groups with their first token; a late group joins the one before where that costs less than calls of its own.

    About half of a group's rows are alive in an average layer, and each would hold as many tokens more as the groups
    are apart.
    """
    merged: list[tuple[int, list[int]]] = []
    for start, members in sorted(groups.items()):
        if merged and len(members) / 2 * (start - merged[-1][0]) <= call_tokens:
            merged[-1][1].extend(members)
        else:
            merged.append((start, list(members)))
    yield from merged


def _grow(tape: Tape, trial: Trial, sets: Sequence[CellSet], start: int) -> Float[Tensor, "rows pos d_model"]:
    """One pass over the layers; the stream after the last layer from `start` on, a row a set (sorted by birth)."""
    patches: dict[int, list[tuple[int, Cell]]] = defaultdict(list)  # layer -> the rows that are patched there
    births = [min(_entry(cell)[0] for cell in cells) for cells in sets]
    for row, cells in enumerate(sets):
        for cell in cells:
            patches[_entry(cell)[0]].append((row, cell))
    hidden: Tensor = tape.stream[0].new_empty(0, len(tape.stream[0]) - start, tape.stream[0].shape[1])
    for layer in range(births[0], len(tape.stream)):
        if born := births.count(layer):
            hidden = torch.cat([hidden, tape.stream[layer][start:].expand(born, -1, -1)])
        inside: dict[Site, list[Any]] = defaultdict(list)
        for row, cell in patches[layer]:
            index, value = _shifted(trial, cell, start)
            if _entry(cell)[1]:
                inside[cell.place].append((row, index, value))
            else:
                hidden[row][index] = value.to(hidden.dtype)
        if layer < len(tape.arguments):
            tape.prepare(layer, start)  # before edits act
            hidden = _edited_call(tape, layer, hidden, start, [Writes(site, parts) for site, parts in inside.items()])
    return hidden


def _edited_call(tape: Tape, layer: int, hidden: Tensor, start: int, edits: Sequence[Writes]) -> Tensor:
    if not edits:
        return tape.call(layer, hidden, start)
    with Session(tape.model, [], edits) as session:
        rows = [0] * len(hidden)
        tokens = tape.tokens.of_rows(rows)
        moment = Moment(tokens, tokens.lengths, start)
        hidden = session.forward(moment, partial(tape.call, layer, hidden, start))
        session.check_fired()
    return hidden


def _entry(cell: Cell) -> tuple[int, bool]:
    """The layer of a patch (the first one of a row is where the row joins), and whether it is made inside the layer
    (else: on its input)."""
    if cell.site == "resid_post":
        return cell.layer + 1, False
    return cell.layer, cell.site != "resid_pre"


def _shifted(trial: Trial, cell: Cell, start: int) -> tuple[tuple[Any, ...], Tensor]:
    """Index and value of a patch in rows that begin at `start` (before it, the patch changes nothing)."""
    positions = cell.positions(trial.pairs, 0)
    value = trial.value(cell)
    kept = [n for n, position in enumerate(positions) if position >= start]
    value = value.index_select(cell.position_axis, torch.tensor(kept, device=value.device))
    whole = list(cell.index(trial.pairs, 0))
    whole[cell.place.query_axis - 1] = [positions[n] - start for n in kept]
    return tuple(whole), value


def _chunks(tape: Tape, members: list[int], start: int, budget: int) -> Iterator[list[int]]:
    """Cells in groups whose rows fit the memory budget. Raises `BadInput` when a single one does not."""
    c, item, length = tape.model.cfg, tape.stream[0].element_size(), len(tape.stream[0])
    suffix = length - start
    widest = max(slot.mixer.row.working(c) for anatomy in tape.model.anatomy for slot in anatomy.slots)
    block = 6 * c.d_model + max(4 * c.d_mlp + 4 * c.n_heads * c.d_head, widest)
    attention = 2 * length * c.n_heads * c.d_head + suffix * length * c.n_heads
    need = item * (suffix * block + attention) + 8 * tape.memory + 12 * c.d_vocab
    if (rows := budget // need) < 1:
        raise BadInput(
            f"one patched row needs {shown(need)}, over memory={shown(budget)}; give more, or shorter prompts"
        )
    for first in range(0, len(members), rows):
        yield members[first : first + rows]


@contextmanager
def _masks(model: Model) -> Iterator[None]:
    """The model's turn; attention functions that build their own masks (flash, flex) give way to one that takes them
    as they are."""
    with model.turn():
        own = model.config._attn_implementation in _OWN_MASKS or not can_attend(model.hf)
        with nullcontext() if own else attending(model.hf):
            yield
