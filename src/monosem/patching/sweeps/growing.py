"""Fast sweeps: every cell is a row that is born in its layer and runs on from there, only from its first token on.

A set of cells is one row as well: it is born with its first cell and meets the others on its way.

Two facts save the work. A patch in layer l leaves the layers before l as they were, so one pass over the layers serves
all cells: at layer l the rows of the cells of l join the batch. A patch at position p leaves earlier positions as they
were (attention is causal), so its row holds the tokens from p on, and reads the keys and values of the earlier ones
from the unpatched run. Cells that change nothing cost nothing. The native layers do the work: their arguments (mask,
rotations, positions) are recorded once and cut to the tokens from p on; nothing here knows an architecture.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import BadInput, MonosemError
from ...models import Model, Moment, Site, TokenBatch
from ...models.places.attention import NAME, attending, can_attend
from ...models.places.points import unwrap
from ...models.running.budget import bytes_of, shown
from ...models.running.cache import cache_name
from ...models.running.moment import EditLike
from ...models.running.session import Session
from ..cells import Cell
from ..trials import Trial, Writes
from .whole_runs import CellSet, Patched

# layer argument -> its axis of token positions (of queries, in a mask)
_TOKEN_AXIS = {"attention_mask": -2, "position_ids": -1, "cache_position": -1, "position_embeddings": -2}
# a call of a layer costs about as much as this many tokens in it: measured on a CPU with 135M parameters; else a guess
CALL_TOKENS = {"cpu": 16}
CALL_TOKENS_ELSEWHERE = 512
_OWN_MASKS = ("sdpa", "eager", NAME)  # attention functions that take a mask of any shape


class NotApplicable(MonosemError):
    """The layers of this model, or edits around the sweep, do not allow the fast way; the message says why."""


class _Cache:
    """What a native layer is given as its cache: it joins the base run's earlier keys and values to the new ones."""

    is_compileable = False

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
            return keys, values
        rows = len(keys)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), keys], 2),
            torch.cat([self.values.expand(rows, -1, -1, -1), values], 2),
        )

    def get_seq_length(self, *_: Any) -> int:
        return 0 if self.keys is None else self.keys.shape[2]


@dataclass
class Tape:
    """The unpatched run, layer by layer.

    Attributes:
        arguments: what each layer was called with, by name, without the stream and the cache.
        stream: input of each layer and the output of the last, `pos d_model` each.
        caches: keys and values of each layer from `first` on, after rotation, as the layer gave them to its cache.
        cache_names: what each layer calls its cache. first: the first layer that is called.
    """

    model: Model
    tokens: TokenBatch
    arguments: list[dict[str, Any]]
    stream: list[Float[Tensor, "pos d_model"]]
    caches: list[_Cache]
    cache_names: list[str]
    first: int = 0

    @staticmethod
    def of(model: Model, tokens: TokenBatch, edits: Sequence[EditLike], first: int = 0) -> "Tape":
        """Record a run of one row, to call its layers from `first` on.

        Raises:
            NotApplicable: the layers take no cache, or called by hand they do not give what they gave in the run.
        """
        if model.ambient_edits or any(edit.site.name != "embed" for edit in edits):
            raise NotApplicable("edits inside the layers are on (model.editing)")
        if model.family.carries:
            raise NotApplicable(f"its layers hand on {model.family.carries} beside the stream")
        arguments: list[dict[str, Any]] = []
        stream: list[Tensor] = []

        def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, others = _by_name(block, args, kwargs)
            stream.append(hidden[0])
            arguments.append(others)

        handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in model.blocks]
        try:
            last = Site("resid_post", model.cfg.n_layers - 1)
            stream_end = model.run(tokens, capture=[last], edits=edits, logits=False)[last][0]
        finally:
            for handle in handles:
                handle.remove()
        names = [_cache_name(block) for block in model.blocks]
        tape = Tape(model, tokens, arguments, [*stream, stream_end], [_Cache() for _ in names], names, first)
        try:
            tape._fill()
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise NotApplicable(f"a layer cannot be called by itself ({type(error).__name__}: {error})") from error
        return tape

    def _fill(self) -> None:
        """Call each layer once more with a cache that keeps; then check that half a run gives the end of the whole."""
        layers = range(self.first, len(self.arguments))
        for layer in layers:
            out = self.call(layer, self.stream[layer][None], 0, self.caches[layer])
            if self.caches[layer].keys is None or not _near(out[0], self.stream[layer + 1]):
                raise NotApplicable(f"layer {layer}, called by itself, does not give what it gives in the model")
        half = len(self.stream[0]) // 2
        hidden = self.stream[self.first][None, half:].expand(2, -1, -1)
        for layer in layers:
            hidden = self.call(layer, hidden, half)
        if not _near(hidden, self.stream[-1][half:].expand_as(hidden)):
            raise NotApplicable("the layers do not run on from a part of the tokens")

    def call(
        self, layer: int, hidden: Float[Tensor, "rows suffix d_model"], start: int, cache: _Cache | None = None
    ) -> Float[Tensor, "rows suffix d_model"]:
        """The native layer on the tokens from `start` on; earlier keys and values come from the base run."""
        whole = self.caches[layer]
        if cache is None:
            assert whole.keys is not None
            assert whole.values is not None
            cache = _Cache(whole.keys[:, :, :start], whole.values[:, :, :start])
        cut = partial(_cut, start=start, rows=len(hidden))
        kwargs = {name: cut(name, value) for name, value in self.arguments[layer].items()}
        if kwargs.get("attention_mask") is None and "attention_mask" in kwargs:
            kwargs["attention_mask"] = _causal(len(self.stream[0]), hidden.device)[:, :, start:]
        return unwrap(self.model.blocks[layer](hidden, **kwargs, **{self.cache_names[layer]: cache}))


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
        groups[min(changes, default=-1)].append(i)
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
            hidden = _edited_call(tape, layer, hidden, start, [Writes(site, parts) for site, parts in inside.items()])
    return hidden


