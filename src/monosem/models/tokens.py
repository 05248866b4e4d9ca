"""Prompts as token ids with their mask. This is the only place that reads them; what may be given:

- a text, or several;
- token ids: `pos` or `batch pos`, as lists, NumPy arrays or tensors, or a list of rows of different length;
- what a Hugging Face tokenizer returns (a `BatchEncoding`, or a dict with `input_ids`): its attention mask counts;
- chat messages (dicts with `role` and `content`), or a list of such conversations: the chat template is applied;
- a `TokenBatch`, or a `Generation` to go on from.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import BadInput
from .pieces import check_pieces, pieces_of

MEANS = "prompts are texts, token ids, chat messages, what a tokenizer returned, or a TokenBatch"
# what tokenizers return besides, and none of these models reads
PASSED_OVER = {
    "token_type_ids",
    "special_tokens_mask",
    "offset_mapping",
    "length",
    "overflowing_tokens",
    "num_truncated_tokens",
    "overflow_to_sample_mapping",
    "assistant_masks",
    "labels",
}
Row = tuple[Tensor, Tensor | None]  # the ids of a prompt, and which of them are real (None: not said)


def last_column(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch"]:
    """Column of the last real token of each row; -1 in rows without one."""
    return torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).amax(-1)


def empty_prompt(number: int) -> BadInput:
    return BadInput(f"prompt {number} is empty; to start from nothing, generate with no prompt (BOS alone)")


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token ids and which of them are real; padding never changes a result, because mask and positions travel along.

    Shapes: `ids`, `mask`, `positions` are `batch pos`; `lengths`, `last` are `batch`. `tokenizer` is what made the ids
    from texts; None where they were given as ids. `source` is what the encoder beside a decoder reads, and the ids are
    then the decoder's; `features` are what an encoder of sound reads, whose ids are zeros, one for each position.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    tokenizer: Any = field(default=None, repr=False)
    source: "TokenBatch | None" = field(default=None, repr=False)
    features: Float[Tensor, "batch channel frame"] | None = field(default=None, repr=False)

    @staticmethod
    def of(rows: list[list[int]], pad: int, side: str = "right", tokenizer: Any = None) -> "TokenBatch":
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
        mask = columns < lengths if side == "right" else columns >= ids.shape[1] - lengths
        return TokenBatch(ids, mask, tokenizer)

    @staticmethod
    def whole(ids: Int[Tensor, "batch pos"]) -> "TokenBatch":
        """Rows without padding, such as windows of a corpus."""
        return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    def laid(self, side: str, pad: int) -> "TokenBatch":
        """The rows padded on this side, without gaps between tokens; the batch itself where it is so already."""
        step = self.mask[:, 1:].int() - self.mask[:, :-1].int()
        if not bool((step > 0 if side == "right" else step < 0).any()):
            return self
        laid = TokenBatch.of(self.rows(), pad, side, self.tokenizer).to(self.ids.device)
        return replace(laid, source=self.source, features=self.features)

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
    def before(self) -> Int[Tensor, "batch pos-1"]:
        """Column of the last real token before each token but the first; -1 where there is none."""
        columns = torch.arange(self.mask.shape[1] - 1, device=self.mask.device)
        return torch.where(self.mask[:, :-1], columns, -1).cummax(1).values

    @cached_property
    def gap(self) -> int | None:
        """The first row with padding between its real tokens, if there is one."""
        parted = (self.last - self.mask.long().argmax(-1) + 1 != self.lengths).nonzero()
        return int(parted[0]) if len(parted) else None

    def rows(self) -> list[list[int]]:
        """The real ids of each row, without padding."""
        return [ids[mask].tolist() for ids, mask in zip(self.ids, self.mask)]

    def to(self, device: torch.device | str) -> "TokenBatch":
        return self._each(lambda x: x.to(device))

    def of_rows(self, rows: slice | list[int] | Tensor) -> "TokenBatch":
        """Some of the rows, with all columns."""
        return self._each(lambda x: x[rows])

    def copies(self, rows: int) -> "TokenBatch":
        """One row so many times, without memory of its own for each."""
        return self._each(lambda x: x.expand(rows, *x.shape[1:]))

    def repeated(self, copies: int) -> "TokenBatch":
        """All rows so many times, one batch after the other."""
        return self._each(lambda x: x.repeat(copies, *[1] * (x.ndim - 1)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TokenBatch":
        source = None if self.source is None else self.source._each(change)
        features = None if self.features is None else change(self.features)
        return replace(self, ids=change(self.ids), mask=change(self.mask), source=source, features=features)

    def __getitem__(self, rows: slice | list[int] | Tensor) -> "TokenBatch":
        """Some of the rows, trimmed of columns that are padding in all of them."""
        some, source = self.of_rows(rows), None if self.source is None else self.source[rows]
        keep = some.mask.any(0)
        return replace(some, ids=some.ids[:, keep], mask=some.mask[:, keep], source=source)


# ---------------------------------------------------------------------- prompts
def read(model: Any, x: Any, mask: Any = None, side: str = "right") -> TokenBatch:
    """Anything that the module's docstring lists, as one batch. Rows of one length keep their columns.

    Args:
        mask: which of the given ids are real, of their shape.
        side: where shorter rows are filled up.

    Raises:
        BadInput: none of these kinds, nothing, an empty prompt, ids outside the vocabulary, no tokenizer.
        Mismatch: a batch of another model's tokenizer, whose ids mean other tokens here.
    """
    x = getattr(x, "ids", None) if isinstance(getattr(x, "ids", None), TokenBatch) else x  # of a Generation
    if mask is not None:
        if isinstance(x, TokenBatch) or _is_keyed(x) or texts_of(x) is not None:
            raise BadInput("mask= says which of some token ids are real; give the ids as a tensor or as lists")
        x = {"input_ids": x, "attention_mask": mask}
    if isinstance(x, TokenBatch):
        return _checked(model, x)
    items = _items(x)
    batch = _batch(model, list(_rows(model, items)), side)
    spelled = bool(items) and _kind(items[0]) in SPELLED
    return _checked(model, replace(batch, tokenizer=model.tokenizer if spelled else None))


def texts_of(x: Any) -> list[str] | None:
    """The texts, where the prompts are texts (in a list, a tuple or an array); else None."""
    if isinstance(x, str):
        return [x]
    listed = x.tolist() if isinstance(x, np.ndarray) else x
    if isinstance(listed, list | tuple) and listed and all(isinstance(item, str) for item in listed):
        return list(listed)
    return None


# ---------------------------------------------------------------------- rows
def _rows(model: Any, items: list[Any]) -> Iterator[Row]:
    """Each prompt."""
    kinds = {_kind(item): number for number, item in reversed(list(enumerate(items)))}
    if len(kinds) > 1:
        (second, other), (first, one) = sorted(((number, kind) for kind, number in kinds.items()), reverse=True)[-2:]
        raise BadInput(f"prompt {first} is {one} and prompt {second} is {other}; give prompts of one kind")
    for kind in kinds:
        if kind not in READERS:
            raise BadInput(f"{MEANS}; not {kind}")
        yield from READERS[kind](model, items)


def _items(x: Any) -> list[Any]:
    """What was given, one by one; a single thing as a list of one."""
    if isinstance(x, str) or _is_keyed(x):
        return [x]
    if isinstance(x, np.ndarray) and x.dtype.kind in "OUS":
        x = x.tolist()
    if isinstance(x, Tensor | np.ndarray):
        if x.ndim not in (1, 2):
            raise BadInput(f"token ids are [pos] or [batch, pos], not {_called(x)}")
        return [x] if x.ndim == 1 else list(x)
    if isinstance(x, set | frozenset):
        raise BadInput(f"{MEANS}; a set has no order: give a list")
    if not isinstance(x, Iterable) or isinstance(x, bytes | bytearray):
        raise BadInput(f"{MEANS}; not {_called(x)}")
    return list(x)


def _kind(item: Any) -> str:
    """What one of several things is, in words: a key of `READERS`, or what cannot be a prompt."""
    if isinstance(item, str):
        return "a text"
    if _is_keyed(item):
        return "a tokenizer's output" if "input_ids" in item else "a message" if "role" in item else _called(item)
    if isinstance(item, Tensor | np.ndarray):
        return "a token id" if item.ndim == 0 else "token ids"
    if isinstance(item, int | np.integer) and not isinstance(item, bool):
        return "a token id"
    if isinstance(item, Sequence) and not isinstance(item, bytes | bytearray):
        first = item[0] if len(item) else None
        if isinstance(first, str):
            return "a list of texts inside a list"
        return "a conversation" if _is_keyed(first) else "token ids"
    return _called(item)


def check_text(text: str, what: str) -> None:
    """Raises `BadInput` for a text that no tokenizer can read."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadInput(f"{what} has half a character (a surrogate), as badly decoded files do; repair it")


