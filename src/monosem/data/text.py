"""Documents from files: .txt, .jsonl, .json, .parquet (each also as .gz, but for .parquet), and folders of them."""

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadInput
from .files import files_of, is_whole, rows_of
from .rows import BadRow, Render, text_of
from .tally import MOST_SKIPPED, Tally

PathLike = str | os.PathLike[str]


class Document(NamedTuple):
    """One text of a corpus.

    `rendered` says that the text came out of a chat template, so that `<|im_start|>` in it is the special token; in
    any other text it is twelve characters that somebody wrote, and is tokenised as such.
    """

    id: str
    text: str
    rendered: bool = False


def texts(
    paths: PathLike | Sequence[PathLike],
    *,
    field: str | None = None,
    chat: Any = None,
    most_skipped: float = MOST_SKIPPED,
    quiet: bool = False,
) -> Iterator[Document]:
    """Read documents, in the order of `paths`, folders recursively in sorted order.

    A row is a string or an object. An object's text is its `text`; without one, its conversation, under the names that
    data sets give it (docs/corpora.md lists them): a list of turns (`messages`, ShareGPT's `conversations`), or columns
    for what the user says (`instruction` and `input`, `question` and `context`, ...), the answer, and `system`.

    Which columns were used, and which were not, is said on stderr. Rows that give no text (null, a missing column,
    broken JSON, an image) are skipped, and counted by reason in a `SkippedRows` warning at the end of each path. Blank
    documents are passed over. A byte-order mark is no text; half a surrogate pair becomes U+FFFD.

    Args:
        paths: files or folders. A `.txt` is one document; `.jsonl`, `.json` (a list) and `.parquet` hold one a row. In
            folders, files of other kinds are passed over. `hf:owner/name:config@split` streams a data set of the hub.
        field: the column that holds the text, or the turns, instead.
        chat: a model or tokenizer. Conversations are then rendered through its chat template; without it, a document
            is its turns, a blank line between them.
        most_skipped: the share of a path's rows above which reading stops; up to ten rows are always skipped, unless
            the share is 0.
        quiet: do not say which columns were used.

    Raises:
        BadFile: a path that is missing, of an unknown kind, broken, or empty (the first three at once where the path
            itself shows it, the others when the reading gets there).
        BadInput: more rows were skipped than that, or all (the message names why and where), no chat template.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not several:
        raise BadInput("no path was given to read texts from")
    if not 0 <= most_skipped <= 1:
        raise BadInput(f"most_skipped is a share of the rows, from 0 to 1, not {most_skipped}")
    files = [(Path(path), files_of(Path(path))) for path in several]
    render = _renderer(chat) if chat is not None else None
    return _read_all(files, field, render, most_skipped, quiet)


def without_surrogates(text: str) -> str:
    """U+FFFD instead of halves of surrogate pairs, which JSON can spell and no tokenizer or file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def shuffled(documents: Iterable[Document], *, seed: int = 0, window: int = 4096) -> Iterator[Document]:
    """The documents in an order drawn from `seed`; `window` of them are held at a time, so any corpus fits."""
    rng = random.Random(seed)
    held: list[Document] = []
    for document in documents:
        held.append(document)
        if len(held) > window:
            at = rng.randrange(len(held))
            held[at], held[-1] = held[-1], held[at]
            yield held.pop()
    rng.shuffle(held)
    yield from held


def interleaved(
    sources: Sequence[Iterable[Document]], *, seed: int = 0, weights: Sequence[float] | None = None
) -> Iterator[Document]:
    """Mix several sources so that at any point each has given its share of the characters, until all are read.

    Each source is shuffled by `seed`; the next document comes from the source that is furthest behind its weight (equal
    by default). A source that ends leaves its share to the others, so cutting the result off early keeps the mixture.

    Raises:
        BadInput: no sources, or weights that are not one positive number a source.
    """
    shares = [1.0] * len(sources) if weights is None else [float(w) for w in weights]
    if not sources or len(shares) != len(sources) or not all(w > 0 for w in shares):
        raise BadInput(f"interleaved needs one positive weight a source; got {len(sources)} sources, weights {shares}")
    streams = {at: shuffled(source, seed=seed + at) for at, source in enumerate(sources)}
    read = dict.fromkeys(streams, 0.0)  # characters over share
    while streams:
        at = min(streams, key=lambda i: (read[i], i))
        document = next(streams[at], None)
        if document is None:
            del streams[at]
            continue
        read[at] += len(document.text) / shares[at]
        yield document


# ---------------------------------------------------------------------------------------------------------- reading


def _read_all(
    sources: list[tuple[Path, list[Path]]], field: str | None, render: Render | None, most_skipped: float, quiet: bool
) -> Iterator[Document]:
    for path, files in sources:
        tally = Tally(path, most_skipped, quiet)
        try:
            for file in files:
                name = str(file.relative_to(path)) if path.is_dir() else file.name
                yield from _documents(file, name, field, render, tally)
            tally.check(ended=True)
        finally:  # also where the reader has enough
            tally.warn()


def _documents(file: Path, name: str, field: str | None, render: Render | None, tally: Tally) -> Iterator[Document]:
    single = is_whole(file)
    for number, (place, row) in enumerate(rows_of(file)):
        where = f"{file}, {place}"
        try:
            if isinstance(row, BadRow):
                raise row
            read = text_of(row, field, render)
        except BadRow as bad:
            tally.skip(bad, where)
            continue
        tally.use(row, read.columns)
        text = without_surrogates(read.text.removeprefix("\ufeff"))
        if text.strip():
            key = row["id"] if read.columns and row.get("id") is not None else number
            tally.documents += 1
            yield Document(name if single else without_surrogates(f"{name}#{key}"), text, read.rendered)


def _renderer(chat: Any) -> Render:
    tokenizer = getattr(chat, "tokenizer", chat)
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput("this tokenizer has no chat template, so conversations cannot be rendered; leave chat out")

    def render(turns: list[dict[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))

    return render
