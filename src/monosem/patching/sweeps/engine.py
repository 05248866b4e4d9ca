"""The ways of computing patched runs, which one is used, and what is said where a model does not allow it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import check_name
from ..trials import Trial
from .growing import growing
from .tape import NotApplicable
from .whole_runs import CellSet, Patched, batched, naive

METHODS = {"growing": growing, "batched": batched, "naive": naive}


@dataclass
class Engine:
    """Patches sets of cells by a method, or by whole runs in batches where the model's layers do not allow it.

    Attributes:
        method: what computes: the method that was asked for, "batched" after a fall back.
        reason: why whole runs are patched instead; None where they are not.

    Raises:
        UnknownName: no such method.
    """

    method: str = "growing"
    reason: str | None = None

    def __post_init__(self) -> None:
        check_name("method", self.method, METHODS)

    @property
    def ran(self) -> dict[str, Any]:
        """What computed the numbers, for a result: its `method` and `config`."""
        fell_back = {} if self.reason is None else {"fell back": self.reason}
        return {"method": self.method, "config": {"method": self.method, **fell_back}}

    def __call__(self, trial: Trial, sets: Sequence[CellSet], memory: str | int) -> Patched:
        """Which sets, and their logits; each set once."""
        try:
            yield from METHODS[self.method](trial, sets, memory)
        except NotApplicable as error:  # always raised before the first numbers
            if self.reason is None:  # once an analysis, whatever is quiet: it takes several times as long
                warnings.warn(f"{error}; patching whole runs instead, which is slower", stacklevel=2)
            self.method, self.reason = "batched", str(error)
            yield from batched(trial, sets, memory)