def _texts(model: Any, items: list[Any]) -> Iterator[Row]:
    for number, text in enumerate(items):
        check_text(text, f"prompt {number}")
        yield _whole(model.encoded(text))


def _conversations(model: Any, items: list[Any]) -> Iterator[Row]:
    """Token ids as `apply_chat_template` gives them: nothing is added to what the template writes."""
    for number, turns in enumerate(items):
        if not all(_is_keyed(turn) and "role" in turn for turn in turns):
            raise BadInput(f"conversation {number} must be a list of messages, dicts with role and content")
        yield _whole(model.bare(model.chat(list(turns))))


def _id_rows(model: Any, items: list[Any]) -> Iterator[Row]:
    for number, item in enumerate(items):
        yield _ids(item, f"prompt {number}" if len(items) > 1 else "the prompt"), None


def _encodings(model: Any, items: list[Any]) -> Iterator[Row]:
    for number, item in enumerate(items):
        where = "the tokenizer's output" if len(items) == 1 else f"prompt {number}"
        keys = set(item.keys())
        if unread := sorted(map(str, keys - {"input_ids", "attention_mask"} - PASSED_OVER)):
            raise BadInput(
                f"{where} also holds {', '.join(unread)}, which is not read; give input_ids and attention_mask"
            )
        ids = [_ids(row, where) for row in _table(item["input_ids"])]
        if "attention_mask" not in keys or item["attention_mask"] is None:
            yield from ((row, None) for row in ids)
            continue
        masks = [_mask(row, where) for row in _table(item["attention_mask"])]
        lengths = [[len(row) for row in rows] for rows in (ids, masks)]
        if lengths[0] != lengths[1]:
            raise BadInput(f"{where} has rows of {lengths[0]} token ids and of {lengths[1]} places in the mask")
        yield from ((row, mask.to(row.device)) for row, mask in zip(ids, masks))