def _edited_call(tape: Tape, layer: int, hidden: Tensor, start: int, edits: Sequence[Writes]) -> Tensor:
    if not edits:
        return tape.call(layer, hidden, start)
    with Session(tape.model, [], edits) as session:
        rows = [0] * len(hidden)
        tokens = TokenBatch(tape.tokens.ids[rows], tape.tokens.mask[rows])
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
    block = 6 * c.d_model + 4 * c.d_mlp + 4 * c.n_heads * c.d_head
    attention = 2 * length * c.n_heads * c.d_head + suffix * length * c.n_heads
    need = item * (suffix * block + attention) + 12 * c.d_vocab
    if (rows := budget // need) < 1:
        raise BadInput(
            f"one patched row needs {shown(need)}, over memory={shown(budget)}; give more, or shorter prompts"
        )
    for first in range(0, len(members), rows):
        yield members[first : first + rows]


# ---------------------------------------------------------------------- a layer's arguments


def _by_name(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """A call's stream, and its other arguments by their names, without the cache (there is none in a run)."""
    bound, cache = inspect.signature(block.forward).bind(*args, **kwargs), cache_name(block)
    (_, hidden), *others = bound.arguments.items()
    named: dict[str, Any] = {}
    for name, value in others:
        several = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named |= value if several else {name: value}
    return hidden, {name: value for name, value in named.items() if name != cache}


def _cache_name(block: nn.Module) -> str:
    if name := cache_name(block):
        return name
    raise NotApplicable(f"{type(block).__name__} takes no cache of keys and values")


def _cut(name: str, value: Any, start: int, rows: int) -> Any:
    """An argument for `rows` rows that begin at token `start`."""
    if isinstance(value, tuple):
        return tuple(_cut(name, part, start, rows) for part in value)
    if not isinstance(value, Tensor):
        return value
    if (axis := _TOKEN_AXIS.get(name)) is not None and value.shape[axis] > 1:
        value = value.narrow(axis, start, value.shape[axis] - start)
    return value.expand(rows, *value.shape[1:]) if value.ndim > 1 and len(value) == 1 else value


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()


@contextmanager
def _masks(model: Model) -> Iterator[None]:
    """The model's turn; attention functions that build their own masks (flash, flex) give way to one that takes them
    as they are."""
    with model.turn():
        own = model.config._attn_implementation in _OWN_MASKS or not can_attend(model.hf)
        with nullcontext() if own else attending(model.hf):
            yield


def _near(values: Float[Tensor, "*rows d_model"], expected: Float[Tensor, "*rows d_model"]) -> bool:
    """Every token by itself: a few tokens have norms a hundred times as large as others, and would hide them."""
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 1e-1
    distance, size = (values - expected).float().norm(dim=-1), expected.float().norm(dim=-1)
    return bool((distance <= tolerance * size).all())
