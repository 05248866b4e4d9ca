"""Running circuits: the empty one is the corrupted run, the full one the clean run, and one in between by hand."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from monosem.circuits import SHARES, Circuit, EdgeScores, Graph, cmd, cpr, curve, faithfulness, recovery, running
from monosem.circuits.graph import EVERYWHERE
from monosem.circuits.running import run_circuits, run_masks
from monosem.circuits.selection import sizes_of
from monosem.errors import BadInput, Mismatch
from monosem.models import Model
from monosem.patching import mean, positional_mean, zero
from tiny import tiny_model
from tiny_circuits import FAMILIES, batch_of, random_pairs, wide

CORRUPTIONS = {"prompt": None, "zero": zero(), "mean": mean(), "positional mean": positional_mean()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_empty_is_corrupted_and_full_is_clean(family: str, corruption: str) -> None:
    model = wide(family)
    pairs = random_pairs(model)
    batch = batch_of(model, pairs, corruption=CORRUPTIONS[corruption])
    graph = batch.wiring.graph
    empty, full = run_circuits(batch, [Circuit.empty(graph), Circuit.full(graph)])
    (alone,) = run_circuits(batch, [Circuit.full(graph)])
    clean = model.run(pairs.clean, logits="last").logits
    torch.testing.assert_close(full, clean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(alone, clean, rtol=1e-10, atol=1e-10)
    if CORRUPTIONS[corruption] is None:
        corrupted = model.run(pairs.corrupted, logits="last").logits
        torch.testing.assert_close(empty, corrupted, rtol=1e-10, atol=1e-10)
        assert (clean - corrupted).abs().max() > 0.1


def by_hand(model: Model, clean: Tensor, corrupted: Tensor, kept: set[str]) -> Tensor:
    """GPT-2, slot by slot: every slot's stream is written out as a sum, and every head computed with plain torch."""
    hf, cfg = model.hf.transformer, model.cfg
    heads, width = cfg.n_heads, cfg.d_head

    def embed(ids: Tensor) -> Tensor:
        return hf.wte(ids) + hf.wpe(torch.arange(len(ids)))

    def writes(layer: int, head: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        block = hf.h[layer]
        normed = [block.ln_1(x) for x in (q, k, v)]
        columns = [slice(i * 32 + head * width, i * 32 + (head + 1) * width) for i in range(3)]
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        q, k, v = (x @ weight[:, at] + bias[at] for x, at in zip(normed, columns))
        scores = q @ k.T / width**0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1) @ v @ block.attn.c_proj.weight[head * width : (head + 1) * width]

    def walk(stream_of) -> dict[str, Tensor]:
        written = {}
        for layer in range(cfg.n_layers):
            for head in range(heads):
                name = f"a{layer}.h{head}"
                written[name] = lambda name=name, layer=layer, head=head: writes(
                    layer, head, *(stream_of(f"{name}<{kind}>") for kind in "qkv")
                )
            written[f"m{layer}"] = lambda layer=layer: hf.h[layer].mlp(hf.h[layer].ln_2(stream_of(f"m{layer}")))
        return written

    graph = Graph.of_sizes(cfg.n_layers, heads)
    held: dict[str, dict[str, Tensor]] = {"corrupted": {"input": embed(corrupted)}, "now": {"input": embed(clean)}}

    def stream(which: str, slot: str) -> Tensor:
        column = graph.slots.index(slot)
        total = torch.zeros_like(embed(clean))
        for row in graph.real[:, column].nonzero()[:, 0].tolist():
            name = graph.sources[row]
            use = which if which == "corrupted" or f"{name}->{slot}" in kept else "corrupted"
            total = total + held[use][name]
        layer = cfg.n_layers if slot == "logits" else int(slot[1])
        biased = layer + (slot[0] == "m")
        return total + sum(hf.h[number].attn.c_proj.bias for number in range(biased))

    for which in ("corrupted", "now"):
        for name, compute in walk(lambda slot, which=which: stream(which, slot)).items():
            held[which][name] = compute()
    return model.hf.lm_head(hf.ln_f(stream("now", "logits"))[-1])


