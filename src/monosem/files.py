"""Writing so that nothing is ever half-written: a temporary name in the same folder, fsync, rename."""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import BadFile, BadInput, cause, require

ASSETS = Path(__file__).parent / "assets"  # dictionaries and lenses that ship with the package

# what a result can be written as -> the module and the extra that this needs
RESULT_ENDINGS = {".html": ("plotly", "plots"), ".csv": (), ".json": (), ".parquet": ("pyarrow", "tables")}


LONGEST_NAME = 255  # bytes, on all usual file systems
STALE_SECONDS = 24 * 3600  # a temporary file that nobody has written to for so long is of a process that was killed
# what torch's own writer says on a full disk, in a RuntimeError
_TORCH_WRITER = re.compile("PytorchStreamWriter|inline_container|file write failed")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Raises:
        BadInput: the folder cannot be written to. BadFile: the file cannot, or the disk is full.
    """
    target = Path(path)
    writable_folder(target.parent)
    with _beside(target, folder=False) as temporary:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, target)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `replacing`, for a whole folder; an older folder of that name goes only when the new one is complete.

    Raises:
        BadInput: it would replace the current folder, or a folder in which other things lie.
    """
    target = Path(os.path.abspath(path))
    if target in (here := Path(os.path.abspath("."))).parents or target == here:
        raise BadInput(f"{path} is the current folder or holds it; give a folder of its own")
    writable_folder(target.parent)
    with _beside(target, folder=True) as temporary:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            _check_replaceable(target, temporary)
            old = Path(tempfile.mkdtemp(prefix=_prefix(target), suffix=".old", dir=target.parent))
            os.replace(target, old / target.name)
            os.replace(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)


def _check_replaceable(target: Path, new: Path) -> None:
    """Raises `BadInput` where the old folder holds what the new one does not have: it is more than an older version."""
    if not target.is_dir():
        raise BadInput(f"{target} is a file; choose another folder")
    if others := sorted({one.name for one in target.iterdir()} - {one.name for one in new.iterdir()}):
        raise BadInput(f"{target} holds other files ({', '.join(others[:3])}); choose another folder")


@contextlib.contextmanager
def _beside(target: Path, folder: bool) -> Iterator[Path]:
    """A temporary file or folder in the target's folder, removed on any error, with the leftovers of killed runs."""
    temporary = None
    remove_leftovers(target.parent, _prefix(target), STALE_SECONDS)
    try:
        if folder:
            temporary = Path(tempfile.mkdtemp(prefix=_prefix(target), suffix=".tmp", dir=target.parent))
        else:
            handle, name = tempfile.mkstemp(prefix=_prefix(target), suffix=".tmp", dir=target.parent)
            os.close(handle)
            temporary = Path(name)
        yield temporary
    except BaseException as error:
        if temporary is not None:
            _remove(temporary)
        if _is_no_room(error):
            raise cannot_write(target, error, "free some space or choose another folder") from error
        raise


def _prefix(target: Path) -> str:
    return f".{target.name[:40]}."  # with the random part within the length of a name


def remove_leftovers(folder: Path, prefix: str = ".", seconds: float = 0.0) -> None:
    """Remove what a killed process left half-written by `replacing` and `replacing_folder`, of so many seconds ago.

    A folder that was taken away for a new one, which never came, is put back.
    """
    names = re.compile(re.escape(prefix) + r".*\w{8}\.(tmp|old)", re.DOTALL)
    for path in folder.iterdir() if folder.is_dir() else ():
        if (found := names.fullmatch(path.name)) is None:
            continue
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - path.stat().st_mtime < seconds:
                continue
            for kept in path.iterdir() if found[1] == "old" else ():
                if not (folder / kept.name).exists():
                    os.replace(kept, folder / kept.name)
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_no_room(error: BaseException) -> bool:
    """Whether a writer failed on the file system: each library has its own error for it."""
    kind = f"{type(error).__module__}.{type(error).__name__}"  # these libraries may not be imported for it
    return (
        isinstance(error, OSError)
        or kind.endswith(("SafetensorError", "sqlite3.OperationalError"))
        or (isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error)) is not None)
    )


def cannot_write(path: str | os.PathLike[str], error: BaseException, advice: str) -> BadFile:
    return BadFile(f"cannot write {path}: {cause(error)}; {advice}")


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder where it is missing, and check that files can be made in it.

    Raises:
        BadInput: it cannot be made or written to.
    """
    folder = Path(path)
    try:
        str(folder).encode()  # libraries that write there take UTF-8 names alone
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, UnicodeEncodeError) as error:
        raise BadInput(f"cannot write into {folder}: {cause(error)}; choose another folder") from error
    return folder


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Whether a file can be written at a path, whose folder may be missing; nothing is made.

    Raises:
        BadInput: no folder can be made there or written into, or the name is too long.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError("it is a folder")
        if len(os.fsencode(target.name)) > LONGEST_NAME:
            raise OSError("the name is too long")
        near = target.parent
        while not near.exists():
            near = near.parent
        with tempfile.TemporaryFile(dir=near):
            pass
    except OSError as error:
        raise BadInput(f"cannot write {target}: {cause(error)}; choose another place") from error
    return target


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with replacing(path) as temporary:
        # half a surrogate pair, which no encoding has, may come from a file's JSON
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def json_value(value: Any) -> Any:
    """A value as JSON holds it, with all digits: tables as lists of objects, NaN and infinity as null."""
    if type(value) in (str, int, float):  # most values; the rest of this function is slower
        return value if value == value and value not in (math.inf, -math.inf) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return json_value(value.to_dict(orient="records"))
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in value]
    if hasattr(value, "tolist"):
        return json_value(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def result_path(path: str | os.PathLike[str]) -> Path:
    """Where a result can be written; asked before a long analysis, so that it is not lost to a wrong name.

    Raises:
        BadInput: another ending than .html, .csv, .json and .parquet, or a place that cannot be written to.
        MissingExtra: .parquet without pyarrow, .html without plotly.
    """
    target = Path(path)
    if target.suffix.lower() not in RESULT_ENDINGS:
        *others, last = RESULT_ENDINGS
        raise BadInput(f"cannot tell from {target.name!r} what to write; end it in {', '.join(others)} or {last}")
    if needed := RESULT_ENDINGS[target.suffix.lower()]:
        require(*needed)
    return check_writable(target)


def write_result(path: str | os.PathLike[str], table: Any, page: Callable[[], str]) -> Path:
    """A result's picture (.html) or table (.csv, .json, .parquet), by the ending of the file's name.

    Args:
        table: a pandas frame. page: makes the picture's page, when it is wanted.

    Raises:
        BadInput, MissingExtra: as `result_path`.
    """
    target = result_path(path)
    ending = target.suffix.lower()
    if ending == ".html":
        write_text(target, page())
    elif ending == ".csv":
        write_text(target, table.to_csv(index=False))
    elif ending == ".json":
        write_text(target, json.dumps(json_value(table), indent=1, ensure_ascii=False) + "\n")
    else:
        infer = require("pandas.api.types", "tables").infer_dtype
        # a column of a parquet file has one type; positions may be indices and names of spans
        mixed = [name for name in table.columns if infer(table[name]).startswith("mixed")]
        with replacing(target) as temporary:
            table.astype(dict.fromkeys(mixed, str)).to_parquet(temporary)
    return target
