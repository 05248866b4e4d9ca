"""Reading what others wrote: every file is read whole and checked, or refused in one line; no code in it is run."""

import functools
import io
import json
import math
import os
import pickle
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadFile, BadInput, cause

if TYPE_CHECKING:
    from torch import Tensor

MOST_DEPTH = 100  # lists in lists, tables in tables
MOST_VALUES = 10**6  # of YAML, where names stand for values that are written once
# what torch.save begins with: a zip archive or, before version 1.6, a pickled number
_ARCHIVE, _PICKLED = b"PK\x03\x04", (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")  # what JSON has as well


def existing(name: str | os.PathLike[str]) -> Path | None:
    """The path that a user's name means (`~` is home); None where nothing lies there.

    Raises:
        BadInput: a name that no path can have, or a place that cannot be looked at.
    """
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError) as error:  # too long, no permission; a zero byte; ~ of nobody
        raise BadInput(f"{_short(os.fspath(name))!r} cannot be a path here: {cause(error)}") from error


def regular_file(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a file that ends. Raises `BadFile` for none, a folder, a pipe or a device, which may not."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        why = "it does not exist" if isinstance(error, FileNotFoundError) else cause(error)
        raise BadFile(f"cannot read {_short(os.fspath(path))}: {why}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise BadFile(f"cannot read {path}: it is {kind}, not a file; write it to a file first")
    return Path(path).absolute()  # some readers would expand a "~" at the beginning


def read_text(path: str | os.PathLike[str]) -> str:
    """UTF-8 text, without its byte-order mark. Raises `BadFile` when the file is missing or is not UTF-8."""
    try:
        return regular_file(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"cannot read {path}: {cause(error)}") from error


def parse_json(text: str) -> Any:
    """Raises `ValueError` for what is not JSON, and for what is nested more than `MOST_DEPTH` deep."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    _measure(value, {}, math.inf)
    return value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Raises `BadFile` when the file is missing, is not JSON, or is nested too deep."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise BadFile(f"{path} is not valid JSON: {error}") from error


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object. Raises `BadFile` as `read_json`, and for any other value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise BadFile(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def parse_yaml(text: str) -> Any:
    """Strings, numbers, true, false, null, lists and tables; a date is the text that it is written as.

    Raises:
        ValueError: not YAML, another tag, nested too deep, or names that stand for more than `MOST_VALUES` values.
    """
    import yaml

    try:
        value = yaml.load(text, _loader())
        _measure(value, {})
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except Exception as error:  # beside its own errors the parser raises whatever a tag's text leads to
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    return value


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """`parse_yaml` of a file. Raises `BadFile` when it is missing or cannot be read as that."""
    try:
        return parse_yaml(read_text(path))
    except ValueError as error:
        raise BadFile(f"{path} is not valid YAML: {error}") from error


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Of plain values alone."""

    date = "tag:yaml.org,2002:timestamp"
    plain = {None, *(f"tag:yaml.org,2002:{tag}" for tag in _TAGS)}  # None answers for every other tag
    Loader.yaml_constructors = {tag: how for tag, how in yaml.SafeLoader.yaml_constructors.items() if tag in plain}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != date]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _measure(
    value: Any, known: dict[int, tuple[int, int]], most: float = MOST_VALUES, depth: int = 0
) -> tuple[int, int]:
    """How many values, and how deep; what several names stand for counts each time and is looked at once."""
    if not isinstance(value, dict | list):
        return 1, 0
    if depth > MOST_DEPTH:
        raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        sizes = [_measure(one, known, most, depth + 1) for one in inside]
        known[id(value)] = sum(size for size, _ in sizes) + 1, max((height for _, height in sizes), default=0) + 1
    size, height = known[id(value)]
    if height > MOST_DEPTH or size > most:
        raise ValueError(f"it is nested more than {MOST_DEPTH} deep, or has more than {most:,} values")
    return size, height


def read_safetensors(path: str | os.PathLike[str]) -> "dict[str, Tensor]":
    """Raises `BadFile` when the file is missing, truncated or not safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(regular_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BadFile(f"{path} is truncated or not a safetensors file ({error}); copy or download it again") from error


def read_torch(path: str | os.PathLike[str], after: int = 0) -> dict[str, Any]:
    """A `.pt` file of tensors and plain values. Code in it is refused, never run.

    Args:
        after: how many bytes stand before what PyTorch wrote.

    Raises:
        BadFile: missing, broken, not a dictionary, or holds anything but tensors and plain values.
    """
    loaded = _loaded(path, after)
    if not isinstance(loaded, dict):
        raise BadFile(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def read_torch_tensor(path: str | os.PathLike[str]) -> "Tensor":
    """A `.pt` file of one tensor. Raises `BadFile` as `read_torch`, and for anything else in it."""
    import torch

    loaded = _loaded(path)
    if not isinstance(loaded, torch.Tensor):
        raise BadFile(f"{path} holds a {type(loaded).__name__}, expected a tensor")
    return loaded


def _loaded(path: str | os.PathLike[str], after: int = 0) -> Any:
    import torch

    try:
        source: Any = regular_file(path)
        _check_written_by_torch(source, after)
        if after:
            source = io.BytesIO(source.read_bytes()[after:])
        return torch.load(source, map_location="cpu", weights_only=True)
    except BadFile:
        raise
    except pickle.UnpicklingError as error:
        raise BadFile(
            f"{path} was refused: it holds something other than tensors and plain values, which could run code; "
            "convert it to safetensors where you trust it"
        ) from error
    except Exception as error:  # whatever the bytes lead the unpickler to
        raise BadFile(f"{path} is truncated or not a PyTorch file ({cause(error)})") from error


def _check_written_by_torch(path: Path, after: int) -> None:
    with open(path, "rb") as file:
        file.seek(after)
        start = file.read(64)
    if start.startswith(_ARCHIVE) or _PICKLED in start:
        return
    if start.startswith(b"version https://git-lfs"):
        raise BadFile(f"{path} is a Git LFS pointer instead of the file; run `git lfs pull`, or download the file")
    what = f"begins with {start[:8]!r}" if start else "is empty"
    raise BadFile(f"{path} is truncated or not a PyTorch file: it {what}; copy or download it again")


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:100]}...{name[-40:]}"
