"""Models whose circuit is known, and which methods find it: the table of docs/circuits.md.

| organism | where its circuit comes from |
|---|---|
| copying, induction, sorting, brackets | weights set by hand (tests/tiny_planted.py) |
| proportion, balance | programs that tracr compiled (tests/tiny_tracr.py) |
| flags, lookup | GPT-2s of two layers, trained under interchange interventions of edges (tests/tiny_trained.py) |
| gpt-nano-sort | a trained model (--shared) of no known circuit: edges with an exact effect above a tenth stand in |

    python recipes/circuit_organisms.py --out runs/organisms                              # minutes on one core
"""

import argparse
import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from monosem.circuits import EDGE_METHODS, Circuit, attribute, exact, learn_circuit, optimal_ablation, recovery
from monosem.circuits.scores import EdgeScores
from monosem.data import TokenPairs
from monosem.models import Model
from monosem.patching import zero

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_planted import PLANTED, planted
from tiny_tracr import PROGRAMS, compiled
from tiny_trained import CAUSAL, STEPS, trained
from tiny_trained import organism as of_trained

MASKS = ("edge-pruning", "ugs")
METHODS = ["exact", *EDGE_METHODS, "eap-oa", *MASKS]  # eap-oa: eap with optimal constants


def nano_sort(shared: Path) -> tuple[TokenPairs, Model]:
    """minGPT's gpt-nano that sorts six digits 0 to 2 (llm-viz), as GPT-2."""
    held = json.loads((shared / "models/gpt_nano_sort/gpt-nano-sort-model.json").read_text(encoding="utf-8"))
    config = GPT2Config(
        vocab_size=3, n_positions=11, n_embd=48, n_layer=3, n_head=3, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0, activation_function="gelu_new",
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval().requires_grad_(False)
    own = hf.state_dict()
    for name, value in held.items():
        if not isinstance(value, dict) or "data" not in value or name not in own:
            continue
        tensor = torch.frombuffer(bytearray(base64.b64decode(value["data"])), dtype=torch.float32)
        shape = own[name].shape
        turned = len(shape) == 2 and name.split(".")[-2] in ("c_attn", "c_proj", "c_fc")  # minGPT has linear layers
        own[name] = tensor.reshape(shape[::-1]).T if turned else tensor.reshape(shape)
    hf.load_state_dict(own)
    model = Model(hf, name="gpt-nano-sort")
    rows = torch.randint(0, 3, (400, 2, 6), generator=torch.Generator().manual_seed(0))
    clean, other = ([[*row, *sorted(row)[:2]] for row in rows[:, side].tolist()] for side in (0, 1))
    chosen = [(a, b) for a, b in zip(clean, other) if sorted(a[:6])[2] != sorted(b[:6])[2]][:16]
    sides = [model.tokens(torch.tensor(side), mask=torch.ones(len(side), 8)) for side in map(list, zip(*chosen))]
    right, wrong = ([sorted(row[:6])[2] for row in side] for side in zip(*chosen))
    return TokenPairs(*sides, torch.tensor(right), torch.tensor(wrong)), model


def found_by(method: str, model: Model, pairs: TokenPairs, truth: Circuit, corruption: Any) -> EdgeScores:
    """Scores of a row of the table; of learnt masks, whether an edge is kept."""
    options: dict[str, Any] = {"corruption": corruption, "quiet": True, "batch_size": len(pairs)}
    if method == "exact":
        return exact(model, pairs, **options)
    if method == "eap-oa":
        best = optimal_ablation(model, pairs, steps=20, batch_size=len(pairs), quiet=True)
        return attribute(model, pairs, "eap", **(options | {"corruption": best.corruption}))
    if method in MASKS:
        kept = learn_circuit(model, pairs, truth.n_edges, method, **options)  # type: ignore[arg-type]
        return EdgeScores(kept.graph, kept.edges.double(), method)
    return attribute(model, pairs, method, **options)


def organism(name: str, out: Path, shared: Path | None, steps: int) -> tuple[TokenPairs, Circuit, Model]:
    """Pairs, the known circuit, and the model."""
    if name in PLANTED:
        return planted(name)
    if name in PROGRAMS:
        return compiled(name)[:3]
    if name in CAUSAL:
        began = time.process_time()
        hf, right = trained(name, steps, out)
        seconds = time.process_time() - began
        print(f"{name}: {seconds:.0f} s of processor time; shares right: {json.dumps(right)}", flush=True)
        return of_trained(name, hf)
    if shared is None:
        raise SystemExit("gpt-nano-sort is read from --shared FOLDER/models/gpt_nano_sort")
    pairs, model = nano_sort(shared)
    logits = model.run(pairs.clean, logits="last").logits
    assert logits is not None
    print(f"gpt-nano-sort answers {int((logits.argmax(-1) == pairs.right).sum())} of {len(pairs)} right", flush=True)
    known = exact(model, pairs, quiet=True)
    large = known.values.abs() > 0.1 * abs(known.clean - known.corrupted)
    return pairs, Circuit(known.graph, large & known.graph.real), model


def measured(name: str, methods: list[str], pairs: TokenPairs, truth: Circuit, model: Model) -> list[dict[str, Any]]:
    """A row a method, against zeros and against the corrupted prompts."""
    rows = []
    for label, corruption in (("zero", zero()), ("prompts", None)):
        if label == "zero" and name in ("gpt-nano-sort", *CAUSAL):
            continue  # their circuits are of prompts
        for method in methods:
            if name == "gpt-nano-sort" and method in MASKS:
                continue  # its four edges lie on no path: no mask of them answers
            began = time.process_time()
            scores = found_by(method, model, pairs, truth, corruption)
            seconds, found = time.process_time() - began, recovery(scores, truth)
            rows.append({
                "organism": name, "corruption": label, "method": method, "edges": truth.n_edges,
                "of": truth.graph.n_edges, "auroc": found.auroc.value, "precision": found.precision, "s": seconds,
            })  # fmt: skip
    return rows


def main(out: Path, names: list[str], methods: list[str], shared: Path | None, steps: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += measured(name, methods, *organism(name, out, shared, steps))
        pd.DataFrame(rows).to_csv(out / "organisms.csv", index=False)
        print(f"{name} done", flush=True)
    table = pd.DataFrame(rows)
    table["cell"] = [f"{row.auroc:.2f}, {row.precision:.2f}" for row in table.itertuples()]
    wide = table.pivot(index="method", columns=["organism", "corruption"], values="cell").loc[methods]
    wide.columns = [f"{name}, {label}" for name, label in wide.columns]
    wide["seconds"] = [f"{table.loc[table['method'] == method, 's'].sum():.1f}" for method in methods]
    print("| method | " + " | ".join(wide.columns) + " |\n|---|" + "--:|" * len(wide.columns))
    for method, cells in zip(methods, wide.fillna("").to_numpy().tolist()):
        print(f"| `{method}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/organisms"))
    parser.add_argument("--shared", type=Path, help="folder with models/gpt_nano_sort")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--organisms", nargs="+", default=[*PLANTED, *PROGRAMS, *CAUSAL], help="also gpt-nano-sort")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    given = parser.parse_args()
    main(given.out, given.organisms, given.methods, given.shared, given.steps)
