"""Models whose circuit is known, and which methods find it: the table of docs/circuits.md.

| organism | where its circuit comes from |
|---|---|
| copying, induction, sorting, brackets | weights set by hand (tests/tiny_planted.py) |
| proportion, balance | programs that tracr compiled (tests/tiny_tracr.py) |
| trained | a GPT-2 of two layers, trained under interchange interventions; its circuit is all edges of its nodes |
| gpt-nano-sort | a trained model (--shared) of no known circuit: edges with an exact effect above a tenth stand in |

    python recipes/circuit_organisms.py --out runs/organisms                              # minutes on one core
"""

import argparse
import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from monosem.circuits import EDGE_METHODS, Circuit, Graph, attribute, exact, learn_circuit, optimal_ablation, recovery
from monosem.circuits.scores import EdgeScores
from monosem.data import TokenPairs
from monosem.models import Model
from monosem.patching import zero

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_planted import PLANTED, planted
from tiny_tracr import PROGRAMS, compiled

V = 6  # tokens of the trained organism: it answers x3 where x1 = x2, and x3 + V where they differ
HEADS, LAYERS, WIDTH, STEPS = 2, 2, 48, 1200
METHODS = ["exact", *EDGE_METHODS, "eap-oa", "edge-pruning", "ugs"]  # eap-oa: eap with optimal constants
CARRIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # node -> the answer when it is taken from another prompt
    "a0.h0": lambda base, source: torch.cat([source[:, :2], base[:, 2:]], 1),
    "m0": lambda base, source: torch.cat([source[:, :2], base[:, 2:]], 1),
    "m1": lambda base, source: source,
}
IDLE = ["a0.h1", "a1.h0", "a1.h1"]  # may be taken from any prompt


def answer(x: Tensor) -> Tensor:
    return x[:, 2] + V * (x[:, 0] != x[:, 1])


def swapped(hf: GPT2LMHeadModel, base: Tensor, source: Tensor, node: str) -> Tensor:
    """Logits of the base prompts with a node's output at the last token from the source prompts."""
    layer, _, head = node[1:].partition(".h")
    block, width = hf.transformer.h[int(layer)], WIDTH // HEADS
    columns = slice(int(head) * width, int(head) * width + width) if head else slice(None)
    module, held = (block.attn.c_proj if head else block.mlp.c_proj), []

    def put(x: Tensor) -> Tensor:
        if not held:
            held.append(x[:, -1, columns])
            return x
        x = x.clone()
        x[:, -1, columns] = held[0]
        return x

    if head:
        handle = module.register_forward_pre_hook(lambda _, args: (put(args[0]),))
    else:
        handle = module.register_forward_hook(lambda _, args, out: put(out))
    try:
        hf(source)
        return hf(base).logits[:, -1]
    finally:
        handle.remove()


