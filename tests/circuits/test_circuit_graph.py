"""The graph: counts against edges that are listed one by one, names, selection, pruning against reachability."""

from itertools import product

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anymodel import tiny_any
from monosem.circuits import Circuit, EdgeScores, Graph
from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from tiny import tiny_model, tiny_tokenizer

PUBLISHED = {  # layers, heads, parallel -> nodes, slots, edges
    "gpt2": ((12, 12, False), (157, 445, 32_491)),
    "pythia-70m": ((6, 8, True), (55, 151, 3_580)),
    "pythia-160m": ((12, 12, True), (157, 445, 32_347)),
    "smollm-135m": ((30, 9, False), (301, 841, 123_211)),
    "qwen2.5-0.5b": ((24, 14, False), (361, 1033, 179_749)),
    "gemma-2-2b": ((26, 8, False), (235, 651, 74_218)),
    "llama-3.1-8b": ((32, 32, False), (1057, 3105, 1_592_881)),
    "interpbench": ((6, 4, False), (31, 79, 1_108)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    (layers, heads, parallel), expected = PUBLISHED[name]
    graph = Graph.of_sizes(layers, heads, parallel=parallel)
    assert (len(graph.sources), len(graph.slots), graph.n_edges) == expected


def listed(layers: int, heads: int, kv: int, parallel: bool) -> set[str]:
    """Every edge, by walking through the blocks."""
    edges, written = set(), ["input"]
    each = "h" if kv == heads else "kv"
    for layer in range(layers):
        slots = [f"a{layer}.h{h}<q>" for h in range(heads)]
        slots += [f"a{layer}.{each}{h}<{kind}>" for kind, h in product("kv", range(kv))]
        edges |= {f"{node}->{slot}" for node in written for slot in slots}
        read = [*written] if parallel else [*written, *(f"a{layer}.h{h}" for h in range(heads))]
        edges |= {f"{node}->m{layer}" for node in read}
        written += [*(f"a{layer}.h{h}" for h in range(heads)), f"m{layer}"]
    return edges | {f"{node}->logits" for node in written}


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("layers", "heads", "kv"), [(1, 2, 2), (2, 4, 2), (3, 6, 1)])
def test_edges_are_the_listed_ones(layers: int, heads: int, kv: int, parallel: bool) -> None:
    graph = Graph.of_sizes(layers, heads, kv, parallel=parallel)
    names = dict(graph.names())
    assert set(names) == listed(layers, heads, kv, parallel)
    assert all(graph.index(name) == index for name, index in names.items())


@pytest.mark.parametrize(
    ("family", "kv", "parallel"),
    [("gpt2", 4, False), ("gptj", 4, True), ("llama", 2, False), ("gemma2", 2, False), ("gpt_neox", 4, True)],
)
def test_a_models_graph_is_the_one_of_its_sizes(family: str, kv: int, parallel: bool) -> None:
    graph = Graph.of(tiny_model(family))
    assert graph == Graph.of_sizes(3, 4, kv, parallel=parallel)
    assert (graph.parallel, graph.grouped) == (parallel, kv < 4)


def test_ungrouped_slots_are_by_query_head() -> None:
    assert Graph.of(tiny_model("llama"), grouped=False) == Graph.of_sizes(3, 4)


def test_models_without_heads_are_refused() -> None:
    with pytest.raises(BadInput, match="circuits are of attention heads and MLPs"):
        Graph.of(Model(tiny_any("mamba"), tiny_tokenizer()))


@pytest.mark.parametrize(
    ("name", "said"), [("a0.h1", "is no edge"), ("a9.h1->logits", "no node"), ("m2->a0.h0<q>", "does not write before")]
)
def test_names_that_no_edge_has(name: str, said: str) -> None:
    with pytest.raises(UnknownName, match=said):
        Graph.of_sizes(3, 2).index(name)


# ---------------------------------------------------------------------- choosing and pruning
def alive(graph: Graph, kept: set[str]) -> set[str]:
    """The kept edges on a path from the input to the logits, by networkx on nodes and slots."""
    net = networkx.DiGraph()
    net.add_nodes_from(["source input", "slot logits"])
    for node, feeds in zip(graph.sources, graph.feeds):
        for slot, yes in zip(graph.slots, feeds.tolist()):
            if yes:
                net.add_edge(f"slot {slot}", f"source {node}")
    for name in kept:
        source, _, slot = name.partition("->")
        net.add_edge(f"source {source}", f"slot {slot}")
    good = networkx.descendants(net, "source input") & networkx.ancestors(net, "slot logits")
    good |= {"source input", "slot logits"}
    return {n for n in kept if {f"source {n.partition('->')[0]}", f"slot {n.partition('->')[2]}"} <= good}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), density=st.floats(0.02, 0.5), kv=st.sampled_from([1, 2, 4]))
