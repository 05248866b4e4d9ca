"""Seconds for an activation patching sweep of resid_pre, [30 layers x 16 positions], on the embedded model.

Every contestant patches the same cells of the same pair, one at a time, and gives the logit difference after each. The
values of every timed call are compared. Contestants that run the whole model for every cell spend the same on each, so
most of them do only some layers, and their seconds are scaled up to all; TransformerLens' own sweep is timed in full.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import patching as lens_patching

import peers
from common import arguments, interleaved, machine, row
from monosem import load_model, patching
from monosem.data import TokenPairs
from monosem.models import Model
from monosem.models.loading.catalogue import EMBEDDED
from monosem.models.loading.embedded import ensure

CLEAN = "When John and Mary went to the shop, John gave the bag of apples to"
# every token from the first on is in another context; and the usual case, where only the tokens from one name on are
FROM_THE_FIRST = "While Paul and Anna went to the shop, Kevin gave the bag of apples to"
FROM_THE_TENTH = "When John and Mary went to the shop, Mary gave the bag of apples to"
RIGHT, WRONG = " Mary", " John"
LAYERS, POSITIONS = 30, 16
BASELINE = "monosem sweep"
SOME = range(0, LAYERS, 6)
SAME = {torch.float32: 2e-3, torch.bfloat16: 0.5}  # largest difference of a logit difference, in nats, still the same

Values = Float[Tensor, "layer pos"]


@dataclass
class Contestant:
    name: str
    run: Callable[[Sequence[int]], Values]
    layers: Sequence[int]
    case: str = "first"  # which of the two pairs


def swept(model: Model, pairs: TokenPairs, layers: Sequence[int], method: str = "growing") -> Values:
    found = patching.sweep(model, pairs, layers=layers, method=method, quiet=True)  # type: ignore[arg-type]
    assert found.method == method, f"{method} is not applicable"
    return next(iter(found.values.values())).reshape(len(layers), POSITIONS).float()


def lens_sweep(model: Any, pairs: TokenPairs, layers: Sequence[int]) -> Values:
    """Its patching module; the metric is the logit difference after the last token."""
    hooks = {f"blocks.{layer}.hook_resid_pre" for layer in layers}
    _, clean = model.run_with_cache(pairs.clean.ids, names_filter=lambda name: name in hooks)
    right, wrong = int(pairs.right[0]), int(pairs.wrong[0])
    cells = pd.DataFrame([(layer, pos) for layer in layers for pos in range(POSITIONS)], columns=["layer", "pos"])
    values = lens_patching.get_act_patch_resid_pre(
        model,
        pairs.corrupted.ids,
        clean,
        lambda logits: logits[0, -1, right] - logits[0, -1, wrong],
        index_axis_names=None,
        index_df=cells,
    )
    return values.reshape(len(layers), POSITIONS).float()


def nnsight_sweep(model: Any, pairs: TokenPairs, layers: Sequence[int]) -> Values:
    """A trace for the clean run, and one for each cell."""
    blocks, head = model.model.layers, model.lm_head
    with model.trace(input_ids=pairs.clean.ids):
        clean = [].save()  # type: ignore[attr-defined]
        for layer in layers:
            clean.append(blocks[layer].input)
    right, wrong, corrupted = int(pairs.right[0]), int(pairs.wrong[0]), pairs.corrupted.ids
    values = []
    for layer, value in zip(layers, clean):
        for pos in range(POSITIONS):
            with model.trace(input_ids=corrupted):
                blocks[layer].input[:, pos] = value[:, pos]
                last = head.output[0, -1].save()
            values.append(last[right] - last[wrong])
    return torch.stack(values).reshape(len(layers), POSITIONS).float()


def contestants(folder: str, dtype: torch.dtype, pairs: dict[str, TokenPairs]) -> list[Contestant]:
    """The second TransformerLens is measured beside monosem alone."""
    model, whole, exact = load_model(folder, dtype=dtype, quiet=True), range(LAYERS), dtype == torch.float32
    sweep, hard = partial(swept, model), pairs["first"]
    found = [Contestant(BASELINE, partial(sweep, hard), whole)]
    lens = partial(lens_sweep, peers.lens(folder, dtype), hard)
    if peers.BRIDGE:
        return [*found, Contestant(peers.LENS_NAME, lens, SOME)]
    found += [
        Contestant("monosem sweep, prompts alike up to the 10th token", partial(sweep, pairs["tenth"]), whole, "tenth"),
        Contestant("monosem, a run a cell", partial(sweep, hard, method="naive"), SOME),
        Contestant(peers.LENS_NAME, lens, whole if exact else SOME),
    ]
    if exact:
        nnsight = partial(nnsight_sweep, peers.traced(folder, dtype), hard)
        found.append(Contestant(f"{peers.NNSIGHT_NAME}, a trace a cell", nnsight, SOME))
    return found


def truths(folder: str, pairs: dict[str, TokenPairs], layers: Sequence[int]) -> dict[str, Values]:
    """monosem's sweep in float32, which every other way has to agree with; NaN where not asked for."""
    model, found = load_model(folder, quiet=True), {}
    for case, pair in pairs.items():
        found[case] = torch.full((LAYERS, POSITIONS), torch.nan)
        found[case][list(layers)] = swept(model, pair, layers)
    return found


def measure(
    chosen: list[Contestant], truth: dict[str, Values], dtype: torch.dtype, rounds: int
) -> list[dict[str, Any]]:
    def error(c: Contestant, layers: Sequence[int], values: Values) -> float:
        worst = float((values - truth[c.case][list(layers)]).abs().max())
        assert worst < SAME[dtype], f"{c.name} does not compute the same: {worst} off in {dtype}"
        return worst

    found: dict[str, list[Values]] = {c.name: [] for c in chosen}
    for c in chosen:  # also the untimed call
        print(f"{dtype} {c.name}: differs by {error(c, [18], c.run([18])):.1e}", flush=True)
    timed = {c.name: lambda c=c: found[c.name].append(c.run(c.layers)) for c in chosen}
    seconds = interleaved(timed, rounds, warm=False)
    scaled = {c.name: [s * LAYERS / len(c.layers) for s in seconds[c.name]] for c in chosen}
    return [
        {
            "dtype": str(dtype).removeprefix("torch."),
            "cells": len(c.layers) * POSITIONS,
            "error": max(error(c, c.layers, values) for values in found[c.name]),
        }
        | row(c.name, LAYERS * POSITIONS, scaled, BASELINE)
        for c in chosen
    ]


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    os.environ["TQDM_DISABLE"] = "1"
    found: dict[str, Any] = {"machine": machine(options.threads, peers.PACKAGES)}
    folder = str(ensure(EMBEDDED["smollm2"]))
    model = load_model(folder, quiet=True)
    others = {"first": FROM_THE_FIRST, "tenth": FROM_THE_TENTH}
    pairs = {case: TokenPairs.of(model, [CLEAN], [text], [RIGHT], [WRONG]) for case, text in others.items()}
    assert pairs["first"].clean.ids.shape == (1, POSITIONS)
    truth = truths(folder, pairs, [18] if options.tiny else range(LAYERS))
    rounds, found["rows"] = max(1, options.rounds // 3), []
    for dtype in SAME:
        chosen = contestants(folder, dtype, pairs)
        if options.tiny:
            chosen = [replace(c, layers=[18]) for c in chosen]
        found["rows"] += measure(chosen, truth, dtype, rounds)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
