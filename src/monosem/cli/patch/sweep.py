"""`monosem patch sweep`, `estimate` and `compare`: every place alone, exactly, from gradients, or both ways."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ..options import Layers, Machine, OutFile, Printing, layer_numbers, names, option
from ..output import as_json, frame, notice, show
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
    printing: Printing,
    method: Annotated[
        str, option("--method", "NAME", "growing, batched or naive: the same numbers, growing is fastest.")
    ] = "growing",
    top: Top = 10,
    out: OutFile = None,
) -> None:
    """Patch every place alone and measure the answer.

    Writes each activation from one prompt of every pair into the run of the other. The score is the share of the
    difference between clean and corrupted that one place carries.

    Example: monosem patch sweep smollm2 --task ioi --sites z --over layer,head --out heads.html
    """
    from ...patching import sweep as exact

    _run(exact, pairs, cells, machine, printing, top, out, method=method)


def estimate(
    pairs: Pairs,
    cells: Cells,
    machine: Machine,
    printing: Printing,
    steps: Steps = 1,
    top: Top = 10,
    out: OutFile = None,
) -> None:
    """Estimate a sweep from one gradient a pair.

    Attribution patching: fast, and wrong where the model is far from linear; `monosem patch compare` shows how wrong.

    Example: monosem patch estimate smollm2 --task ioi --sites z --over layer,head --out estimate.html
    """
    from ...patching import attribution

    _run(attribution, pairs, cells, machine, printing, top, out, steps=steps)


def compare(
    pairs: Pairs,
    cells: Cells,
    machine: Machine,
    printing: Printing,
    steps: Steps = 1,
    top: Top = 10,
    out: OutFile = None,
) -> None:
    """Check the estimate against the exact sweep.

    Correlations over the places, slope, and the places at which the two differ most.

    Example: monosem patch compare smollm2 --task ioi --n 4 --sites z,mlp_out --over layer
    """
    from ...patching import check_estimate

    pairs.check(cells.metric)
    model = machine.load(pairs.model, printing.silent)
    made = pairs.made(model)
    found = check_estimate(model, made, **cells.arguments(model, made, printing.silent), steps=steps)
    if out is not None:
        found.save(out)
    if printing.json:
        as_json({"summary": found.summary, "cells": found.table})
    else:
        frame(found.summary, "exact sweep and estimate")
        frame(found.disagreements(top), "where they differ most")
    if out is not None and not printing.quiet:
        notice(f"written: {out}")


def _run(
    analysis: Any,
    pairs: Pairs,
    cells: Cells,
    machine: Machine,
    printing: Printing,
    top: int,
    out: Any,
    **options: Any,
) -> None:
    pairs.check(cells.metric)
    model = machine.load(pairs.model, printing.silent)
    made = pairs.made(model)
    found = analysis(model, made, **cells.arguments(model, made, printing.silent), **options)
    if out is not None:
        found.save(out)
    if printing.json:
        as_json(found.table)
    else:
        name = found.metrics[0]
        ends = f"{float(found.clean[name].mean()):.4g} clean, {float(found.corrupted[name].mean()):.4g} corrupted"
        show(f"{made.source or 'pairs'}, {len(made)} pairs, {name}: {ends}")
        frame(found.top(top), f"largest effects of {len(found):,} places, {found.direction}")
    if out is not None and not printing.quiet:
        notice(f"written: {out}")
