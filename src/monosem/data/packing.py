"""Documents packed into windows of token ids, streamed or kept in a file that can be read at any index."""

import bisect
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import BadFile, BadInput
from ..files import replacing_folder, write_json
from ..models.pieces import check_pieces, pieces_of
from ..progress import Meter
from ..reading import read_object
from .text import Document, without_surrogates

BATCH_DOCUMENTS = 256  # documents a call of the tokenizer: it spreads them over the cores
BATCH_CHARACTERS = 2_000_000  # and no more than these, so that books do not pile up in memory
SEPARATOR = "<|endoftext|>"  # what pre-training puts between documents wherever a vocabulary has it
# what it puts there otherwise: Llama 3 and SmolLM3, Command-R, DeepSeek, Gemma, Llama 2 and Mistral
SEPARATORS = ("<|end_of_text|>", "<EOS_TOKEN>", "<｜end▁of▁sentence｜>", "<eos>", "</s>")

Windows = Int[np.ndarray, "n context"]
Counter = Callable[[Windows], Int[np.ndarray, "n"]]  # how many tokens of each window count


def document_separator(tokenizer: Any) -> int:
    """The token that stood between documents in pre-training: `<|endoftext|>` where the vocabulary has it, else eos.

    The eos of a chat model is often its end-of-turn token (SmolLM2, Qwen2: `<|im_end|>`, Llama 3: `<|eot_id|>`), which
    separates turns: an eos that is not among `SEPARATORS` is taken only where the vocabulary has none of them.

    Raises:
        BadInput: the tokenizer has neither.
    """
    vocabulary = tokenizer.get_vocab()
    if SEPARATOR in vocabulary:
        return int(vocabulary[SEPARATOR])
    if tokenizer.eos_token_id is None:
        raise BadInput("this tokenizer declares no eos token to put between documents; pass separator=<token id>")
    known = () if tokenizer.eos_token in SEPARATORS else SEPARATORS
    return int(next((vocabulary[token] for token in known if token in vocabulary), tokenizer.eos_token_id))


@dataclass
class Packing:
    """How documents become windows, and the count of what happened to them.

    Every window starts with `prefix`; the rest is the documents' tokens, a separator after each, cut without a gap.
    With `apart`, a window has one document: separators fill it up, and the next begins another window.
    """

    context: int
    separator: int
    prefix: list[int]
    documents: list[str] = field(default_factory=list)  # ids, in order
    starts: list[int] = field(default_factory=list)  # index of each document's first token in the joined text
    dropped: int = 0  # tokens at the end that did not fill a window
    apart: bool = False

    @property
    def content(self) -> int:
        """Tokens of text in a window."""
        return self.context - len(self.prefix)

    @classmethod
    def of(cls, model: Any, context: int, separator: int | None = None, apart: bool = False) -> Self:
        """Raises `BadInput` when the context is too small or longer than the model's."""
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise BadInput(f"{model.name} has no tokenizer: give windows of token ids instead of documents")
        prefix = model.prefix
        limit = model.cfg.n_ctx
        if not len(prefix) + 2 <= context <= limit:
            raise BadInput(f"context {context} is not within {len(prefix) + 2} and {limit}, the model's own context")
        separator = document_separator(tokenizer) if separator is None else separator
        return cls(context, separator, prefix, apart=apart)

    def windows(self, tokenizer: Any, documents: Iterable[Document | str]) -> Iterator[Windows]:
        """Windows as documents come in, some at a time."""
        joined = 0
        pending: list[np.ndarray] = []
        length = 0
        for batch in _batches(documents):
            for document, ids in zip(batch, _tokenized(tokenizer, batch), strict=True):
                if not ids:
                    continue
                self.documents.append(document.id)
                self.starts.append(joined)
                fill = -(len(ids) + 1) % self.content if self.apart else 0
                pending.append(np.array([*ids, *[self.separator] * (1 + fill)], dtype=np.uint32))
                joined += len(pending[-1])
                length += len(pending[-1])
            full = length // self.content
            if full:
                text = np.concatenate(pending)
                yield self._framed(text[: full * self.content])
                pending = [text[full * self.content :]]
                length -= full * self.content
        self.dropped = length

    def ending(self, windows: int) -> Self:
        """This packing cut off after so many windows: documents that begin behind them are forgotten."""
        known = bisect.bisect_left(self.starts, windows * self.content)
        return replace(self, documents=self.documents[:known], starts=self.starts[:known])

    def _framed(self, text: np.ndarray) -> Windows:
        rows = text.reshape(-1, self.content)
        head = np.broadcast_to(np.array(self.prefix, dtype=rows.dtype), (len(rows), len(self.prefix)))
        return np.concatenate([head, rows], axis=1)


