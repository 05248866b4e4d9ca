"""The rows of text files: one of a .txt, a line of a .jsonl, an element of a .json, a row of a table."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BadFile, cause, require
from ..reading import existing, parse_json, regular_file
from .hub import hub_rows, on_hub
from .rows import BadRow

Rows = Iterator[tuple[str, Any]]  # where it stands in the file, and the row, or the `BadRow` that it is
Reader = Callable[[Path], Rows]

MARKS = (  # the longer before its own beginning
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def files_of(path: Path) -> list[Path]:
    """The file, or all files of a folder that can be read. Raises `BadFile` when there is none."""
    kinds = ", ".join(READERS)
    if on_hub(path):
        return [path]
    if existing(path) is not None and path.is_dir():
        try:
            files = sorted(file for file in path.rglob("*") if file.is_file() and _reader(file))
        except OSError as error:  # such as a folder of somebody else
            raise BadFile(f"cannot look through the folder {path}: {cause(error)}; name its files") from error
        if not files:
            raise BadFile(f"the folder {path} holds no {kinds} file")
        return files
    regular_file(path)
    if _reader(path) is None:
        raise BadFile(
            f"{path} is of a kind that cannot be read as text; known: {kinds}, .gz of these, folders, hf:owner/name"
        )
    return [path]


def rows_of(file: Path) -> Rows:
    """The rows of a file. Raises `BadFile` when it cannot be read."""
    reader = _reader(file)
    assert reader is not None
    try:
        yield from reader(file)
    except UnicodeError as error:
        raise BadFile(f"{file} is not UTF-8 text: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadFile(f"{file} is a broken gzip file: {error}") from error
    except OSError as error:
        raise BadFile(f"cannot read {file}: {cause(error)}") from error


def is_whole(file: Path) -> bool:
    """Whether the file is one text."""
    return _reader(file) is _text_rows


def _text_rows(path: Path) -> Rows:
    yield "row 1", _decoded(path)


def _line_rows(path: Path) -> Rows:
    with _opened(path) as raw:
        encoding = _encoding(raw.read(4))
    with io.TextIOWrapper(_opened(path), encoding=encoding) as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip().removeprefix("\ufeff")  # files with marks that were joined have them inside
            if text:
                yield f"line {number}", _json(text)


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON ({error.msg})", BadFile)
    except ValueError as error:
        return BadRow(f"JSON that cannot be read ({cause(error)})", BadFile)


def _list_rows(path: Path) -> Rows:
    text = _decoded(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise BadFile(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, list):
        raise BadFile(f"{path} holds a JSON {type(value).__name__}; a list of strings or of objects is needed")
    for number, row in enumerate(value, 1):
        yield f"row {number}", row


def _table_rows(path: Path) -> Rows:
    parquet = require("pyarrow.parquet", "tables")
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise BadFile(f"{path} is not a readable Parquet file: {error}") from error


READERS: dict[str, Reader] = {
    ".txt": _text_rows,
    ".jsonl": _line_rows,
    ".json": _list_rows,
    ".parquet": _table_rows,
}


def _reader(path: Path) -> Reader | None:
    if on_hub(path):
        return hub_rows
    kind = Path(path.stem).suffix if _zipped(path) else path.suffix
    return READERS.get(kind.lower())


def _zipped(path: Path) -> bool:
    return path.suffix == ".gz"


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if _zipped(path) else path.open("rb")  # type: ignore[return-value]


def _decoded(path: Path) -> str:
    with _opened(path) as file:
        raw = file.read()
    return raw.decode(_encoding(raw)).removeprefix("\ufeff")


def _encoding(begin: bytes) -> str:
    """By the byte-order mark; UTF-8 without one."""
    return next((name for mark, name in MARKS if begin.startswith(mark)), "utf-8-sig")
