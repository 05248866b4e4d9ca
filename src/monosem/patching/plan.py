"""What a sweep and its estimate have in common: the cells, the two sides of every pair, the numbers, the result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import TokenPairs
from ..dictionaries import Dictionary
from ..models import Model, Site
from .cells import ORDER, Cell, cells_of
from .corruptions import Corruption, Prompt, Sides
from .measured import Sweep
from .scoring import MetricLike, metrics_of
from .tally import Tally, direction_of, labels_of
from .trial import Trial, trials


@dataclass(frozen=True, eq=False)
class Plan:
    """Which cells of which pairs are patched how, and the numbers so far.

    Attributes:
        over: the axes that the cells differ in, in the order of `ORDER`.
        places: the sites that runs must capture. sides: makes the other side of each pair.
    """

    model: Model
    pairs: TokenPairs
    cells: Sequence[Cell]
    over: tuple[str, ...]
    places: Sequence[Site]
    corruption: Corruption
    sides: Sides
    direction: str
    dictionary: Dictionary | None
    tally: Tally

    @staticmethod
    def of(
        model: Model,
        pairs: TokenPairs,
        sites: str | Sequence[str],
        over: str | Sequence[str],
        metric: MetricLike,
        direction: str | None,
        corruption: Corruption | None,
        dictionary: Dictionary | None,
        also: Sequence[Site] = (),
        **which: Any,
    ) -> "Plan":
        """Arguments and errors as `sweep`; `also`: sites to capture beside the cells' own; `which`: of `cells_of`."""
        if dictionary is not None:
            dictionary.check(model)
        corruption = corruption or Prompt()
        way = direction_of(direction, corruption)
        cells = cells_of(model, pairs, sites, over, dictionary=dictionary, **which)
        axes = tuple(axis for axis in ORDER if axis in ([over] if isinstance(over, str) else over))
        places = list(dict.fromkeys([*(cell.place for cell in cells), *also]))
        tally = Tally(metrics_of(metric), len(cells), len(pairs))
        sides = corruption.sides(model, pairs, places)
        return Plan(model, pairs, cells, axes, places, corruption, sides, way, dictionary, tally)

    def trials(self, row: int) -> Iterator[tuple[Trial, float]]:
        """The trials of a pair, one a draw, with their share in its mean. What the unpatched runs give is tallied."""
        tally = self.tally
        draws = trials(self.model, self.pairs, row, self.sides(row), self.direction, self.places, self.dictionary)
        for trial in draws:
            tally.add(tally.clean, trial, trial.clean_logits, row, 1 / len(draws))
            tally.add(tally.corrupted, trial, trial.other_logits, row, 1 / len(draws))
            yield trial, 1 / len(draws)

    def result(self, method: str) -> Sweep:
        """What was tallied."""
        return Sweep(
            cells=self.cells,
            over=self.over,
            values=self.tally.values,
            clean=self.tally.clean,
            corrupted=self.tally.corrupted,
            direction=self.direction,
            method=method,
            labels=labels_of(self.model, self.pairs, self.cells),
            model=self.model.name,
            corruption=self.corruption.label,
        )