def packed(
    model: Any, documents: Iterable[Document | str], context: int = 256, *, separator: int | None = None
) -> Iterator[Int[Tensor, "n context"]]:
    """Windows of token ids, in the documents' order; the last tokens that do not fill a window are left out.

    Raises:
        BadInput: a context that does not fit the model, no separator, or too little text for a single window.
    """
    packing = Packing.of(model, context, separator)
    some = False
    for windows in packing.windows(model.tokenizer, documents):
        some = True
        yield torch.from_numpy(windows.astype(np.int64))
    if not some:
        raise _too_short(packing)


class TokenStore:
    """Windows of token ids that can be read at any index: in memory, or memory-mapped from a folder.

    `store[indices]` gives Int[Tensor, "n context"]. A corpus is tokenised once; shuffling, epochs and resuming are then
    only a matter of indices.

    Attributes:
        pieces: what ids of the first window are for the tokenizer that made them; empty where it is not known.
    """

    def __init__(
        self, windows: Windows, packing: Packing, fingerprint: str, pieces: Mapping[int, str | None] | None = None
    ):
        self.windows, self.packing, self.fingerprint, self.pieces = windows, packing, fingerprint, pieces or {}

    @classmethod
    def build(
        cls,
        model: Any,
        documents: Iterable[Document | str],
        context: int = 256,
        *,
        path: str | os.PathLike[str] | None = None,
        tokens: int | None = None,
        counted: Counter | None = None,
        separator: int | None = None,
        apart: bool = False,
        quiet: bool = True,
    ) -> Self:
        """Tokenise and pack `documents`.

        Args:
            path: a folder to keep the windows in (atomic; an older one is replaced); None keeps them in memory.
            tokens: at most so many, in whole windows; None reads all documents.
            counted: how many tokens of each window count towards `tokens`; None: all.
            separator: token id between documents; None is `document_separator`.
            apart: no window has tokens of two documents, so none attends to another's text. What is left of a window
                is filled with separators, which statistics and training leave out as special tokens; short documents
                cost as much as windows.

        Raises:
            BadInput: as `packed`; BadFile when the folder cannot be written.
        """
        packing = Packing.of(model, context, separator, apart)
        chunks = limited(packing.windows(model.tokenizer, documents), tokens, counted)
        dtype = np.dtype("<u2" if len(model.tokenizer) <= 1 << 16 else "<u4")
        with Meter("tokenise", total=tokens, unit="tok", quiet=quiet) as meter:
            chunks = _counted(chunks, meter)
            if path is None:
                parts = [chunk.astype(dtype) for chunk in chunks]
                if not parts:
                    raise _too_short(packing)
                windows = np.concatenate(parts)
                pieces = pieces_of(model.tokenizer, np.unique(windows[0]).tolist())
                return cls(windows, packing.ending(len(windows)), _fingerprint(windows, context), pieces)
            return cls._build_on_disk(Path(path), chunks, packing, dtype, model.tokenizer)

    @classmethod
    def _build_on_disk(
        cls, path: Path, chunks: Iterator[Windows], packing: Packing, dtype: np.dtype[Any], tokenizer: Any
    ) -> Self:
        with replacing_folder(path) as folder:
            count = 0
            with open(folder / "windows.bin", "wb") as file:
                for chunk in chunks:
                    file.write(chunk.astype(dtype).tobytes())
                    count += len(chunk)
            if not count:
                raise _too_short(packing)
            windows = np.memmap(folder / "windows.bin", dtype, "r", shape=(count, packing.context))
            manifest = {
                "format": "monosem tokens 1",
                "dtype": dtype.str,
                "windows": count,
                "fingerprint": _fingerprint(windows, packing.context),
                **asdict(packing.ending(count)),
                "pieces": [[*piece] for piece in pieces_of(tokenizer, np.unique(windows[0]).tolist()).items()],
            }
            write_json(folder / "manifest.json", manifest)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Raises `BadFile` when the folder is not a token store, or its file is truncated."""
        folder = Path(path)
        manifest = read_object(folder / "manifest.json")
        try:
            dtype = np.dtype(str(manifest["dtype"]))
            packing = Packing(*(manifest[name] for name in Packing.__dataclass_fields__))
            shape = (int(manifest["windows"]), packing.context)
            fingerprint = str(manifest["fingerprint"])
            pieces = {int(token): piece for token, piece in manifest.get("pieces", [])}
            if dtype.kind not in "iu" or min(shape) < 1:
                raise ValueError(f"{dtype} {list(shape)}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadFile(f"{folder}/manifest.json does not describe a token store: {error}") from error
        file = folder / "windows.bin"
        size = file.stat().st_size if file.exists() else 0
        if size != shape[0] * shape[1] * dtype.itemsize:
            raise BadFile(f"{file} is truncated ({size} bytes for {shape[0]} windows of {shape[1]}); build it again")
        return cls(np.memmap(file, dtype, "r", shape=shape), packing, fingerprint, pieces)

    @classmethod
    def of(cls, windows: Int[Tensor, "n context"] | Windows) -> Self:
        """A store around windows that are already token ids.

        Raises:
            BadInput: they are not a 2-D array of integers with at least one row.
        """
        array = windows.cpu().numpy() if isinstance(windows, Tensor) else np.asarray(windows)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
            raise BadInput(f"windows must be token ids [n, context]; got {array.dtype} {list(array.shape)}")
        context = array.shape[1]
        return cls(array, Packing(context, -1, []), _fingerprint(array, context))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, indices: Any) -> Int[Tensor, "n context"]:
        return torch.from_numpy(np.asarray(self.windows[indices]).astype(np.int64))

    def check(self, model: Any) -> None:
        """Raises `Mismatch` for windows of another model's tokenizer, whose ids mean other tokens here."""
        check_pieces(model, self.pieces, "these windows were")

    @property
    def context(self) -> int:
        return self.packing.context

    @property
    def tokens(self) -> int:
        """Tokens in all windows, prefixes and separators among them."""
        return len(self) * self.context

    def document(self, window: int, position: int) -> str:
        """The id of the document that the token at [window, position] belongs to (its separator counts as its own).

        Raises:
            BadInput: the store was made from bare windows.
        """
        if not self.packing.documents:
            raise BadInput("these windows were given as token ids, so their documents are not known")
        at = window * self.packing.content + max(0, position - len(self.packing.prefix))
        return self.packing.documents[int(np.searchsorted(self.packing.starts, at, side="right")) - 1]