READERS: dict[str, Callable[[Any, list[Any]], Iterator[Row]]] = {
    "a text": _texts,
    "a message": lambda model, items: _conversations(model, [items]),
    "a conversation": _conversations,
    "a token id": lambda model, items: _id_rows(model, [items]),
    "token ids": _id_rows,
    "a tokenizer's output": _encodings,
}

SPELLED = ("a text", "a message", "a conversation")  # what the model's own tokenizer makes ids of


# ---------------------------------------------------------------------- one row
def _whole(ids: list[int]) -> Row:
    return torch.tensor(ids, dtype=torch.long), torch.ones(len(ids), dtype=torch.bool)


def _ids(values: Any, where: str) -> Tensor:
    ids = _vector(values, where)
    if ids.is_meta:
        raise BadInput(f"{where}: these token ids are on the device 'meta', which holds no numbers")
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not whole or (isinstance(values, Sequence) and any(isinstance(value, bool | np.bool_) for value in values)):
        raise BadInput(f"{where}: token ids must be integers, not {_called(values)}")
    return ids.long()


def _mask(values: Any, where: str) -> Tensor:
    mask = _vector(values, f"{where}, the mask")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise BadInput(f"{where}: a mask is 1 at real tokens and 0 at padding, not {_called(values)}")
    return mask.bool()


