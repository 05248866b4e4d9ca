"""Checkpoints of a training run: whole or not there, the last two kept."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ..errors import BadFile
from ..files import replacing
from ..reading import read_torch

KEPT = 2  # the newest may be on a disk that broke while it was written


class Checkpoints:
    """`step-000001200.pt` files in a folder: tensors and plain values, loadable without running code."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    @property
    def last(self) -> Path | None:
        return next(reversed(self.paths()), None)

    def save(self, step: int, content: dict[str, Any]) -> Path:
        """Write atomically, then remove all but the last `KEPT`.

        Raises:
            BadInput, BadFile: the folder cannot be written to, or the disk is full; older checkpoints stay.
        """
        path = self.folder / f"step-{step:09d}.pt"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(content, file)
        for old in self.paths()[:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> dict[str, Any] | None:
        """The newest readable checkpoint; None when there is no checkpoint.

        Raises:
            BadFile: there are checkpoints, and no one of them can be read.
        """
        errors = []
        for path in reversed(self.paths()):
            try:
                return read_torch(path)
            except BadFile as error:
                errors.append(str(error))
                warnings.warn(f"{error}; trying an older checkpoint", stacklevel=2)
        if errors:
            raise BadFile(f"no readable checkpoint in {self.folder}: {errors[0]}; delete the folder to start again")
        return None
