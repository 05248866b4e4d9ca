"""Processor seconds for attribution graphs of the embedded model, and for pruning, on one thread.

circuit-tracer does not install beside these packages, so its algorithm stands in, written anew from its description:

- **rows**: the prompt `BATCH` times through a model with frozen patterns, norms and MLPs, its autograd graph kept; for
  each batch of targets a backward pass with a row's vector at the target's place; gradients gathered at every node's
  token and multiplied by what the node writes.
- **pruning**: shares of all rows; influence by powers of the matrix until nothing is left; thresholds by sorting all
  scores; twice, for nodes and edges; then nodes without inputs or outputs go.

Both build the same rows on the same nodes: latents of the shipped skip transcoders, errors, tokens and logits.
Processor time is what is compared, as it depends less on what else runs.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import AttentionInterface

from common import arguments, interleaved, machine, row
from monosem import graphs, load_dictionary, load_model
from monosem.dictionaries import Dictionary
from monosem.graphs import AttributionGraph
from monosem.models import Model

OWN, THEIRS = "monosem", "circuit-tracer's algorithm"
PROMPT = "The capital of Italy is Rome, the capital of France is Paris, and the capital of Spain is called"
BATCH = 64
LAYERS = (10, 20)


# ---------------------------------------------------------------------- rows
def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float = 1.0, **_: Any
) -> Any:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.mT * scaling
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1).detach()
    return (pattern @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("bench-frozen", _attention)


def _norm(module: Any, x: Tensor) -> Tensor:
    return module.weight * x / (x.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt().detach()


class FrozenCopies:
    """The prompt `BATCH` times, everything frozen but the stream.

    Attributes:
        embedded, written: leaves: what enters the first block, and what MLPs add beside skip connections. read: what
            MLPs are given. end: the last stream, normed.
    """

    def __init__(self, model: Model, ids: list[int], coders: dict[int, Dictionary]):
        self.written, self.read, self.model, handles = dict[int, Tensor](), dict[int, Tensor](), model, []
        norms = [one for one in model.hf.modules() if "RMSNorm" in type(one).__name__]
        before = model.hf.config._attn_implementation

        def enter(module: Any, args: Any, kwargs: Any) -> Any:
            self.embedded = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
            return ((self.embedded, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": self.embedded})

        def leave(module: Any, args: Any, output: Tensor, layer: int) -> Tensor:
            self.read[layer] = args[0]
            skip = args[0] @ coders[layer].W_skip.T if layer in coders else 0  # type: ignore[union-attr]
            self.written[layer] = (output - skip).detach().requires_grad_()
            return self.written[layer] + skip

        def last(module: Any, args: Any, output: Tensor) -> None:
            self.end = output

        try:
            for one in norms:
                one.forward = partial(_norm, one)
            model.hf.set_attn_implementation("bench-frozen")
            handles.append(model.blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(norms[-1].register_forward_hook(last))
            handles += [
                block.mlp.register_forward_hook(partial(leave, layer=n)) for n, block in enumerate(model.blocks)
            ]
            with torch.enable_grad():
                model.hf.model(input_ids=torch.tensor([ids] * BATCH), use_cache=False)
        finally:
            model.hf.set_attn_implementation(before)
            for one in norms:
                del one.forward
            for handle in handles:
                handle.remove()


def by_autograd(model: Model, graph: AttributionGraph, coders: dict[int, Dictionary]) -> Tensor:
    """The rows of the graph's nodes, without the bias."""
    nodes, length = graph.nodes, len(graph.tokens)
    held = FrozenCopies(model, graph.facts["ids"], coders)
    latents = {n: nodes[(graph.kinds == "latent") & (nodes.layer == n)] for n in coders}
    places = {n: torch.tensor(one["position"].to_numpy()) for n, one in latents.items()}
    numbers = {n: torch.tensor(one["index"].to_numpy()) for n, one in latents.items()}
    writes, left = dict[int, Tensor](), dict[int, Tensor]()
    for n, coder in coders.items():
        values = torch.tensor(latents[n]["activation"].to_numpy(), dtype=torch.float32)
        writes[n] = values[:, None] * coder.W_dec[numbers[n]]
        made = torch.zeros(length, model.cfg.d_model).index_add_(0, places[n], writes[n])
        left[n] = held.written[n][0].detach() - coder.b_dec - made
    left |= {n: one[0].detach() for n, one in held.written.items() if n not in coders}
    columns = nodes[graph.kinds != "bias"]
    found = torch.zeros(len(graph.rows), len(columns))
    at = 0
    jobs = [(held.read[n], places[n], coders[n].W_enc[:, numbers[n]].T) for n in coders]
    ends = model.W_U[:, nodes["index"][graph.kinds == "logit"].tolist()].T.float() - model.W_U.float().mean(1)
    jobs.append((held.end, torch.full((len(ends),), length - 1), ends))
    for read, positions, vectors in jobs:
        for some in torch.arange(len(vectors)).split(BATCH):
            given = torch.zeros_like(read)
            given[torch.arange(len(some)), positions[some]] = vectors[some]
            leaves = [held.embedded, *held.written.values()]
            slopes = torch.autograd.grad(read, leaves, given, retain_graph=True, allow_unused=True)
            slope = {n: one for n, one in zip([-1, *held.written], slopes) if one is not None}
            blocks = [
                (slope[n][: len(some), places[n]] * writes[n]).sum(-1) if n in slope else torch.zeros(len(some), len(w))
                for n, w in writes.items()
            ]
            errors = [
                (slope[n][: len(some)] * left[n]).sum(-1) if n in slope else torch.zeros(len(some), length)
                for n in held.written
            ]
            tokens = (slope[-1][: len(some)] * held.embedded[0].detach()).sum(-1)
            row_ = torch.cat([*blocks, *errors, tokens], 1)
            found[at + some, : row_.shape[1]] = row_
        at += len(vectors)
    return found


