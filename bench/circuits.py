"""Processor seconds and memory for the scores of all edges of the embedded model: EAP, and EAP-IG with five steps.

EAP-IG's own package (commit 795f560, with `'cuda'`, which it hard-codes, replaced by `'cpu'`) runs on TransformerLens
3.9. Its folder is a checkout's `src`, named by EAP_IG. It has slots by query head, whose scores are summed by group; a
metric that sums over the batch takes the place of its mean, as its scores are divided by the number of pairs as well.
All pairs are one batch for both. Memory is read in one step of EAP-IG, as all steps need the same.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from common import arguments, forget_highest, interleaved, machine, resident, row
from monosem import circuits, data, load_model
from monosem.circuits import EdgeScores, Graph
from monosem.data import TokenPairs
from monosem.models import Model
from monosem.models.loading.catalogue import EMBEDDED
from monosem.models.loading.embedded import ensure

STEPS = 5
METHODS = {"eap-ig": "EAP-IG-inputs", "eap": "EAP"}
OWN, THEIRS = "monosem", "EAP-IG"


def pairs_of(model: Model, n: int) -> TokenPairs:
    """IOI prompts of one length, so that nothing is padded, behind a BOS: EAP-IG puts one before every text."""
    found = data.ioi(model, n=4 * n, template="ABBA")
    lengths = found.clean.lengths.tolist()
    usual = max(set(lengths), key=lengths.count)
    found = found[[i for i, length in enumerate(lengths) if length == usual][:n]]
    assert model.tokenizer is not None
    assert found.right is not None
    assert found.wrong is not None
    bos = int(model.tokenizer.bos_token_id)
    sides = [[[bos, *row] for row in side.rows()] for side in (found.clean, found.corrupted)]
    return TokenPairs.of(model, *sides, right=found.right.tolist(), wrong=found.wrong.tolist())


def own(model: Model, pairs: TokenPairs, method: str, steps: int) -> Tensor:
    found = circuits.attribute(
        model, pairs, method, metric="logit_diff", steps=steps, rule="left", batch_size=len(pairs), quiet=True
    )
    return found.values[0]


def theirs(
    lens: Any, graph: Graph, pairs: TokenPairs, texts: tuple[list[str], list[str]], method: str, steps: int
) -> Tensor:
    from eap.attribute import attribute  # type: ignore[import-not-found]
    from eap.graph import Graph as Theirs  # type: ignore[import-not-found]

    def loss(logits: Tensor, clean: Tensor, lengths: Tensor, label: Any) -> Tensor:
        rows = torch.arange(len(logits))
        last = logits[rows, lengths - 1]
        return -(last[rows, pairs.right] - last[rows, pairs.wrong]).sum()

    held = Theirs.from_model(lens)
    attribute(lens, held, [(*texts, None)], loss, METHODS[method], ig_steps=steps, quiet=True)
    fine = Graph.of_sizes(graph.n_layers, graph.n_heads, d_model=graph.d_model)
    values = held.scores.detach().double()[None] * fine.real
    return EdgeScores(fine, values, "EAP-IG").by_group(graph).values[0]


def contestants(
    model: Model, pairs: TokenPairs, method: str, which: list[str], steps: int = STEPS
) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {}
    if OWN in which:
        found[OWN] = partial(own, model, pairs, method, steps)
    if THEIRS in which:
        import eap.attribute  # type: ignore[import-not-found]  # here, so that no timed call has it  # noqa: F401

        import peers

        lens = peers.lens(str(ensure(EMBEDDED["smollm2"])), torch.float32)
        for flag in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"):
            lens.cfg.__dict__[flag] = True
        lens.cfg.ungroup_grouped_query_attention = True
        lens.cfg.default_prepend_bos = False
        texts = tuple([model.text(ids[1:]) for ids in side.rows()] for side in (pairs.clean, pairs.corrupted))
        found[THEIRS] = partial(theirs, lens, Graph.of(model), pairs, texts, method, steps)  # type: ignore[arg-type]
    return found


def kept(scores: dict[str, Tensor], name: str, run: Callable[[], Tensor]) -> None:
    scores[name] = run()


def memory(method: str, name: str, n: int, threads: int) -> float:
    """By how much the highest resident memory of a process rises in one call, in MB."""
    command = [sys.executable, "-W", "ignore", __file__, "--out", os.devnull, "--threads", str(threads)]
    told = os.environ | {"CIRCUITS_MEMORY": f"{method} {name} {n}"}
    return float(subprocess.run(command, check=True, env=told, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(asked: str) -> None:
    method, name, n = asked.split()
    model = load_model("smollm2", dtype="float32", quiet=True)
    (run,) = contestants(model, pairs_of(model, int(n)), method, [name], steps=1).values()
    forget_highest()  # loading needed more than running may
    before = resident("VmRSS")
    run()
    print(resident("VmHWM") - before)


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    if folder := os.environ.get("EAP_IG"):
        sys.path[:0] = folder.split(os.pathsep)
    if asked := os.environ.get("CIRCUITS_MEMORY"):
        measure_memory(asked)
        return
    n = 2 if options.tiny else int(os.environ.get("CIRCUITS_PAIRS", "8"))
    found: dict[str, Any] = {
        "machine": machine(options.threads, ["torch", "transformers", "transformer-lens", "monosem"]), "rows": []
    }  # fmt: skip
    model = load_model("smollm2", dtype="float32", quiet=True)
    pairs = pairs_of(model, n)
    for method in METHODS:
        made = contestants(model, pairs, method, [OWN, THEIRS] if folder else [OWN])
        scores: dict[str, Tensor] = {}  # of the last round: a call of the package takes minutes
        calls = {name: partial(kept, scores, name, run) for name, run in made.items()}
        seconds = interleaved(calls, options.rounds, warm=False, clock=time.process_time)
        largest = float(scores[OWN].abs().max())
        apart = {name: float((one - scores[OWN]).abs().max()) / largest for name, one in scores.items()}
        for name in made:
            about = {
                "case": f"{METHODS[method]}, {n} {'pair' if n == 1 else 'pairs'} of {pairs.clean.ids.shape[1]} tokens",
                "apart": apart[name],
                "pairs": n,
            }
            about["memory"] = memory(method, name, n, options.threads)
            found["rows"].append(about | row(name, n, seconds, OWN))
            options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
