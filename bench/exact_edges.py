"""Processor seconds of one edge of the embedded model patched exactly, beside one forward pass of the same prompts.

A hundred edges drawn at random are patched in one call of `circuits.exact`, which begins each run at the block of the
edge and at the first token that differs; what that call takes before its first edge is shared by all of them.
"""

import json
import time
from functools import partial
from typing import Any

import torch

from common import arguments, interleaved, machine, row
from monosem import circuits, data, load_model

EDGES = 100
PASS, EDGE = "a forward pass", "an edge patched exactly"


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(1, ["torch", "transformers", "monosem"]), "rows": []}
    model = load_model("smollm2", dtype="float32", quiet=True)
    graph = circuits.Graph.of(model)
    every = graph.real.flatten().nonzero()[:, 0]
    count = 4 if options.tiny else EDGES
    edges = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:count]]
    for n in (1, 8):
        pairs = data.ioi(model, n=n)
        contestants = {
            PASS: partial(model.run, pairs.clean, logits="last"),
            EDGE: partial(circuits.exact, model, pairs, edges, metric="logit_diff", quiet=True),
        }
        seconds = interleaved(contestants, options.rounds, clock=time.process_time)
        seconds[EDGE] = [one / count for one in seconds[EDGE]]
        tokens = int(pairs.clean.lengths.max())
        case = f"{n} {'pair' if n == 1 else 'pairs'} of up to {tokens} tokens, {count} edges at random"
        found["rows"] += [{"case": case} | row(name, 1, seconds, PASS) for name in contestants]
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