def difference(graph: AttributionGraph, rows: Tensor) -> float:
    """How far rows are apart at most, relative to the largest edge."""
    own = graph.edges[:, torch.tensor(graph.kinds != "bias")]
    return float((own - rows).abs().max() / own.abs().max())


# ---------------------------------------------------------------------- pruning
def random_graph(n: int, layers: int = 30, seed: int = 0) -> AttributionGraph:
    """Latents in layers, errors and tokens, logits; edges as heavy-tailed as real ones."""
    draw = torch.Generator().manual_seed(seed)
    units, errors, tokens, logits = n - 20 * layers - 30, 20 * layers, 20, 10
    kinds = ["latent"] * units + ["error"] * errors + ["token"] * tokens + ["logit"] * logits
    depth = [layers * i // units for i in range(units)] + [i // 20 for i in range(errors)] + [-1] * tokens
    nodes = pd.DataFrame({"id": [str(i) for i in range(n)], "kind": kinds, "depth": [*depth, *[layers] * logits]})
    nodes = nodes.assign(layer=nodes["depth"], position=0, index=range(n), activation=1.0, label="", probability=0.1)
    rows = torch.cat([torch.arange(units), torch.arange(n - logits, n)])
    deep = torch.tensor(nodes["depth"].to_numpy())
    edges = (
        torch.empty(len(rows), n).log_normal_(0, 2, generator=draw) * torch.randn(len(rows), n, generator=draw).sign()
    )
    edges *= deep[rows][:, None] > deep
    return AttributionGraph(nodes, edges, rows, edges.sum(-1), torch.full((logits,), 1 / logits), [""] * 20, "random")


def by_powers(graph: AttributionGraph, share: float = 0.8, edge_share: float = 0.98) -> int:
    """Nodes that are left."""
    n = len(graph.nodes)
    matrix = torch.zeros(n, n)
    matrix[graph.rows] = graph.edges
    always = torch.tensor((graph.kinds == "token") | (graph.kinds == "logit"))
    weights = torch.zeros(n)
    weights[graph.rows[graph.logit_rows]] = graph.weights

    def shares(m: Tensor) -> Tensor:
        m = m.abs()
        return m / m.sum(1, keepdim=True).clamp(min=1e-10)

    def influence(m: Tensor) -> Tensor:
        total, now = torch.zeros(n), weights @ m
        while bool(now.any()):
            total += now
            now = now @ m
        return total

    def threshold(values: Tensor, wanted: float) -> Tensor:
        ordered = values.sort(descending=True).values
        reached = ordered.cumsum(0) / ordered.sum()
        return ordered[int(torch.searchsorted(reached, wanted))]

    scores = influence(shares(matrix))
    kept = (scores >= threshold(scores, share)) | always
    matrix[~kept] = 0
    matrix[:, ~kept] = 0
    part = shares(matrix)
    edges = part * (influence(part) + weights)[:, None]
    there = edges >= threshold(edges.flatten(), edge_share)
    left = kept.clone()
    while True:
        there &= left[:, None] & left
        fed, used = there.any(1) | torch.tensor(graph.kinds != "latent"), there.any(0)
        now = left & (always | (used & fed))
        if torch.equal(now, left):
            return int(left.sum())
        left = now


# ---------------------------------------------------------------------- the run
def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    packages = ["torch", "transformers", "monosem"]
    found: dict[str, Any] = {"machine": machine(1, packages), "rows": []}
    model = load_model("smollm2", dtype="float32", quiet=True)
    coders = {n: load_dictionary(f"smollm2/transcoder.{n}") for n in LAYERS[: 1 if options.tiny else None]}
    ids = model.tokens(PROMPT).rows()[0][: 6 if options.tiny else 20]
    given: list[Any] = [*coders.values()]

    def add(case: str, contestants: dict[str, Callable[[], Any]], apart: dict[str, float], rounds: int) -> None:
        seconds = interleaved(contestants, rounds, warm=False, clock=time.process_time)
        for name in contestants:
            found["rows"].append({"case": case, "apart": apart.get(name)} | row(name, 1, seconds, OWN))
            options.out.write_text(json.dumps(found, indent=1))

    latents = partial(
        graphs.attribution_graph, model, [ids], given, n_nodes=8000, neurons="none", everywhere=True, memory="8GB",
        quiet=True,
    )  # fmt: skip
    graph = latents()
    theirs = partial(by_autograd, model, graph, coders)
    apart = {OWN: 0.0, THEIRS: difference(graph, theirs())}
    case = f"{int((graph.kinds == 'latent').sum()):,} latents of {len(coders)} transcoders, {len(ids)} tokens"
    add(case, {OWN: latents, THEIRS: theirs}, apart, options.rounds)
    whole = random_graph(1000 if options.tiny else 10_000)
    kept = {OWN: len(whole.prune()), THEIRS: by_powers(whole)}

    def prune() -> Any:
        return replace(whole).prune()  # a graph keeps what it computed: each call begins anew

    about = {name: float(abs(one - kept[OWN])) for name, one in kept.items()}
    add(f"pruning {len(whole):,} nodes", {OWN: prune, THEIRS: partial(by_powers, whole)}, about, options.rounds)
    n_nodes = 50 if options.tiny else 2000
    neurons = partial(graphs.attribution_graph, model, [ids], n_nodes=n_nodes, memory="4GB", quiet=True)
    add(f"{n_nodes:,} of the neurons, {len(ids)} tokens", {OWN: neurons}, {}, min(options.rounds, 3))


if __name__ == "__main__":
    main()
