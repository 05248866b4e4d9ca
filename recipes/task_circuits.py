"""Circuits of smollm2 for the tasks that ship, one folder each: report, picture, EAP-IG's graph (docs/circuits.md).

    python recipes/task_circuits.py --out runs/circuits                        # all tasks: half an hour on one core
    python recipes/task_circuits.py --out runs/circuits --tasks pronouns --n 8

Scores are of one half of the pairs, faithfulness and its ends of the other; the largest edges and random ones
are patched exactly, on the first.
Interrupted, the same command goes on. `tasks.md` sets the tasks side by side.
"""

import argparse
from pathlib import Path
from typing import Any

import monosem as ms
from monosem.circuits import Circuit, find_circuit
from monosem.data import TASKS
from monosem.files import replacing


def line(task: str, results: dict[str, Any]) -> str:
    """A row of the table."""
    all_edges = next(row for row in (results["check"] or {"summary": []})["summary"] if row["edges"] == "all")
    largest = ", ".join(f"`{row['edge']}`" for row in results["edges"][:3])
    circuit, curve = results["circuit"], results["curve"]
    return (
        f"| {task} | {circuit['clean']:.2f}, {circuit['corrupted']:.2f} | {len(results['edges'])} | "
        f"{circuit['score']:.2f} | {circuit['kl']:.2f} | {curve['cpr']:.2f} | {curve['cmd']:.2f} | "
        f"{all_edges['pearson']:.2f}, {all_edges['spearman']:.2f} | {largest} |"
    )


def shared_edges(circuits: dict[str, Circuit]) -> list[str]:
    """How many edges each two circuits have in common, of the smaller one."""
    rows = []
    for one, first in circuits.items():
        shares = [
            int((first.edges & other.edges).sum()) / min(first.n_edges, other.n_edges) for other in circuits.values()
        ]
        rows.append(f"| {one} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    return [f"| | {' | '.join(circuits)} |", "|---|" + "--:|" * len(circuits), *rows]


def main(out: Path, tasks: list[str], n: int, settings: dict[str, Any]) -> None:
    model = ms.load_model("smollm2")
    lines, circuits = [], {}
    for task in tasks:
        found = find_circuit(model, TASKS[task](model, n=n), folder=out / task, settings=settings)
        found.circuit.save(out / task / "picture.html")
        circuits[task] = found.circuit
        lines.append(line(task, dict(found.results)))
        head = (
            "| task | clean, corrupted | edges | faithfulness | KL | CPR | CMD | "
            "scores against exact: Pearson, Spearman | largest edges |\n|---|--:|--:|--:|--:|--:|--:|--:|---|"
        )
        with replacing(out / "tasks.md") as temporary:
            temporary.write_text("\n".join([head, *lines, "", *shared_edges(circuits)]) + "\n", encoding="utf-8")
        print(lines[-1], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/circuits"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--n", type=int, default=16, help="pairs of each task")
    parser.add_argument("--edges", type=int, default=1000)
    parser.add_argument("--check", type=int, default=40, help="edges that are patched exactly")
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=16)
    given = parser.parse_args()
    asked = {"edges": given.edges, "check": given.check, "sets": given.sets, "nodes": given.nodes}
    main(given.out, given.tasks, given.n, asked)
