"""Files of graphs: circuit-tracer's own, ours and back, and files that are damaged."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch

from monosem import graphs
from monosem.errors import BadFile
from monosem.graphs.influence import largest_share
from tiny import model_of

# ten nodes, written by circuit-tracer 0.5.0; its scores for them, and its cumulative influences in the file
THEIRS = Path(__file__).parent / "circuit_tracer_graph.json"
REPLACEMENT, COMPLETENESS = 0.616875, 0.860555


@pytest.fixture(scope="module")
def ours():
    return graphs.attribution_graph(model_of("llama"), "the cat sat on the mat", n_nodes=60)


def test_scores_and_influences_are_circuit_tracers():
    graph = graphs.read_graph(THEIRS)
    assert graph.replacement == pytest.approx(REPLACEMENT, abs=1e-6)
    assert graph.circuit_tracer_completeness == pytest.approx(COMPLETENESS, abs=1e-6)
    theirs = {node["node_id"]: node["influence"] for node in json.loads(THEIRS.read_text())["nodes"]}
    made = {node["node_id"]: node["influence"] for node in graphs.graph_json(graph)["nodes"]}
    assert made.keys() == theirs.keys()
    for one, expected in theirs.items():
        assert made[one] == (None if expected is None else pytest.approx(expected, abs=1e-6))


def test_a_graph_of_errors_alone_is_not_complete():
    """circuit-tracer calls such a graph half complete."""
    graph = graphs.attribution_graph(model_of("llama"), "the cat sat", neurons="none")
    graph.edges[:, torch.tensor(graph.kinds == "token")] = 0
    assert graph.completeness == pytest.approx(0, abs=1e-6)
    assert graph.circuit_tracer_completeness == pytest.approx(0.5, abs=1e-6)
    assert graph.replacement == 0


def test_ours_come_back(ours, tmp_path):
    back = graphs.read_graph(ours.save(tmp_path / "graph.json"))
    assert list(back.nodes.id) == list(ours.nodes.id)
    assert list(back.nodes.kind) == list(ours.nodes.kind)
    torch.testing.assert_close(back.edges, ours.edges.double())
    assert back.tokens == ours.tokens
    for name, score in ours.scores.items():
        assert back.scores[name] == pytest.approx(score, abs=1e-5)
    assert len(set(back.nodes.id)) == len(back.nodes)


def test_the_file_is_as_viewers_read_it(ours, tmp_path):
    file = json.loads(ours.save(tmp_path / "graph.json").read_text())
    theirs = json.loads(THEIRS.read_text())
    assert theirs["metadata"].keys() <= file["metadata"].keys()
    assert theirs["qParams"].keys() == file["qParams"].keys()
    assert all(node.keys() == theirs["nodes"][0].keys() for node in file["nodes"])
    ids = {node["node_id"] for node in file["nodes"]}
    assert len(ids) == len(file["nodes"])
    assert all({link["source"], link["target"]} <= ids for link in file["links"])
    logit = file["nodes"][-1]
    assert logit["clerp"].startswith('Output "')
    assert logit["layer"] == "4"  # the number of layers, and one


def test_ids_of_two_nodes_are_refused(tmp_path):
    """circuit-tracer writes the error of layer 3 at token 1 as it writes latent 3 of layer 0 there."""
    file = json.loads(THEIRS.read_text())
    file["nodes"].append(copy.deepcopy(file["nodes"][2]) | {"node_id": "0_3_1", "layer": "3"})
    (tmp_path / "twice.json").write_text(json.dumps(file))
    with pytest.raises(BadFile, match="'0_3_1' is the id of two nodes"):
        graphs.read_graph(tmp_path / "twice.json")


def test_sums_beyond_all_numbers_are_refused_and_a_graph_without_links_is_pruned(tmp_path):
    unit = {"node_id": "0_3_0", "layer": "0", "ctx_idx": 0, "feature_type": "cross layer transcoder"}
    last = {"node_id": "1_1_0", "layer": "1", "ctx_idx": 0, "feature_type": "logit"}
    file = {"metadata": {"prompt_tokens": ["a"]}, "nodes": [unit, last], "links": []}
    path = tmp_path / "graph.json"
    huge = {"source": "0_3_0", "target": "1_1_0", "weight": 1e308}
    for more in ({"links": [huge] * 3}, {"monosem": {"bias": {"1_1_0": float("inf")}}}):
        path.write_text(json.dumps(file | more))
        with pytest.raises(BadFile, match=r"infinity|bias"):
            graphs.read_graph(path)
    path.write_text(json.dumps(file))
    assert len(graphs.read_graph(path).prune().nodes) == 1  # the logit
    assert float(largest_share(torch.zeros(40), 0.8, most=10)) == 0


def test_a_graph_that_would_fill_the_memory_is_refused(tmp_path):
    node = {"layer": "0", "ctx_idx": 0, "feature_type": "cross layer transcoder"}
    last = {"node_id": "1_1_0", "layer": "1", "ctx_idx": 0, "feature_type": "logit"}
    nodes = [*({**node, "node_id": f"0_{number}_0"} for number in range(12_000)), last]
    path = tmp_path / "large.json"
    path.write_text(json.dumps({"metadata": {"prompt_tokens": ["a"]}, "nodes": nodes, "links": []}))
    with pytest.raises(BadFile, match=r"a graph of 12,001 nodes needs 1\.15 GB, and .* is the most that is read"):
        graphs.read_graph(path)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    whole = json.loads(THEIRS.read_text())
    draw, path = random.Random(0), tmp_path / "damaged.json"
    values = [None, -1, 10**30, "x", "", [], {}, float("nan"), float("inf"), True]

    def places(value, at=()):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inside in items:
            yield (*at, key)
            yield from places(inside, (*at, key))

    every, refused = list(places(whole)), []
    for _ in range(300):
        file = copy.deepcopy(whole)
        *way, last = draw.choice(every)
        parent = file
        for key in way:
            parent = parent[key]
        if draw.random() < 0.3:
            del parent[last]
        else:
            parent[last] = draw.choice(values)
        path.write_text(json.dumps(file))
        try:
            graph = graphs.read_graph(path)
            assert graph.edges.isfinite().all()
            graphs.graph_json(graph)
        except BadFile as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not [line for line in refused if "\n" in line]
    for cut in (1, 500, len(THEIRS.read_text()) - 2):
        path.write_text(THEIRS.read_text()[:cut])
        with pytest.raises(BadFile):
            graphs.read_graph(path)


@pytest.mark.parametrize("share", [0.1, 0.8, 0.98, 1.0])
@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
def test_the_threshold_of_many_values_is_as_if_all_were_sorted(share, spread):
    draw = torch.Generator().manual_seed(2)
    values = torch.exp(spread * torch.randn(5000, generator=draw, dtype=torch.float64))
    values[::3] = 0
    ordered = values.sort(descending=True).values
    expected = ordered[min(int((ordered.cumsum(0) < share * ordered.sum()).sum()), len(ordered) - 1)]
    found = largest_share(values, share, most=40)
    if share < 1:
        assert float(found) == float(expected)
    else:  # where rounding decides between the last values and the zeros
        assert values[values < found].sum() <= 1e-9 * values.sum()
