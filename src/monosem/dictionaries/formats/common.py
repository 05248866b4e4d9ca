"""What every format needs: the row that describes it, tensors by name, and sites as files name them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile, UnknownName
from ...models.places.sites import Site
from ..parts import DictionaryParts


@dataclass(frozen=True)
class Format:
    """How to recognise a checkpoint at a path, and how to read and write it.

    Attributes:
        looks_like: for messages: "a folder with cfg.json and sae_weights.safetensors".
        read: path and `norm_scaling_factor` (where the caller gave one) to parts. Raises `BadFile` or `BadInput`.
        write: parts, to a folder, in a dtype; None where monosem does not write the format.
    """

    looks_like: str
    detect: Callable[[Path], bool]
    read: Callable[[Path, float | None], DictionaryParts]
    write: Callable[[DictionaryParts, Path, torch.dtype], None] | None = None


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
