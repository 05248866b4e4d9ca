"""Documents from files: .txt, .jsonl, .json, .parquet (each also as .gz, but for .parquet), and folders of them."""

import gzip
import json
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadFile, BadInput, cause, did_you_mean, require

PathLike = str | os.PathLike[str]
Row = str | Mapping[str, Any]

# rows without `messages` that are one turn of a conversation: (what the user says, what the assistant answers)
TURNS = (("question", "answer"), ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))


class Document(NamedTuple):
    """One text of a corpus.

    `rendered` says that the text came out of a chat template, so that `<|im_start|>` in it is the special token; in
    any other text it is twelve characters that somebody wrote, and is tokenised as such.
    """

    id: str
    text: str
    rendered: bool = False


def texts(paths: PathLike | Sequence[PathLike], *, field: str | None = None, chat: Any = None) -> Iterator[Document]:
    """Read documents, in the order of `paths`, folders recursively in sorted order.

    Args:
        paths: files or folders. A `.txt` is one document; `.jsonl`, `.json` (a list) and `.parquet` hold one a row,
            a row being a string or an object. In folders, files of other kinds are passed over.
        field: the field that holds the text. By default `text`; a row without it that is a conversation (`messages`,
            or one of `TURNS` such as question and answer) gives its turns, a blank line between them.
        chat: a model or tokenizer. Conversations are then rendered through its chat template.

    Blank documents are passed over; a path that gives no document at all is an error.

    Raises:
        BadFile: a path that is missing, of an unknown kind, broken, or empty (the first three at once where the path
            itself shows it, the others when the reading gets there).
        BadInput: rows without a text field (the message names the fields that there are), no chat template.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not several:
        raise BadInput("no path was given to read texts from")
    files = [(Path(path), _files(Path(path))) for path in several]
    return _read_all(files, field, _renderer(chat) if chat is not None else None)


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


def _text_rows(path: Path) -> Iterator[Row]:
    yield _decoded(path)


def _line_rows(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise BadFile(f"{path}, line {number}: not valid JSON ({error})") from error


def _list_rows(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(_decoded(path))
    except json.JSONDecodeError as error:
        raise BadFile(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, list):
        raise BadFile(f"{path} holds a JSON {type(value).__name__}; a list of strings or of objects is needed")
    yield from value


def _table_rows(path: Path) -> Iterator[Row]:
    parquet = require("pyarrow.parquet", "tables")
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise BadFile(f"{path} is not a readable Parquet file: {error}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _text_rows,
    ".jsonl": _line_rows,
    ".json": _list_rows,
    ".parquet": _table_rows,
}


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")


def _reader(path: Path) -> Callable[[Path], Iterator[Row]] | None:
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return READERS.get(kind.lower())


def _files(path: Path) -> list[Path]:
    kinds = ", ".join(READERS)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _reader(file))
        if not files:
            raise BadFile(f"the folder {path} holds no {kinds} file")
        return files
    if not path.exists():
        raise BadFile(f"{path} does not exist")
    if _reader(path) is None:
        raise BadFile(f"{path} is of a kind that cannot be read as text; known: {kinds}, .gz of these, folders")
    return [path]


def _read_all(
    sources: list[tuple[Path, list[Path]]], field: str | None, render: Callable[[Any], str] | None
) -> Iterator[Document]:
    for path, files in sources:
        count = 0
        for file in files:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            for document in _documents(file, name, field, render):
                count += 1
                yield document
        if not count:
            raise BadFile(f"{path} holds no text")


def _documents(file: Path, name: str, field: str | None, render: Callable[[Any], str] | None) -> Iterator[Document]:
    reader = _reader(file)
    assert reader is not None
    single = reader is _text_rows
    try:
        for number, row in enumerate(reader(file)):
            key = row["id"] if isinstance(row, Mapping) and row.get("id") is not None else number
            text, rendered = _text_of(row, f"{file}, row {number + 1}", field, render)
            if text.strip():
                yield Document(name if single else f"{name}#{key}", text, rendered)
    except UnicodeDecodeError as error:
        raise BadFile(f"{file} is not UTF-8 text: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadFile(f"{file} is a broken gzip file: {error}") from error
    except OSError as error:
        raise BadFile(f"cannot read {file}: {cause(error)}") from error


def _text_of(row: Row, where: str, field: str | None, render: Callable[[Any], str] | None) -> tuple[str, bool]:
    """The text of one row, and whether a chat template made it."""
    if isinstance(row, str):
        return row, False
    if not isinstance(row, Mapping):
        raise BadFile(f"{where} is a JSON {type(row).__name__}; a string or an object is needed")
    wanted = field or "text"
    if wanted in row:
        return _string(row[wanted], where, wanted), False
    messages = None if field else _messages(row, where)
    if messages is None:
        near = did_you_mean(wanted, row)
        raise BadInput(f"{where} has no field {wanted!r}; its fields are {', '.join(map(repr, row)) or 'none'}{near}")
    if render is None:
        return "\n\n".join(message["content"] for message in messages), False
    return render(messages), True


def _messages(row: Mapping[str, Any], where: str) -> list[dict[str, str]] | None:
    """The turns of a conversation, or None when the row is not a conversation."""
    if "messages" in row:
        turns = row["messages"]
        if not isinstance(turns, list) or not all(
            isinstance(t, Mapping) and {"role", "content"} <= t.keys() for t in turns
        ):
            raise BadInput(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
        return [{"role": str(turn["role"]), "content": _string(turn["content"], where, "content")} for turn in turns]
    for user, assistant in TURNS:
        if user in row and assistant in row:
            said, answered = (_string(row[name], where, name) for name in (user, assistant))
            return [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
    return None


def _string(value: Any, where: str, field: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{where}: the field {field!r} holds a {type(value).__name__}, not a string")
    return value


def _renderer(chat: Any) -> Callable[[Any], str]:
    tokenizer = getattr(chat, "tokenizer", chat)
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput("this tokenizer has no chat template, so conversations cannot be rendered; leave chat out")

    def render(messages: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))

    return render
