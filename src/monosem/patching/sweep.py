"""The sweep: patch every cell, one at a time, and measure what the model answers."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ..data import TokenPairs
from ..dictionaries import Dictionary
from ..errors import UnknownName, did_you_mean
from ..models import Model
from ..progress import Meter
from .cells import ORDER, Cell, Positions, cells_of
from .corruptions import Corruption, Prompt
from .growing import NotApplicable, growing
from .naive import Patched, batched, naive
from .result import Sweep
from .scoring import MetricLike, metrics_of
from .tally import Tally, direction_of, labels_of
from .trial import Trial, trials

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
    way = direction_of(direction, corruption)
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
    tally = Tally(metrics_of(metric), len(cells), len(pairs))
    engine = _Engine(method, memory, quiet)
    with Meter("patch", total=len(cells) * len(pairs), unit="cell", quiet=quiet) as meter:
        for row in range(len(pairs)):
            draws = trials(model, pairs, row, sides(row), way, places, dictionary)
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
        direction=way,
        method=engine.method,
        labels=labels_of(model, pairs, cells),
        model=model.name,
        corruption=corruption.label,
    )


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