def _vector(values: Any, where: str) -> Tensor:
    """A row of numbers; also one that stands alone in a table."""
    try:
        small = isinstance(values, np.ndarray) and values.dtype.kind == "u"  # torch knows few operations of these
        row = torch.as_tensor(values.astype(np.int64) if small else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{where}: not a row of token ids but {_called(values)}") from error
    row = row[0] if row.ndim == 2 and len(row) == 1 else row
    if row.ndim != 1:
        raise BadInput(f"{where}: not a row of token ids but {_called(values)}")
    return row if len(row) else row.long()


def _table(values: Any) -> list[Any]:
    """Rows of what is one row, or several."""
    items = _items(values)
    return [items] if items and _kind(items[0]) == "a token id" else items


# ---------------------------------------------------------------------- a batch
def _batch(model: Any, rows: list[Row], side: str) -> TokenBatch:
    lengths = {len(ids) for ids, _ in rows}
    if len(lengths) != 1 or lengths == {0}:
        real = [(ids if mask is None else ids[mask]).tolist() for ids, mask in rows]
        return TokenBatch.of(real, model.pad, side)
    ids = torch.stack([ids for ids, _ in rows])
    if all(mask is None for _, mask in rows):
        _warn_of_padding(model, ids)
    return TokenBatch(ids, torch.stack([torch.ones_like(one).bool() if mask is None else mask for one, mask in rows]))


def _warn_of_padding(model: Any, ids: Tensor) -> None:
    """A table of ids says nothing about padding, but unequal runs of the padding token at an edge look like it."""
    fills = (ids == model.pad).long()
    for edge, sided in (("end", fills.flip(1)), ("begin", fills)):
        runs = sided.cumprod(1).sum(1)
        if int(runs.min()) != int(runs.max()):
            few, many, token = int(runs.min()), int(runs.max()), f"{model.str_token(model.pad)!r} ({model.pad})"
            warnings.warn(
                f"rows of these token ids {edge} with {few} to {many} times the padding token {token}, read as "
                "text: say which ids are real, with model.tokens(ids, mask=...), or give what the tokenizer returned, "
                "with its attention mask",
                stacklevel=5,
            )


def _checked(model: Any, batch: TokenBatch) -> TokenBatch:
    """The batch, with valid ids at padding. Raises `BadInput` for an empty row, or real ids outside the vocabulary, and
    `Mismatch` for ids of another tokenizer."""
    _check_tokens(model, batch)
    if not len(batch):
        raise BadInput("no prompts given; give at least one")
    if not bool(batch.mask.any(1).all()):
        raise empty_prompt(int((~batch.mask.any(1)).nonzero()[0]))
    outside = (batch.ids < 0) | (batch.ids >= model.cfg.d_vocab)
    if not bool(outside.any()):
        return batch
    if bool((outside & batch.mask).any()):
        token = int(batch.ids[outside & batch.mask][0])
        raise BadInput(f"token id {token} is outside the vocabulary of {model.cfg.d_vocab}")
    return replace(batch, ids=batch.ids.masked_fill(outside, model.pad))


def _check_tokens(model: Any, batch: TokenBatch) -> None:
    """Raises `Mismatch` where an id is another token for this model's tokenizer than for the one that made it."""
    if batch.tokenizer is not None and batch.tokenizer is not model.tokenizer:
        check_pieces(model, pieces_of(batch.tokenizer, batch.ids[batch.mask].unique().tolist()), "these prompts were")


def _is_keyed(x: Any) -> bool:
    """A dict, a `BatchEncoding`, a table of columns: what gives its keys when it is gone through."""
    return hasattr(x, "keys") and not hasattr(x, "tolist")


def _called(x: Any) -> str:
    """What something is, for errors."""
    if isinstance(x, Tensor | np.ndarray):
        return f"{x.dtype} {list(x.shape)}"
    if _is_keyed(x):
        return f"a {type(x).__name__} with the keys {', '.join(map(str, list(x.keys())[:6]))}"
    return f"{str(x)[:40]!r} ({type(x).__name__})" if x is not None else "None"
