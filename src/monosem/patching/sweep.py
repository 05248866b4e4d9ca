"""The sweep: patch every cell, one at a time, and measure what the model answers."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..data import TokenPairs
from ..dictionaries import Dictionary
from ..errors import BadInput, UnknownName, did_you_mean
from ..models import Model
from ..progress import Meter
from .cells import ORDER, Cell, Positions, cells_of
from .corruptions import Corruption, Prompt
from .growing import NotApplicable, growing
from .naive import Patched, batched, naive
from .result import Sweep
from .scoring import Metric, MetricLike, metrics_of
from .trial import Trial, measured, trials

METHODS = {"growing": growing, "batched": batched, "naive": naive}


def sweep(
    model: Model,
    pairs: TokenPairs,
    sites: str | Sequence[str] = "resid_pre",
    over: str | Sequence[str] = ("layer", "position"),
    metric: MetricLike = "logit_diff",
    direction: Literal["denoising", "noising"] | None = None,
    *,
    layers: Iterable[int] | None = None,
    positions: Positions = None,
    heads: Iterable[int] | None = None,
    neurons: Mapping[int, Iterable[int]] | None = None,
    dictionary: Dictionary | None = None,
    latents: Iterable[int] | None = None,
    corruption: Corruption | None = None,
    method: Literal["growing", "batched", "naive"] = "growing",
    memory: str | int = "2GB",
    quiet: bool = False,
) -> Sweep:
    """Write each cell's activation from one side of every pair into the run of the other, and measure the answer.

    Args:
        sites, over, layers, positions, heads, neurons, dictionary, latents: which cells; see `cells_of`.
        metric: names of `METRICS`, functions of (logits after the last token, pairs, clean logits), or several.
        direction: "denoising" writes clean activations into the corrupted run (which place restores the answer?),
            "noising" corrupted ones into the clean run (which place does the answer need?). Default: denoising, and
            noising for corruptions that are bare values.
        corruption: the other side; default: the pair's corrupted prompt. `noise`, `resample`, `zero`, `mean`, ...
        method: "growing" computes only what a patch can change (`growing.py`); "batched" and "naive" run the whole
            model for every cell. All give the same numbers up to rounding.
        memory: what patched rows may take at once, beside the model and the activations of one pair.

    Raises:
        UnknownName, BadInput: as `cells_of`; a metric without its answers; denoising from bare values.
    """
    if method not in METHODS:
        raise UnknownName(f"no method {method!r}{did_you_mean(method, METHODS) or '; use ' + ', '.join(METHODS)}")
    if dictionary is not None:
        dictionary.check(model)
    corruption = corruption or Prompt()
    direction = _direction(direction, corruption)
    cells = cells_of(
        model,
        pairs,
        sites,
        over,
        layers=layers,
        positions=positions,
        heads=heads,
        neurons=neurons,
        dictionary=dictionary,
        latents=latents,
    )
    places = list(dict.fromkeys(cell.place for cell in cells))
    sides = corruption.sides(model, pairs, places)
    tally = _Tally(metrics_of(metric), len(cells), len(pairs))
    engine = _Engine(method, memory, quiet)
    with Meter("patch", total=len(cells) * len(pairs), unit="cell", quiet=quiet) as meter:
        for row in range(len(pairs)):
            draws = trials(model, pairs, row, sides(row), direction, places, dictionary)
            for trial in draws:
                share = 1 / len(draws)
                tally.add(tally.clean, trial, trial.clean_logits, row, share)
                tally.add(tally.corrupted, trial, trial.other_logits, row, share)
                for chosen, logits in engine(trial, cells):
                    tally.add(tally.values, trial, logits, (list(chosen), row), share)
                    meter.advance(len(chosen) * share)
    return Sweep(
        cells=cells,
        over=tuple(axis for axis in ORDER if axis in ([over] if isinstance(over, str) else over)),
        values=tally.values,
        clean=tally.clean,
        corrupted=tally.corrupted,
        direction=direction,
        method=engine.method,
        labels=labels_of(model, pairs, cells),
        model=model.name,
        corruption=corruption.label,
    )


def _direction(given: str | None, corruption: Corruption) -> str:
    if given not in (None, "denoising", "noising"):
        raise BadInput(f"direction is 'denoising' or 'noising', not {given!r}")
    if given == "denoising" and not corruption.is_run:
        raise BadInput(f"{corruption.label} gives values and no run to restore; use direction='noising'")
    return given or ("denoising" if corruption.is_run else "noising")


class _Tally:
    """Every metric's numbers, as means over the draws of a pair."""

    def __init__(self, metrics: dict[str, Metric], cells: int, pairs: int):
        self.metrics = metrics
        self.values = {name: torch.zeros(cells, pairs, dtype=torch.float64) for name in metrics}
        self.clean = {name: torch.zeros(pairs, dtype=torch.float64) for name in metrics}
        self.corrupted = {name: torch.zeros(pairs, dtype=torch.float64) for name in metrics}

    def add(self, into: dict[str, Tensor], trial: Trial, logits: Tensor, where: Any, share: float) -> None:
        for name, value in measured(trial, self.metrics, logits).items():
            into[name][where] += share * (value if isinstance(where, tuple) else value[0])


class _Engine:
    """The method asked for, or whole runs in batches where the model's layers do not allow it (said once)."""

    def __init__(self, method: str, memory: str | int, quiet: bool):
        self.method, self.memory, self.quiet = method, memory, quiet

    def __call__(self, trial: Trial, cells: Sequence[Cell]) -> Patched:
        try:
            yield from METHODS[self.method](trial, cells, self.memory)
        except NotApplicable as reason:  # always raised before the first numbers
            self.method = "batched"
            if not self.quiet:
                print(f"monosem: {reason}; patching whole runs instead, which is slower", file=sys.stderr, flush=True)
            yield from batched(trial, cells, self.memory)


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