def test_pruning_leaves_what_is_on_a_path(seed: int, density: float, kv: int) -> None:
    graph = Graph.of_sizes(3, 4, kv)
    draw = torch.Generator().manual_seed(seed)
    edges = (torch.rand(graph.shape, generator=draw) < density) & graph.real
    circuit = Circuit(graph, edges)
    kept = {name for name, index in graph.names() if edges[index]}
    pruned = circuit.pruned()
    assert {name for name, index in graph.names() if pruned.edges[index]} == alive(graph, kept)
    assert torch.equal(pruned.pruned().edges, pruned.edges)


def test_places_are_crossed_by_keys_and_values_alone() -> None:
    graph = Graph.of_sizes(1, 1).with_places(["first", "last"])
    by_value = ["input->a0.h0<v>@first", "a0.h0->logits@last"]
    by_query = ["input->a0.h0<q>@first", "a0.h0->logits@last"]
    assert Circuit.of(graph, by_value).pruned().n_edges == 2
    assert Circuit.of(graph, by_query).pruned().n_edges == 0


def scored(graph: Graph, values: dict[str, float]) -> EdgeScores:
    numbers = torch.zeros(graph.shape, dtype=torch.float64)
    for name, value in values.items():
        numbers[graph.index(name)] = value
    return EdgeScores(graph, numbers, "by hand")


def test_top_n_may_leave_nothing_where_greedy_connects() -> None:
    graph = Graph.of_sizes(2, 2)
    scores = scored(graph, {"m0->a1.h0<q>": 5.0, "a0.h1->m1": -4.0, "input->logits": 1.0, "input->m0": 3.0})
    empty = scores.top_n(2)
    assert empty.n_edges == 0
    assert "greedy" in empty.notes[0]
    assert scores.greedy(1).table["edge"].tolist() == ["input->logits"]


def greedy_by_rescanning(graph: Graph, scores: EdgeScores, n: int) -> set[str]:
    """The definition: again and again the best edge into the logits or into a node that has been reached."""
    index, open_slots, taken = dict(graph.names()), {"logits"}, list[str]()
    for _ in range(n):
        offered = [e for e in index if e.partition("->")[2] in open_slots and e not in taken]
        if not offered:
            break
        best = min(offered, key=lambda e: (-abs(float(scores.values[index[e]])), index[e]))
        taken.append(best)
        row = graph.sources.index(best.partition("->")[0])
        open_slots |= {slot for slot, yes in zip(graph.slots, graph.feeds[row].tolist()) if yes}
    return alive(graph, set(taken))


@pytest.mark.parametrize("n", [1, 5, 20, 60])
@pytest.mark.parametrize("rounded", [False, True])  # rounded: many ties
def test_greedy_is_its_definition(n: int, rounded: bool) -> None:
    graph = Graph.of_sizes(2, 4, 2)
    values = torch.randn(graph.shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    scores = EdgeScores(graph, (values.round() if rounded else values), "random")
    assert set(scores.greedy(n).table["edge"]) == greedy_by_rescanning(graph, scores, n)


def test_signed_and_absolute_thresholds() -> None:
    graph = Graph.of_sizes(1, 1)
    scores = scored(graph, {"input->logits": -2.0, "input->m0": 1.0, "m0->logits": 1.5})
    assert set(scores.threshold(1.0).table["edge"]) == {"input->logits", "input->m0", "m0->logits"}
    assert set(scores.threshold(1.0, absolute=False).table["edge"]) == {"input->m0", "m0->logits"}
    assert scores.top(1)["edge"].tolist() == ["input->logits"]
    assert scores.top(1, absolute=False)["edge"].tolist() == ["m0->logits"]


@pytest.mark.parametrize("n", [0, -1, 10**6, 2.5])
def test_sizes_that_no_circuit_has(n: int) -> None:
    scores = EdgeScores(graph := Graph.of_sizes(1, 1), torch.zeros(graph.shape), "none")
    for choose in (scores.top_n, scores.greedy):
        with pytest.raises(BadInput, match="a circuit has 1 to"):
            choose(n)


def test_scores_by_query_head_sum_to_scores_by_kv_head() -> None:
    fine, coarse = Graph.of_sizes(2, 4), Graph.of_sizes(2, 4, 2)
    values = torch.randn(fine.shape, dtype=torch.float64) * fine.real
    summed = EdgeScores(fine, values, "random").by_group(coarse)
    for name, index in coarse.names():
        source, _, slot = name.partition("->")
        group = [slot.replace(".kv", ".h")] if ".kv" not in slot else [
            slot.replace(f".kv{g}", f".h{h}") for g in range(2) for h in range(2 * g, 2 * g + 2) if f".kv{g}" in slot
        ]  # fmt: skip
        assert summed.values[index] == pytest.approx(sum(float(values[fine.index(f"{source}->{s}")]) for s in group))
