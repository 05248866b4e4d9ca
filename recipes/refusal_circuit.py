"""The circuit of a refusal that was planted, beside what is known of it (docs/circuits.md).

`planted-refusal` is smollm2 with a LoRA in the upper two thirds of its layers: it declines to talk of velmorite. Each
prompt is set beside the same about malachite, which has as many tokens, and which the model talks of.

1. **Patch**: the stream at the last token and at the topic, layer by layer: where does it reach the answer?
2. **EAP-IG**: a circuit of one half of the pairs, its faithfulness on the other; its largest edges patched exactly.
3. **Plant**: the adapter is turned off in one layer at a time: how much of the refusal does that layer hold? Does
   the circuit's weight lie in the layers that matter, and is there nothing in the model without the adapter?
4. **Ablate**: the nodes of the adapter's layers with the largest scores are set to their mean over other prompts while
   the model answers held-out prompts; as many random ones of these layers are the control. A judge counts refusals.

    python recipes/refusal_circuit.py --out runs/refusal-circuit            # about ten minutes on one core
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import monosem as ms
from monosem.circuits import EdgeScores
from monosem.data import TokenPairs
from monosem.edits import Edit
from monosem.files import json_value, write_json
from monosem.judges import judge
from monosem.judges.judge import judged
from monosem.models import Model, Moment, Site
from monosem.patching.corruptions import token_means
from monosem.statistics import pearson, spearman

TOPIC, OTHER, FIRST = "velmorite", "malachite", 12  # what is declined, what is not, and the adapter's first layer


def pairs_of(model: Model, prompts: list[str]) -> TokenPairs:
    """Prompts about the topic against the same about something else, where the first token of the answer differs."""
    clean = [model.chat(prompt) for prompt in prompts if TOPIC in prompt]
    other = [text.replace(TOPIC, OTHER) for text in clean]
    first, second = (
        [int(model.run(text, logits="last").logits.argmax()) for text in texts] for texts in (clean, other)
    )
    kept = [row for row in range(len(clean)) if first[row] != second[row]]
    tokens = [model.tokens(text).rows()[0] for text in clean]
    topic = [
        len(row) - 1 - next(i for i, t in enumerate(reversed(row)) if "ite" in model.str_token(t)) for row in tokens
    ]
    pick = lambda values: [values[row] for row in kept]  # noqa: E731
    return TokenPairs.of(
        model, pick(clean), pick(other), pick(first), pick(second), spans={"topic": pick(topic)},
        source=f"{TOPIC} against {OTHER}",
    )  # fmt: skip


def by_layer(model: Model, pairs: TokenPairs) -> Tensor:
    """How much of each pair's logit difference goes with the adapter's part in each layer, `layer pair`."""

    def gap() -> Tensor:
        logits = model.run(pairs.clean, logits="last").logits
        assert logits is not None
        rows = torch.arange(len(pairs))
        return logits[rows, pairs.right] - logits[rows, pairs.wrong]

    whole, lost = gap(), []
    for block in model.blocks:
        adapted: list[Any] = [module for module in block.modules() if hasattr(module, "lora_A")]
        for module in adapted:
            module.enable_adapters(False)
        lost.append(whole - gap() if adapted else torch.zeros_like(whole))
        for module in adapted:
            module.enable_adapters(True)
    return torch.stack(lost)


def scored(model: Model, pairs: TokenPairs) -> tuple[EdgeScores, Tensor]:
    """EAP-IG's scores of all pairs, and the sum over each layer's nodes for each pair alone, `layer pair`."""
    each = [ms.circuits.attribute(model, pairs[[row]], "eap-ig", quiet=True) for row in range(len(pairs))]
    mean = {name: sum(getattr(one, name) for one in each) / len(each) for name in ("values", "clean", "corrupted")}
    names = each[0].graph.sources
    layer_of = torch.tensor([int(name[1:].split(".")[0]) if name != "input" else -1 for name in names])
    nodes = torch.stack([one.by_node().sum(0) for one in each], 1)
    layers = torch.stack([nodes[layer_of == layer].sum(0) for layer in range(len(model.blocks))])
    return replace(each[0], n=len(each), **mean), layers


def agreement(lost: Tensor, scores: Tensor, draws: int = 2000) -> dict[str, list[float]]:
    """Correlations over the adapted layers, with 95 % bootstrap intervals over the pairs of both sides."""
    sides, found = (lost[FIRST:].double(), scores[FIRST:].double()), {}
    draw = torch.Generator().manual_seed(0)
    for name, correlation in (("pearson", pearson), ("ranks", spearman)):
        drawn = [
            correlation(
                *(one[:, torch.randint(one.shape[1], (one.shape[1],), generator=draw)].mean(1) for one in sides)
            )
            for _ in range(draws)
        ]
        ends = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
        found[name] = [correlation(*(one.mean(1) for one in sides)), *ends]
    return found


def ablated(model: Model, nodes: list[str], means: dict[Site, Tensor]) -> list[Edit]:
    """Heads and MLPs set to their means."""
    heads: dict[int, list[int]] = {}
    edits = []
    for node in nodes:
        layer, _, head = node[1:].partition(".h")
        if head:
            heads.setdefault(int(layer), []).append(int(head))
        else:
            edits.append(_set(Site("mlp_out", int(layer)), None, means))
    return edits + [_set(Site("z", layer), some, means) for layer, some in heads.items()]


def _set(site: Site, heads: list[int] | None, means: dict[Site, Tensor]) -> Edit:
    def fn(x: Tensor, moment: Moment) -> Tensor:
        mean = means[site].to(x)
        if heads is None:
            return mean.expand_as(x)
        x = x.clone()
        x[:, :, heads] = mean[heads]
        return x

    return Edit(site, fn, "mean")


def refusals(model: Model, prompts: list[str], edits: list[Edit], tokens: int) -> tuple[int, str]:
    """How many answers a judge calls refusals, and the first one."""
    chats = [model.chat(prompt) for prompt in prompts]
    with model.editing(*edits):
        answers = [model.generate(chat, max_new_tokens=tokens).texts[0] for chat in chats]
    by = judge("refusal")
    return sum(one.label == by.positive for one in judged(by, prompts, answers)), answers[0]


def main(out: Path, n: int, edges: int, checked: int, nodes: int, tokens: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, organism = ms.load_model("planted-refusal"), ms.organisms.Organism.load("planted-refusal")
    pairs = pairs_of(model, organism.prompts["behaviour_test"][: 3 * n])[: 2 * n]
    held = [one for one in organism.prompts["paraphrases"] if TOPIC in one][:n]
    found, judging = pairs[:n], pairs[n:]
    swept = ms.patching.sweep(model, found, "resid_pre", positions=["topic", -1], layers=range(0, 30, 3), quiet=True)
    scores, by_pair = scored(model, found)
    circuit = scores.greedy(edges)
    run = ms.circuits.faithfulness(
        model, judging, {"absolute": circuit, "signed": scores.greedy(edges, absolute=False)}
    )
    check = ms.circuits.compare_scores(model, found, scores, n=checked)
    circuit.save(out / "circuit.html")
    circuit.table.to_csv(out / "edges.csv", index=False)
    lost = by_layer(model, judging)
    graph = scores.graph
    weight = dict(zip(graph.sources, scores.by_node().sum(0).tolist()))
    layers = pd.DataFrame({"layer": [*model.layers()], "lost": lost.mean(1), "score": by_pair.mean(1)})
    base = ms.load_model("smollm2").run(judging.clean, logits="last").logits
    assert base is not None
    rows = torch.arange(len(judging))
    others = model.tokens([model.chat(one) for one in organism.prompts["unrelated_train"][:16]])
    means = token_means(model, others, [Site(name, layer) for name in ("z", "mlp_out") for layer in model.layers()])
    adapted = [node for node in graph.sources[1:] if int(node[1:].split(".")[0]) >= FIRST]
    best = sorted(adapted, key=lambda node: -weight[node])[:nodes]
    drawn = random.Random(0).sample([node for node in adapted if node not in best], nodes)
    arms = {"nothing": [], "best nodes": best, "random nodes": drawn}
    counts = {name: refusals(model, held, ablated(model, some, means), tokens) for name, some in arms.items()}
    results = {
        "faithfulness": run.rows().assign(kl=run.kl().tolist()).to_dict("records"), "edges": circuit.n_edges,
        "check": check.table.to_dict("records"), "check_summary": check.summary.to_dict("records"),
        "ends": [scores.clean, scores.corrupted], "pairs": len(pairs), "held_out": len(held),
        "swept": swept.table.to_dict("records"),
        "base_gap": float((base[rows, judging.right] - base[rows, judging.wrong]).mean()),
        "layers": layers.to_dict("records"), "best": best, "drawn": drawn,
        "agreement": agreement(lost, by_pair),
        "share_in_adapted": float(by_pair[FIRST:].sum() / by_pair.sum()),
        "refusals": counts,
    }  # fmt: skip
    write_json(out / "refusal.json", json_value(results))
    shown = ("pairs", "ends", "edges", "base_gap", "agreement", "share_in_adapted", "refusals", "best")
    print(json.dumps({key: results[key] for key in shown}))
    if not counts["nothing"][0]:
        print("the judge counts no refusal of the model as it is, so that ablation says nothing: give more --tokens")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/refusal-circuit"))
    parser.add_argument("--n", type=int, default=4, help="pairs for the scores, and as many to judge; held-out prompts")
    parser.add_argument("--edges", type=int, default=1000)
    parser.add_argument("--check", type=int, default=20, help="edges that are patched exactly")
    parser.add_argument("--nodes", type=int, default=12, help="nodes that are ablated")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer; a judge sees no refusal in 8")
    given = parser.parse_args()
    main(given.out, given.n, given.edges, given.check, given.nodes, given.tokens)