def trained(steps: int = STEPS) -> tuple[TokenPairs, Circuit, Model, dict[str, float]]:
    """Behaviour, interchange (Geiger et al. 2021) and idle nodes, one loss each, as SIIT (Gupta et al. 2024)."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=2 * V, n_positions=4, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config)
    optimiser = torch.optim.AdamW(hf.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.randint(0, V, (2, 96, 3))
        same = torch.rand(2, 96) < 0.4
        x[..., 1] = torch.where(same, x[..., 0], x[..., 1])
        return x[0], x[1]

    for step in range(steps):
        base, source = draw()
        node, idle = [*CARRIES][step % len(CARRIES)], IDLE[step % len(IDLE)]
        loss = cross_entropy(hf(base).logits[:, -1], answer(base))
        loss = loss + cross_entropy(swapped(hf, base, source, node), answer(CARRIES[node](base, source)))
        loss = loss + cross_entropy(swapped(hf, base, source, idle), answer(base))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    hf.eval().requires_grad_(False)
    base, source = draw()
    right = {"behaviour": hf(base).logits[:, -1].argmax(-1) == answer(base)}
    right |= {
        node: swapped(hf, base, source, node).argmax(-1) == answer(change(base, source))
        for node, change in (CARRIES | dict.fromkeys(IDLE, lambda base, source: base)).items()
    }
    model = Model(hf, name="trained")
    graph = Graph.of(model)
    inside = {"input", *CARRIES}
    names = [name for name, _ in graph.names() if set(name.split("<")[0].split("->")) <= {*inside, "logits"}]
    base[:12, 1] = base[:12, 0]
    other = base.clone()
    other[:, 1] = (other[:, 0] + 1) % V
    sides = [model.tokens(rows[:12], mask=torch.ones(12, 3)) for rows in (base, other)]
    pairs = TokenPairs(*sides, answer(base)[:12], answer(other)[:12])
    return pairs, Circuit.of(graph, names), model, {name: float(yes.double().mean()) for name, yes in right.items()}


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
    if method in ("edge-pruning", "ugs"):
        kept = learn_circuit(model, pairs, truth.n_edges, method, steps=120, **options)  # type: ignore[arg-type]
        return EdgeScores(kept.graph, kept.edges.double(), method)
    return attribute(model, pairs, method, **options)


def organism(name: str, shared: Path | None, steps: int) -> tuple[TokenPairs, Circuit, Model]:
    """Pairs, the known circuit, and the model."""
    if name in PLANTED:
        return planted(name)
    if name in PROGRAMS:
        return compiled(name)[:3]
    if name == "trained":
        began = time.perf_counter()
        *parts, right = trained(steps)
        print(f"trained in {time.perf_counter() - began:.0f} s; shares right: {json.dumps(right)}", flush=True)
        return tuple(parts)  # type: ignore[return-value]
    if shared is None:
        raise SystemExit("gpt-nano-sort is read from --shared FOLDER/models/gpt_nano_sort")
    pairs, model = nano_sort(shared)
    logits = model.run(pairs.clean, logits="last").logits
    assert logits is not None
    print(f"gpt-nano-sort answers {int((logits.argmax(-1) == pairs.right).sum())} of {len(pairs)} right", flush=True)
    known = exact(model, pairs, quiet=True)
    large = known.values.abs() > 0.1 * abs(known.clean - known.corrupted)
    return pairs, Circuit(known.graph, large & known.graph.real), model


def measured(name: str, pairs: TokenPairs, truth: Circuit, model: Model) -> list[dict[str, Any]]:
    """A row a method, against zeros and against the corrupted prompts."""
    rows = []
    for label, corruption in (("zero", zero()), ("prompts", None)):
        if name == "gpt-nano-sort" and label == "zero":
            continue  # its circuit is of prompts
        for method in METHODS:
            began = time.perf_counter()
            scores = found_by(method, model, pairs, truth, corruption)
            seconds, found = time.perf_counter() - began, recovery(scores, truth)
            rows.append({
                "organism": name, "corruption": label, "method": method, "edges": truth.n_edges,
                "of": truth.graph.n_edges, "auroc": found.auroc.value, "precision": found.precision, "s": seconds,
            })  # fmt: skip
    return rows


def main(out: Path, names: list[str], shared: Path | None, steps: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += measured(name, *organism(name, shared, steps))
        pd.DataFrame(rows).to_csv(out / "organisms.csv", index=False)
        print(f"{name} done", flush=True)
    table = pd.DataFrame(rows)
    table["cell"] = [f"{row.auroc:.2f}, {row.precision:.2f}" for row in table.itertuples()]
    wide = table.pivot(index="method", columns=["organism", "corruption"], values="cell").loc[METHODS]
    wide.columns = [f"{name}, {label}" for name, label in wide.columns]
    wide["seconds"] = [f"{table.loc[table['method'] == method, 's'].sum():.1f}" for method in METHODS]
    print("| method | " + " | ".join(wide.columns) + " |\n|---|" + "--:|" * len(wide.columns))
    for method, cells in zip(METHODS, wide.fillna("").to_numpy().tolist()):
        print(f"| `{method}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/organisms"))
    parser.add_argument("--shared", type=Path, help="folder with models/gpt_nano_sort")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--organisms", nargs="+", default=[*PLANTED, *PROGRAMS, "trained"], help="also gpt-nano-sort")
    given = parser.parse_args()
    main(given.out, given.organisms, given.shared, given.steps)
