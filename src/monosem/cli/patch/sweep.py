"""`monosem patch sweep`, `estimate` and `compare`: every place alone, exactly, from gradients, or both ways."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ..options import Layers, Machine, Written, layer_numbers, names, option
from ..output import as_json, frame, show
from .pairs import Metric, Pairs, Positions, metric_of, positions_of

if TYPE_CHECKING:
    from ...data import TokenPairs
    from ...models import Model

Direction = Annotated[
    str | None, option("--direction", "NAME", "denoising: clean into corrupted (default). noising: the other way.")
]
Top = Annotated[int, option("--top", "N", "Places to print, largest effect first.", min=1)]
Steps = Annotated[int, option("--steps", "N", "Gradients between base and source; more is closer.", min=1)]


@dataclass(frozen=True)
class Cells:
    """Which places are patched, one at a time."""

    sites: Annotated[str, option("--sites", "LIST", "Such as resid_pre, attn_out,mlp_out or z.")] = "resid_pre"
    over: Annotated[
        str, option("--over", "LIST", "What cells differ in: layer, position, head (others are patched whole).")
    ] = "layer,position"
    layers: Layers = None
    positions: Positions = None
    direction: Direction = None
    metric: Metric = None

    def arguments(self, model: "Model", pairs: "TokenPairs", quiet: bool) -> dict[str, Any]:
        return {
            "sites": names(self.sites),
            "over": names(self.over),
            "metric": metric_of(pairs, self.metric),
            "direction": self.direction,
            "layers": layer_numbers(self.layers, model.cfg.n_layers),
            "positions": positions_of(self.positions),
            "quiet": quiet,
        }


def sweep(
    pairs: Pairs,
    cells: Cells,
    machine: Machine,
    written: Written,
    method: Annotated[
        str, option("--method", "NAME", "growing, batched or naive: the same numbers, growing is fastest.")
    ] = "growing",
    top: Top = 10,
) -> None:
    """Patch every place alone and measure the answer.

    Writes each activation from one prompt of every pair into the run of the other. The score is the share of the
    difference between clean and corrupted that one place carries.

    Example: monosem patch sweep smollm2 --task ioi --sites z --over layer,head --out heads.html
    """
    from ...patching import sweep as exact

    _run(exact, pairs, cells, machine, written, top, method=method)


def estimate(
    pairs: Pairs,
    cells: Cells,
    machine: Machine,
    written: Written,
    steps: Steps = 1,
    top: Top = 10,
) -> None:
    """Estimate a sweep from one gradient a pair.

    Attribution patching: fast, and wrong where the model is far from linear; `monosem patch compare` shows how wrong.

    Example: monosem patch estimate smollm2 --task ioi --sites z --over layer,head --out estimate.html
    """
    from ...patching import attribution

    _run(attribution, pairs, cells, machine, written, top, steps=steps)


def compare(
    pairs: Pairs,
    cells: Cells,
    machine: Machine,
    written: Written,
    steps: Steps = 1,
    top: Top = 10,
) -> None:
    """Check the estimate against the exact sweep.

    Correlations over the places, slope, and the places at which the two differ most.

    Example: monosem patch compare smollm2 --task ioi --n 4 --sites z,mlp_out --over layer
    """
    from ...patching import check_estimate

    pairs.check(cells.metric)
    model = machine.load(pairs.model, written.silent)
    prompts = pairs.made(model)
    result = check_estimate(model, prompts, **cells.arguments(model, prompts, written.silent), steps=steps)
    written.save(result)
    if written.json:
        as_json({"summary": result.summary, "cells": result.table})
    else:
        frame(result.summary, "exact sweep and estimate")
        frame(result.disagreements(top), "where they differ most")
    written.say_where()


def _run(
    analysis: Any,
    pairs: Pairs,
    cells: Cells,
    machine: Machine,
    written: Written,
    top: int,
    **options: Any,
) -> None:
    pairs.check(cells.metric)
    model = machine.load(pairs.model, written.silent)
    prompts = pairs.made(model)
    result = analysis(model, prompts, **cells.arguments(model, prompts, written.silent), **options)
    written.save(result)
    if written.json:
        as_json(result.table)
    else:
        name = result.metrics[0]
        ends = f"{float(result.clean[name].mean()):.4g} clean, {float(result.corrupted[name].mean()):.4g} corrupted"
        show(f"{prompts.source or 'pairs'}, {len(prompts)} pairs, {name}: {ends}")
        frame(result.top(top), f"largest effects of {len(result):,} places, {result.direction}")
    written.say_where()
