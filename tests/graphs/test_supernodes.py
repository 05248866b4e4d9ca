"""Supernodes that are suggested: units with the same inputs and outputs."""

import pytest
import torch

from monosem import graphs
from monosem.errors import BadInput
from tiny import tiny_model

IDS = [7, 31, 9, 44, 15, 62]


@pytest.fixture
def graph():
    return graphs.attribution_graph(tiny_model("llama"), [IDS], n_nodes=40, quiet=True)


def test_units_with_the_same_edges_are_one_supernode(graph):
    units = torch.tensor(graph.kinds == "neuron").nonzero().flatten()
    layer = torch.tensor(graph.nodes.layer.tolist())[units] == 1
    a, b, other = units[layer][:3].tolist()
    graph.edges[b], graph.edges[:, b] = graph.edges[a] * 2, graph.edges[:, a] * 3  # rows of units are in their order
    groups = graphs.suggest_supernodes(graph, 0.999)
    names = graph.nodes.id
    (pair,) = groups.values()
    assert pair == [names[a], names[b]]
    assert next(iter(groups)).startswith("1: layer 1 at ")
    assert names[other] not in pair


def test_turned_round_is_not_the_same(graph):
    units = torch.tensor(graph.kinds == "neuron").nonzero().flatten()
    a, b = units[torch.tensor(graph.nodes.layer.tolist())[units] == 1][:2].tolist()
    graph.edges[b], graph.edges[:, b] = -graph.edges[a], graph.edges[:, a]
    assert graphs.suggest_supernodes(graph, 0.999) == {}


def test_groups_are_of_units_and_a_lower_bound_makes_more(graph):
    few, many = (graphs.suggest_supernodes(graph, bound) for bound in (0.9, 0.2))
    grouped = [one for ids in many.values() for one in ids]
    assert sum(map(len, few.values())) <= len(grouped)
    assert len(grouped) == len(set(grouped)) > 1
    assert set(graph.kinds[[graph.numbers[one] for one in grouped]]) == {"neuron"}
    graphs.intervene(graph, dict.fromkeys(many, 0.0), supernodes=many)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, float("nan")])
def test_wrong_bounds_are_refused(graph, wrong):
    with pytest.raises(BadInput, match="similarity="):
        graphs.suggest_supernodes(graph, wrong)
