"""A learnt mask beside the greedy EAP-IG circuit of as many edges, on smollm2 (docs/circuits.md).

    python recipes/learnt_circuit.py --tasks capitals                 # 300 steps: five minutes of one core
    python recipes/learnt_circuit.py --tasks capitals ioi --edges 1000 --steps 300 --out runs/learnt

Both see the first half of the pairs, and are judged on the other. Seconds are processor time of one thread; MB is the
most that the process has held so far, with the model (the greedy circuit comes first). With `--out`, circuits are kept.
What a mask says of itself (not settled, or further from the model than the greedy circuit) stands below its table.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

import monosem as ms
from monosem.circuits import Circuit, EdgeScores
from monosem.data import TASKS
from monosem.models import Model

Made = TypeVar("Made")
HEAD = (
    "| task | circuit | edges | faithfulness (standard error) | KL | shared with the other | s | MB |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|"
)


def measured(make: Callable[[], Made]) -> tuple[Made, str]:
    """What is made, and the end of its row: seconds and MB."""
    start = time.process_time()
    made = make()
    return (
        made,
        f"{time.process_time() - start:.0f} | {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} |",
    )


def as_many(scores: EdgeScores, edges: int) -> Circuit:
    """The greedy circuit whose number of edges, after pruning, comes closest from above."""
    asked = edges
    while (circuit := scores.greedy(asked)).n_edges < edges:
        asked += edges - circuit.n_edges
    return circuit


def rows(
    model: Model, task: str, n: int, edges: int, steps: int, batch: int, out: Path | None
) -> tuple[list[str], list[str]]:
    """Rows of the table, and what the mask says of itself."""
    pairs = TASKS[task](model, n=n)
    seen, others = pairs[: n // 2], pairs[n // 2 :]
    scores, greedy_cost = measured(lambda: ms.circuits.attribute(model, seen, "eap-ig", batch_size=batch, quiet=True))
    learnt, learnt_cost = measured(lambda: ms.circuits.learn_circuit(model, seen, edges, steps=steps, batch_size=batch))
    circuits = {"learnt": learnt, "greedy": as_many(scores, learnt.n_edges)}
    found = ms.circuits.faithfulness(model, others, circuits, batch_size=batch, quiet=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        torch.save({name: circuit.edges for name, circuit in circuits.items()}, out / f"{task}.pt")
    score = found.table[found.table["metric"] != "negative_kl"].set_index("circuit")
    shared = int((learnt.edges & circuits["greedy"].edges).sum())
    costs = {"learnt": learnt_cost, "greedy": greedy_cost}
    made = [
        f"| {task} | {name} | {circuit.n_edges:,} | {score.loc[name, 'score']:.2f} ({score.loc[name, 'score_se']:.2f}) "
        f"| {kl:.2f} | {shared / circuit.n_edges:.0%} | {costs[name]}"
        for (name, circuit), kl in zip(circuits.items(), found.kl().tolist())
    ]
    return made, [f"{task}: {note}" for note in learnt.notes]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["capitals"], choices=list(TASKS))
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--edges", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = ms.load_model("smollm2", dtype="float32")
    print(HEAD)
    notes = []
    for name in args.tasks:
        made, said = rows(lm, name, args.n, args.edges, args.steps, args.batch, args.out)
        print(*made, sep="\n", flush=True)
        notes += said
    print("", *notes, sep="\n")
