"""`monosem patch sweep`, `estimate` and `compare`: every place alone, exactly, from gradients, or both ways."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ..options import Analysis, Layers, Top, layer_numbers, names, option
from ..output import frame, show
from .pairs import Pairs, Positions, positions_of

if TYPE_CHECKING:
    from ...data import TokenPairs

Over = Annotated[str, option("LIST", "Axes that are patched one by one: layer, position, head; others whole.")]
Direction = Annotated[str | None, option("NAME", "denoising: clean into corrupted (default). noising: the other way.")]
Method = Annotated[str, option("NAME", "growing, batched or naive: the same numbers, growing is fastest.")]
Steps = Annotated[int, option("N", "Average the gradients of so many runs between base and source.", min=1, max=10**6)]


@dataclass(frozen=True, kw_only=True)
class Cells(Analysis):
    """Which places of a model are patched, one at a time."""

    sites: Annotated[str, option("LIST", "Such as resid_pre, attn_out,mlp_out or z.")] = "resid_pre"
    over: Over = "layer,position"
    layers: Layers = None
    positions: Positions = None
    direction: Direction = None

    def run(self, analysis: Any, pairs: Pairs, **options: Any) -> "tuple[TokenPairs, Any]":
        """The pairs, and what an analysis of `monosem.patching` says about the cells on them."""
        model, prompts = pairs.load(self)
        result = analysis(
            model,
            prompts,
            sites=names(self.sites),
            over=names(self.over),
            metric=pairs.metric_of(prompts),
            direction=self.direction,
            layers=layer_numbers(self.layers, model.cfg.n_layers),
            positions=positions_of(self.positions),
            quiet=self.silent,
            **options,
        )
        return prompts, result


def sweep(pairs: Pairs, cells: Cells, method: Method = "growing", top: Top = 10) -> None:
    """Patch every place alone and measure the answer.

    Writes each activation from one prompt of every pair into the run of the other. The score is the share of the
    difference between clean and corrupted that one place carries.

    Example: monosem patch sweep smollm2 --task ioi --sites z --over layer,head --out heads.html
    """
    from ...patching import sweep as exact

    _give(cells, *cells.run(exact, pairs, method=method), top)


def estimate(pairs: Pairs, cells: Cells, steps: Steps = 1, top: Top = 10) -> None:
    """Estimate a sweep from one gradient a pair.

    Attribution patching: fast, and wrong where the model is far from linear; `monosem patch compare` shows how wrong.

    Example: monosem patch estimate smollm2 --task ioi --sites z --over layer,head --out estimate.html
    """
    from ...patching import attribution

    _give(cells, *cells.run(attribution, pairs, steps=steps), top)


def compare(pairs: Pairs, cells: Cells, steps: Steps = 1, top: Top = 10) -> None:
    """Check the estimate against the exact sweep.

    Correlations over the places, slope, and the places at which the two differ most.

    Example: monosem patch compare smollm2 --task ioi --n 4 --sites z,mlp_out --over layer
    """
    from ...patching import check_estimate

    _, result = cells.run(check_estimate, pairs, steps=steps)

    def shown() -> None:
        frame(result.summary, "exact sweep and estimate")
        frame(result.disagreements(top), "where they differ most")

    cells.give(result, shown, json={"summary": result.summary, "cells": result.table})


def _give(cells: Cells, prompts: "TokenPairs", result: Any, top: int) -> None:
    def shown() -> None:
        name = result.metrics[0]
        ends = f"{float(result.clean[name].mean()):.4g} clean, {float(result.corrupted[name].mean()):.4g} corrupted"
        show(f"{prompts.source or 'pairs'}, {len(prompts)} pairs, {name}: {ends}")
        frame(result.top(top), f"largest effects of {len(result):,} places, {result.direction}")

    cells.give(result, shown)
