"""Writing so that nothing is ever half-written: a temporary name in the same folder, fsync, rename."""

import contextlib
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadFile, BadInput, cause, require

if TYPE_CHECKING:
    from torch import Tensor

ASSETS = Path(__file__).parent / "assets"  # dictionaries and lenses that ship with the package

# what a result can be written as -> the module and the extra that this needs
RESULT_ENDINGS = {".html": ("plotly", "plots"), ".csv": (), ".json": (), ".parquet": ("pyarrow", "tables")}


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Raises:
        BadInput: the folder cannot be written to.
    """
    target = Path(path)
    writable_folder(target.parent)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    with _removed_on_error(temporary, target):
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, target)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `replacing`, for a whole folder; an older folder of that name goes only when the new one is complete."""
    target = Path(path)
    writable_folder(target.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    with _removed_on_error(temporary, target):
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            os.replace(target, old / "old")
            os.replace(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)


@contextlib.contextmanager
def _removed_on_error(temporary: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(target, error, "free some space or choose another folder") from error
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written by `replacing` and `replacing_folder`, where no other one writes.

    A folder that was taken away for a new one, which never came, is put back.
    """
    for path in folder.glob(".*"):
        found = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}\.(tmp|old)", path.name)
        if found is None:
            continue
        if found[2] == "old" and (path / "old").exists() and not (folder / found[1]).exists():
            os.replace(path / "old", folder / found[1])
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def cannot_write(path: str | os.PathLike[str], error: Exception, advice: str) -> BadFile:
    return BadFile(f"cannot write {path}: {cause(error)}; {advice}")


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder where it is missing, and check that files can be made in it.

    Raises:
        BadInput: it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"cannot write into {folder}: {cause(error)}; choose another folder") from error
    return folder


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def result_path(path: str | os.PathLike[str]) -> Path:
    """Where a result can be written; asked before a long analysis, so that it is not lost to a wrong name.

    Raises:
        BadInput: another ending than .html, .csv, .json and .parquet, or a folder that cannot be written to.
        MissingExtra: .parquet without pyarrow, .html without plotly.
    """
    target = Path(path)
    if target.suffix.lower() not in RESULT_ENDINGS:
        *others, last = RESULT_ENDINGS
        raise BadInput(f"cannot tell from {target.name!r} what to write; end it in {', '.join(others)} or {last}")
    if needed := RESULT_ENDINGS[target.suffix.lower()]:
        require(*needed)
    writable_folder(target.parent)
    return target


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
        write_text(target, table.to_json(orient="records", force_ascii=False, indent=1) + "\n")
    else:
        infer = require("pandas.api.types", "tables").infer_dtype
        # a column of a parquet file has one type; positions may be indices and names of spans
        mixed = [name for name in table.columns if infer(table[name]).startswith("mixed")]
        with replacing(target) as temporary:
            table.astype(dict.fromkeys(mixed, str)).to_parquet(temporary)
    return target


def read_json(path: str | os.PathLike[str]) -> Any:
    """Raises `BadFile` when the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFile(f"cannot read {path}: {cause(error)}") from error
    except ValueError as error:
        raise BadFile(f"{path} is not valid JSON: {error}") from error


def read_safetensors(path: str | os.PathLike[str]) -> "dict[str, Tensor]":
    """Raises `BadFile` when the file is missing, truncated or not safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise BadFile(f"{path} is missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"{path} is truncated or not a safetensors file ({error}); copy or download it again") from error


def read_torch(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A `.pt` file of tensors and plain values. Code in it is refused, never run.

    Raises:
        BadFile: missing, broken, not a dictionary, or holds anything but tensors and plain values.
    """
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadFile(
            f"{path} was refused: it holds something other than tensors and plain values, which could run code; "
            "convert it to safetensors where you trust it"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BadFile(f"{path} is truncated or not a PyTorch file ({cause(error)})") from error
    if not isinstance(loaded, dict):
        raise BadFile(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded
