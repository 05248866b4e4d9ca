"""The sweep: patch every cell, one at a time, and measure what the model answers."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ...data import TokenPairs
from ...dictionaries import Dictionary
from ...errors import UnknownName, did_you_mean
from ...models import Model
from ...progress import Meter
from ..cells import Cell, Positions
from ..corruptions import Corruption
from ..measured import Sweep
from ..plan import Plan
from ..scoring import MetricLike
from ..trial import Trial
from .growing import NotApplicable, growing
from .whole_runs import Patched, batched, naive

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
    plan = Plan.of(
        model, pairs, sites, over, metric, direction, corruption, dictionary,
        layers=layers, positions=positions, heads=heads, neurons=neurons, latents=latents,
    )  # fmt: skip
    engine = _Engine(method, memory, quiet)
    with Meter("patch", total=len(plan.cells) * len(pairs), unit="cell", quiet=quiet) as meter:
        for row in range(len(pairs)):
            for trial, share in plan.trials(row):
                for chosen, logits in engine(trial, plan.cells):
                    plan.tally.add(plan.tally.values, trial, logits, (list(chosen), row), share)
                    meter.advance(len(chosen) * share)
    return plan.result(engine.method)


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
