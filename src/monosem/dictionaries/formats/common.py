"""What every format needs: tensors from disk without running code, and what the caller knows better than the file."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import BadFile, UnknownName
from ...models.places.sites import Site, SiteLike


@dataclass(frozen=True)
class Overrides:
    """What the caller says about a checkpoint; wins over the file."""

    site: SiteLike | None = None
    site_out: SiteLike | None = None
    model_name: str | None = None
    norm_scaling_factor: float | None = None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Raises `BadFile` when the file is missing, truncated or not safetensors."""
    if not path.is_file():
        raise BadFile(f"{path} is missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"{path} is truncated or not a safetensors file ({error}); copy or download it again") from error


def read_torch(path: Path) -> dict[str, Any]:
    """A `.pt` file of tensors and plain values. Code in it is refused, never run.

    Raises:
        BadFile: missing, broken, not a dictionary, or holds anything but tensors and plain values.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadFile(
            f"{path} was refused: it holds something other than tensors and plain values, which could run code; "
            "convert it to safetensors where you trust it"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BadFile(f"{path} is truncated or not a PyTorch file ({str(error).splitlines()[0]})") from error
    if not isinstance(loaded, dict):
        raise BadFile(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def take(tensors: dict[str, Any], names: list[str], path: Path) -> list[Tensor]:
    """Tensors by name; raises `BadFile` that names the missing ones."""
    missing = [name for name in names if not isinstance(tensors.get(name), Tensor)]
    if missing:
        raise BadFile(f"{path} lacks the tensors {', '.join(missing)}; it has {', '.join(map(str, tensors)) or 'none'}")
    return [tensors[name] for name in names]


def site_or_none(hook_name: str | None) -> Site | None:
    """The site of a hook name that a file gives; None when it is not one of ours (the name stays in the metadata)."""
    try:
        return Site.parse(hook_name) if hook_name else None
    except UnknownName:
        return None
