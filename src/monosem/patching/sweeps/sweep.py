"""The sweep: patch every cell, one at a time, and measure what the model answers."""

from collections.abc import Sequence
from typing import Literal, Unpack

from ...data import TokenPairs
from ...models import Model
from ...results import analysis
from ..cells import Which, axes_of, cells_of, columns_of, labels_of, places_of
from ..corruptions import Corruption
from ..experiment import Direction
from ..scoring import MetricLike
from ..trials import Trial, patching_experiment
from .engine import Engine
from .result import Sweep
from .whole_runs import Patched


@analysis
def sweep(
    model: Model,
    pairs: TokenPairs,
    sites: str | Sequence[str] = "resid_pre",
    over: str | Sequence[str] = ("layer", "position"),
    *,
    metric: MetricLike = "logit_diff",
    direction: Direction | None = None,
    corruption: Corruption | None = None,
    method: Literal["growing", "batched", "naive"] = "growing",
    memory: str | int = "2GB",
    quiet: bool = False,
    **which: Unpack[Which],
) -> Sweep:
    """Write each cell's activation from one side of every pair into the run of the other, and measure the answer.

    Args:
        sites, over, which: the cells; see `cells_of` (layers, positions, heads, neurons, dictionary, latents). Latents
            are patched at the tokens that the dictionary was trained on (`Dictionary.skip`), as edits of them are.
        metric: names of `METRICS`, functions of (logits after the last token, pairs, clean logits), or several.
        direction: "denoising" writes clean activations into the corrupted run (which place restores the answer?),
            "noising" corrupted ones into the clean run (which place does the answer need?). Default: denoising, and
            noising for corruptions that are bare values.
        corruption: the other side; default: the pair's corrupted prompt. `noise`, `resample`, `zero`, `mean`, ...
        method: "growing" computes only what a patch can change (`growing.py`); "batched" and "naive" run the whole
            model for every cell. All give the same numbers up to rounding. Where the layers do not allow the growing
            sweep, whole runs are patched instead: a Python warning says why, and `method` of the result is "batched".
        memory: what patched rows may take at once, beside the model and the activations of one pair.

    Raises:
        UnknownName, BadInput: as `cells_of`; a metric without its answers; denoising from bare values; named positions
            that the dictionary was not trained on.
    """
    engine = Engine(method)
    cells = cells_of(model, pairs, sites, over, **which)
    experiment = patching_experiment(
        model, pairs, places_of(cells), metric, direction, corruption, which.get("dictionary")
    )
    labels = labels_of(model, pairs, cells)
    alone = [(cell,) for cell in cells]
    named = which.get("dictionary") is not None and which.get("positions") is not None

    def patched(trial: Trial) -> Patched:
        if named:
            trial.check_trained(cells)
        return engine(trial, alone, memory)

    run = experiment.run(
        patched, columns_of(cells, over, labels), label="patch", unit="cell", quiet=quiet,
    )  # fmt: skip
    return Sweep.of(run, cells=cells, over=axes_of(over), labels=labels, **engine.ran)