def _batches(documents: Iterable[Document | str]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for number, item in enumerate(documents):
        document = Document(str(number), item) if isinstance(item, str) else item
        if not isinstance(document, Document):
            raise BadInput(
                f"document {number} is a {type(item).__name__}: a corpus is texts, or windows of ids as one tensor"
            )
        batch.append(document._replace(text=without_surrogates(document.text)))
        size += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tokenized(tokenizer: Any, batch: Sequence[Document]) -> list[list[int]]:
    """Token ids of each document. Special tokens are parsed in rendered documents; in others they are plain text."""
    ids: list[list[int]] = [[] for _ in batch]
    for rendered in (False, True):
        rows = [i for i, document in enumerate(batch) if document.rendered is rendered and document.text]
        if not rows:
            continue
        some = tokenizer(
            [batch[i].text for i in rows],
            add_special_tokens=False,
            split_special_tokens=not rendered,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        for i, tokens in zip(rows, some, strict=True):
            ids[i] = tokens
    return ids


def limited(chunks: Iterable[Windows], tokens: int | None, counted: Counter | None = None) -> Iterator[Windows]:
    """The first windows that have at most so many tokens that count, at least one window; None: all."""
    left, some = tokens, False
    for chunk in chunks:
        if left is None:
            yield chunk
            continue
        sums = np.cumsum(np.full(len(chunk), chunk.shape[1]) if counted is None else counted(chunk))
        fit = int(np.searchsorted(sums, left, side="right"))
        kept = max(fit, 0 if some else 1)
        if kept:
            yield chunk[:kept]
        if kept < len(chunk) or kept > fit:
            return
        left, some = left - int(sums[-1]), True


def _counted(chunks: Iterator[Windows], meter: Meter) -> Iterator[Windows]:
    for chunk in chunks:
        yield chunk
        meter.advance(chunk.size)


def _too_short(packing: Packing) -> BadInput:
    have, need = packing.dropped, packing.context
    return BadInput(
        f"the documents have {have} tokens, too few for one window of {need}; give more text, or a smaller context"
    )


def _fingerprint(windows: Windows, context: int) -> str:
    digest = hashlib.sha256(f"{context}".encode())
    for start in range(0, len(windows), 65536):
        digest.update(np.ascontiguousarray(windows[start : start + 65536], dtype="<u4").tobytes())
    return digest.hexdigest()