@pytest.mark.parametrize("seed", range(3))
def test_a_random_circuit_is_what_its_definition_gives(seed: int) -> None:
    model = wide("gpt2")
    pairs = random_pairs(model, (6, 4), seed)
    batch = batch_of(model, pairs)
    graph = batch.wiring.graph
    draw = torch.rand(graph.shape, generator=torch.Generator().manual_seed(seed)) < (0.15, 0.5, 0.9)[seed]
    circuit = Circuit(graph, draw & graph.real)
    kept = {name for name, index in graph.names() if circuit.edges[index]}
    (found,) = run_circuits(batch, [circuit])
    with torch.no_grad():
        for row, logits in enumerate(found):
            ids = [torch.tensor(side.rows()[row]) for side in (pairs.clean, pairs.corrupted)]
            torch.testing.assert_close(logits, by_hand(model, *ids, kept), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_that_lead_nowhere_change_nothing(family: str) -> None:
    model = wide(family)
    batch = batch_of(model, random_pairs(model))
    graph = batch.wiring.graph
    edges = (torch.rand(graph.shape, generator=torch.Generator().manual_seed(1)) < 0.1) & graph.real
    circuit = Circuit(graph, edges)
    assert circuit.pruned().n_edges < circuit.n_edges
    one, other = run_circuits(batch, [circuit, circuit.pruned()])
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def in_turn(product, block: Tensor, weights: Tensor, *parts: Tensor) -> Tensor:
    """Each part's own product, one added to the other, with whatever autograd keeps of them."""
    shares = weights.split([len(part) for part in parts], dim=2)
    return torch.stack([product(share, part) for share, part in zip(shares, parts)]).sum(0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_sums_of_a_branch_at_once_are_the_sums_of_each_part(
    family: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sources' sums are one product, whose gradient goes to each part; in the slow form each part's is added."""
    model, places = wide(family), tuple(map(str, range(5))) if share > 0.5 else EVERYWHERE
    batch = batch_of(model, random_pairs(model, (5, 5)), places)
    graph = batch.wiring.graph
    draw = torch.rand((3, *graph.shape), generator=torch.Generator().manual_seed(3))
    masks = (draw * (draw < share) * graph.real).to(model.dtype).requires_grad_()

    def with_slopes() -> tuple[Tensor, Tensor]:
        logits = run_masks(batch, masks, grad=True)
        return logits.detach(), torch.autograd.grad(logits.sin().sum(), masks)[0]

    logits, slopes = with_slopes()
    with torch.no_grad():
        torch.testing.assert_close(run_masks(batch, masks), logits, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(running._Product, "apply", in_turn)
    slow_logits, slow_slopes = with_slopes()
    assert slow_slopes.abs().max() > 1e-3
    torch.testing.assert_close(logits, slow_logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slopes, slow_slopes, rtol=1e-8, atol=1e-10)


def test_what_was_written_goes_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when Python next looks for circles: at smollm2's size that is half a gigabyte a run."""
    batch = batch_of(wide("llama"), random_pairs(wide("llama")))
    circuit = Circuit.full(batch.wiring.graph)
    held: list[weakref.ref] = []
    logits = running._CircuitRun.logits

    def noting(run: running._CircuitRun) -> Tensor:
        held.extend([weakref.ref(run.block), weakref.ref(run.other)])
        return logits(run)

    monkeypatch.setattr(running._CircuitRun, "logits", noting)
    gc.disable()
    try:
        run_circuits(batch, [circuit, circuit])
        assert [one() for one in held] == [None, None]
    finally:
        gc.enable()


def test_places_run_apart() -> None:
    """An edge kept at every position is the edge; kept at none, it is corrupted."""
    model = wide("llama")
    pairs = random_pairs(model, (5, 5))
    places = tuple(map(str, range(5)))
    whole, apart = batch_of(model, pairs), batch_of(model, pairs, places)
    edges = (
        torch.rand(whole.wiring.graph.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    ) & whole.wiring.graph.real
    one = run_circuits(whole, [Circuit(whole.wiring.graph, edges)])
    same = run_circuits(apart, [Circuit(apart.wiring.graph, edges.expand(5, -1, -1).clone())])
    torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-10)
    early = edges.expand(5, -1, -1).clone()
    early[4] = False  # nothing at the last token, which the logits read
    (last,) = run_circuits(apart, [Circuit(apart.wiring.graph, early)])
    torch.testing.assert_close(last, apart.other_logits, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- numbers
STORED = {  # f at MIB's ten sizes, GPT-2 on IOI, as its result files hold them, and the CPR there
    1.1942: (0, 0.068, 0.464, 0.824, 0.992, 1.149, 1.206, 1.271, 1.314, 1),
    1.8331: (0.099, 0.427, 1.443, 1.798, 2.030, 2.066, 2.124, 2.140, 2.131, 1),
}


@pytest.mark.parametrize("published", STORED)
def test_cpr_is_mibs(published: float) -> None:
    assert cpr(SHARES, STORED[published]) == pytest.approx(published, abs=6e-4)  # f is rounded to three digits


def test_cmd_is_the_area_between_the_curve_and_one() -> None:
    f = STORED[1.8331]
    weights = (0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25)
    assert cmd(SHARES, f) == pytest.approx(sum(w * abs(1 - x) for w, x in zip(weights, f)))
    assert cmd(SHARES, [1.0] * 10) == 0
    assert cpr(SHARES, [0.0] * 9 + [1.0]) == pytest.approx(0.25)  # the floor
    with pytest.raises(BadInput, match="one value a share"):
        cpr(SHARES, [1.0])


def test_faithfulness_is_a_ratio_of_means_and_kl_a_sum_over_the_vocabulary() -> None:
    model = tiny_model("llama")
    pairs = random_pairs(model, (6, 6, 4))
    graph = Graph.of(model)
    half = Circuit(graph, (torch.rand(graph.shape, generator=torch.Generator().manual_seed(0)) < 0.5) & graph.real)
    found = faithfulness(model, pairs, [Circuit.empty(graph), half, Circuit.full(graph)], batch_size=2, quiet=True)
    batch = batch_of(model, pairs)
    logits = run_circuits(batch, [half])[0]
    means = [float((x[:, 5] - x[:, 9]).mean()) for x in (logits, batch.other_logits, batch.clean_logits)]
    assert found.shares().tolist() == pytest.approx([0, (means[0] - means[1]) / (means[2] - means[1]), 1], abs=1e-4)
    p, q = batch.clean_logits.log_softmax(-1), logits.log_softmax(-1)
    assert float(found.kl()[1]) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-5)
    assert found.table["edges"].tolist()[:3] == [0, half.n_edges, graph.n_edges]


def test_a_curve_has_both_ways_of_choosing() -> None:
    model = tiny_model("gpt2")
    pairs = random_pairs(model)
    values = torch.randn((graph := Graph.of(model)).shape, generator=torch.Generator().manual_seed(0)) * graph.real
    scores = EdgeScores(graph, values, "random")
    shares = (0.1, 0.5, 1.0)
    found = curve(model, pairs, scores, shares=shares, quiet=True)
    sizes = sizes_of(graph, shares)
    circuits = {f"{n} {a}": scores.top_n(n, absolute=a) for a in (False, True) for n in sizes[:2]}
    alone = faithfulness(model, pairs, circuits, quiet=True).shares().tolist()
    assert found.cpr == pytest.approx(cpr(shares, [*alone[:2], 1.0]), abs=1e-4)
    assert found.cmd == pytest.approx(cmd(shares, [*alone[2:], 1.0]), abs=1e-4)
    assert len(found.table) == 6
    assert len(found.plot().data) == 2


def test_circuits_of_another_graph_are_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(Mismatch, match="is not gpt2's"):
        faithfulness(model, random_pairs(model), Circuit.full(Graph.of_sizes(2, 2)), quiet=True)
    llama = tiny_model("llama")
    with pytest.raises(BadInput, match="by query head"):
        faithfulness(llama, random_pairs(llama), Circuit.full(Graph.of(llama, grouped=False)), quiet=True)


def test_recovery_of_a_known_circuit() -> None:
    graph = Graph.of_sizes(2, 2)
    truth = Circuit.of(graph, ["input->a0.h0<v>", "a0.h0->m1", "m1->logits"])
    perfect = EdgeScores(graph, truth.edges.double(), "truth")
    upside_down = EdgeScores(graph, 1 - truth.edges.double(), "wrong")
    assert (recovery(perfect, truth).auroc.value, recovery(perfect, truth).precision) == (1.0, 1.0)
    assert recovery(upside_down, truth).auroc.value == 0.0
    draw = torch.randint(0, 4, graph.shape, generator=torch.Generator().manual_seed(0)).double()
    some = recovery(EdgeScores(graph, draw, "ties"), truth).auroc.value
    inside, outside = draw[truth.edges], draw[graph.real[None] & ~truth.edges]
    wins = [(x > y) + 0.5 * (x == y) for x in inside.tolist() for y in outside.tolist()]
    assert some == pytest.approx(sum(wins) / len(wins), abs=1e-6)
    with pytest.raises(BadInput, match="nothing to tell apart"):
        recovery(perfect, Circuit.full(graph))
