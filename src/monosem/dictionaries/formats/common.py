"""What every format needs: tensors from disk without running code, and what the caller knows better than the file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
