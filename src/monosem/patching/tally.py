"""What sweeps share: their numbers as they come in, their direction, their labels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput
from ..models import Model
from .cells import Cell
from .corruptions import Corruption
from .scoring import Metric
from .trial import Trial, measured


def direction_of(given: str | None, corruption: Corruption) -> str:
    if given not in (None, "denoising", "noising"):
        raise BadInput(f"direction is 'denoising' or 'noising', not {given!r}")
    if given == "denoising" and not corruption.is_run:
        raise BadInput(f"{corruption.label} gives values and no run to restore; use direction='noising'")
    return given or ("denoising" if corruption.is_run else "noising")


class Tally:
    """Every metric's numbers, as means over the draws of a pair."""

    def __init__(self, metrics: dict[str, Metric], cells: int, pairs: int):
        self.metrics = metrics
        self.values = {name: torch.zeros(cells, pairs, dtype=torch.float64) for name in metrics}
        self.clean = {name: torch.zeros(pairs, dtype=torch.float64) for name in metrics}
        self.corrupted = {name: torch.zeros(pairs, dtype=torch.float64) for name in metrics}

    def add(self, into: dict[str, Tensor], trial: Trial, logits: Tensor, where: Any, share: float) -> None:
        for name, value in measured(trial, self.metrics, logits).items():
            into[name][where] += share * (value if isinstance(where, tuple) else value[0])


def labels_of(model: Model, pairs: TokenPairs, cells: Sequence[Cell]) -> dict[Any, str]:
    """A token for each position where all pairs agree: the clean one, with the corrupted one where they differ."""
    labels: dict[Any, str] = {}
    sides = [pairs.clean.rows(), pairs.corrupted.rows()]
    for position in dict.fromkeys(cell.position for cell in cells):
        if isinstance(position, int):
            seen = [{row[position] for row in side} for side in sides]
            if all(len(tokens) == 1 for tokens in seen):
                labels[position] = "/".join(dict.fromkeys(model.str_token(tokens.pop()) for tokens in seen))
    return labels
