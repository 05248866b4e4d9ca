"""Interventions on nodes: straight effects are the edges, and everything anew is what the model does."""

import pytest
import torch

from monosem import graphs
from monosem.errors import BadInput, UnknownName
from tiny import tiny_model

IDS = [7, 31, 9, 44, 15, 62]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "gpt_neox"])
def graph(request):
    return graphs.attribution_graph(tiny_model(request.param), [IDS], n_nodes=60, tokens=[11, 12], quiet=True)


def test_straight_effects_are_the_edges(graph):
    """A column, measured by a run in which everything else is held: a unit, a token, an error, several at once."""
    nodes = graph.nodes
    picked = [nodes.id[graph.kinds == kind].iloc[at] for kind, at in [("neuron", 5), ("neuron", 40), ("token", 3)]]
    errors = nodes.id[(graph.kinds == "error") & (nodes.layer == 0)].iloc[2]
    for changes in [{picked[0]: 2.0}, {picked[1]: 0.0}, {picked[2]: 1.5}, {errors: 0.0}, dict.fromkeys(picked, -1.0)]:
        table = graphs.intervene(graph, changes, direct=True).table
        size = max(float(table.expected.abs().max()), 0.1)
        assert (table.change - table.expected).abs().max() < 2e-4 * size
        assert table.expected.abs().max() > 0


def test_nothing_changes_where_the_factor_is_one(graph):
    unit = graph.nodes.id[graph.kinds == "neuron"].iloc[3]
    for direct in (True, False):
        found = graphs.intervene(graph, {unit: 1.0}, direct=direct)
        assert found.table.change.abs().max() < 1e-4
        torch.testing.assert_close(found.logits[0], found.logits[1], rtol=0, atol=1e-4)


def test_everything_anew_is_a_run_with_the_neuron_changed(graph):
    node = graph.nodes[graph.kinds == "neuron"].iloc[20]
    model, layer = graph.parts.frozen.model, int(node.layer)
    changed = graphs.intervene(graph, {node.id: 0.0}, freeze_attention=False).logits[1]

    def off(module, args):
        x = args[0].clone()
        x[0, node.position, node["index"]] = 0
        return (x, *args[1:])

    down = {"llama": "down_proj", "gemma2": "down_proj", "gpt2": "c_proj", "gpt_neox": "dense_4h_to_h"}[model.name]
    handle = getattr(model.blocks[layer].mlp, down).register_forward_pre_hook(off)
    try:
        expected = model.hf(input_ids=torch.tensor([IDS])).logits[0, -1]
    finally:
        handle.remove()
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-4)


def test_a_supernode_is_all_its_nodes(graph):
    units = list(graph.nodes.id[graph.kinds == "neuron"].iloc[[4, 9, 30]])
    together = graphs.intervene(graph, {"capital": 0.0}, supernodes={"capital": units})
    apart = graphs.intervene(graph, dict.fromkeys(units, 0.0))
    torch.testing.assert_close(together.logits, apart.logits)


def test_generation_goes_on_from_changed_nodes():
    model = tiny_model("llama")
    graph = graphs.attribution_graph(model, [IDS], n_nodes=60, quiet=True)
    unit = graph.nodes.id[(graph.kinds == "neuron") & (graph.nodes.position == 5)].iloc[0]
    there = graphs.node_edits(graph, {unit: -20.0})
    onwards = graphs.node_edits(graph, {unit: -20.0}, onwards=True)
    plain, once, always = (
        model.generate([IDS], edits=one, max_new_tokens=4).ids.rows()[0] for one in ([], there, onwards)
    )
    first = graphs.intervene(graph, {unit: -20.0}, freeze_attention=False).logits[1].argmax()
    assert plain[: len(IDS)] == IDS
    assert once[len(IDS)] == always[len(IDS)] == int(first)


def test_what_cannot_be_changed_is_refused(tmp_path):
    graph = graphs.attribution_graph(tiny_model("llama"), [IDS], n_nodes=30, quiet=True)
    unit = graph.nodes.id[graph.kinds == "neuron"].iloc[0]
    back = graphs.read_graph(graph.save(tmp_path / "graph.json"))
    for wrong, says in [
        (lambda: graphs.intervene(graph, {}), "changes="),
        (lambda: graphs.intervene(graph, {unit: float("nan")}), "finite"),
        (lambda: graphs.intervene(graph, {"bias": 0.0}), "can be changed"),
        (lambda: graphs.intervene(back, {unit: 0.0}), "from a file"),
    ]:
        with pytest.raises(BadInput, match=says):
            wrong()
    with pytest.raises(UnknownName, match="no node or supernode 'x'"):
        graphs.intervene(graph, {"x": 0.0})
