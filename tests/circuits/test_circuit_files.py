"""Graphs as EAP-IG's package writes them, auto-circuit's scores, and files that are broken."""

import json
from pathlib import Path

import pytest
import torch

from monosem.circuits import Circuit, EdgeScores, Graph, load_auto_circuit, load_graph, save_graph
from monosem.errors import BadFile, BadInput, Mismatch
from tiny import tiny_model

CASES = Path(__file__).parents[3] / "shared" / "cases" / "directions-circuits" / "eap_gpt2"


def random_scores(graph: Graph, seed: int = 0) -> EdgeScores:
    values = torch.randn(graph.shape, generator=torch.Generator().manual_seed(seed)).double() * graph.real
    return EdgeScores(graph, values, "random")


@pytest.mark.skipif(not CASES.exists(), reason="the peers' cases are not beside this checkout")
def test_both_of_the_peers_files_are_one_graph(tmp_path: Path) -> None:
    both = [load_graph(CASES / f"graph_top5.{ending}") for ending in ("json", "pt")]
    given = json.loads((CASES / "graph_top5.json").read_text())
    for scores, circuit in both:
        for name, edge in given["edges"].items():
            at = scores.graph.index(name)
            assert float(scores.values[at]) == pytest.approx(edge["score"], abs=1e-9)
            assert bool(circuit.edges[at]) == edge["in_graph"]
        assert circuit.n_edges == 4  # one of the five led nowhere
    again = save_graph(tmp_path / "again.json", *both[0])
    written = json.loads(again.read_text())
    assert written["cfg"] == given["cfg"]
    assert written["nodes"] == given["nodes"]
    assert written["edges"].keys() == given["edges"].keys()


@pytest.mark.parametrize("ending", ["json", "pt"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_what_is_written_is_read_again(ending: str, family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    scores = random_scores(Graph.of(model))
    circuit = scores.greedy(40)
    file = save_graph(tmp_path / f"graph.{ending}", scores, circuit)
    read, kept = load_graph(file, model)
    torch.testing.assert_close(read.values, scores.values, rtol=1e-6, atol=1e-7)
    assert torch.equal(kept.edges, circuit.edges)


def test_scores_of_query_heads_share_their_groups(tmp_path: Path) -> None:
    model = tiny_model("llama")
    graph = Graph.of(model)
    scores = random_scores(graph)
    fine, _ = load_graph(save_graph(tmp_path / "graph.json", scores))
    total = sum(float(fine.values[fine.graph.index(f"m0->a1.h{head}<k>")]) for head in (2, 3))
    assert total == pytest.approx(float(scores.values[graph.index("m0->a1.kv1<k>")]))


@pytest.mark.parametrize("positions", [None, 4])
def test_auto_circuits_scores(positions: int | None, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    graph, draw = Graph.of(model), torch.Generator().manual_seed(0)
    lead = () if positions is None else (positions,)
    held = {}
    for layer in range(3):
        before = 1 + layer * 5
        held |= {f"blocks.{layer}.hook_{x}_input": torch.randn(*lead, 4, before, generator=draw) for x in "qkv"}
        held[f"blocks.{layer}.hook_mlp_in"] = torch.randn(*lead, before + 4, generator=draw)
    held["blocks.2.hook_resid_post"] = torch.randn(*lead, 16, generator=draw)
    torch.save(held, tmp_path / "scores.pt")
    scores = load_auto_circuit(tmp_path / "scores.pt", model)
    at = "" if positions is None else "@2"
    row = held["blocks.1.hook_k_input"] if positions is None else held["blocks.1.hook_k_input"][2]
    assert float(scores.values[scores.graph.index(f"m0->a1.h3<k>{at}")]) == pytest.approx(float(row[3, 5]))
    last = held["blocks.2.hook_resid_post"] if positions is None else held["blocks.2.hook_resid_post"][2]
    assert float(scores.values[scores.graph.index(f"m2->logits{at}")]) == pytest.approx(float(last[15]))
    assert int(scores.values.isnan().sum()) == 0
    assert scores.graph.sources == graph.sources
    torch.save({"blocks.9.hook_q_input": torch.zeros(4, 1)}, tmp_path / "other.pt")
    with pytest.raises(BadFile, match="no module"):
        load_auto_circuit(tmp_path / "other.pt", model)
    torch.save({"blocks.0.hook_q_input": torch.zeros(4, 3)}, tmp_path / "wide.pt")
    with pytest.raises(BadFile, match="slots read"):
        load_auto_circuit(tmp_path / "wide.pt", model)


class Hostile:
    def __reduce__(self):
        return print, ("run",)


BROKEN = {
    "no cfg": {"edges": {}},
    "unknown edge": {
        "cfg": {"n_layers": 1, "n_heads": 1, "d_model": 2},
        "edges": {"x->y": {"score": 1, "in_graph": True}},
    },
    "a long name": {
        "cfg": {"n_layers": 1, "n_heads": 1, "d_model": 2},
        "edges": {"x" * 10**6: {"score": 1, "in_graph": True}},
    },
    "no layers": {"cfg": {"n_layers": 0, "n_heads": 1, "d_model": 2}, "edges": {}},
    "far too large": {"cfg": {"n_layers": 10**9, "n_heads": 1, "d_model": 2}, "edges": {}},
    "infinite": {"cfg": {"n_layers": 1, "n_heads": float("inf"), "d_model": 2}, "edges": {}},
    "words": {"cfg": {"n_layers": "many", "n_heads": 1, "d_model": 2}, "edges": {}},
    "edges is a list": {"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 2}, "edges": []},
    "score is a word": {
        "cfg": {"n_layers": 1, "n_heads": 1, "d_model": 2},
        "edges": {"input->logits": {"score": "high", "in_graph": True}},
    },
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_json_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(json.dumps(BROKEN[case]))
    with pytest.raises(BadFile, match="is no graph of EAP-IG") as refused:
        load_graph(tmp_path / "graph.json")
    assert len(str(refused.value)) < 500


def test_pickles_with_code_and_cut_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"cfg": Hostile()}, tmp_path / "graph.pt")
    with pytest.raises(BadFile, match="could run code"):
        load_graph(tmp_path / "graph.pt")
    assert "run" not in capsys.readouterr().out
    good = save_graph(tmp_path / "good.pt", random_scores(Graph.of_sizes(1, 2)))
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:300])
    with pytest.raises(BadFile, match="truncated"):
        load_graph(tmp_path / "cut.pt")


def test_what_the_files_cannot_hold(tmp_path: Path) -> None:
    scores = random_scores(Graph.of_sizes(1, 1))
    with pytest.raises(BadInput, match=r"\.json or \.pt"):
        save_graph(tmp_path / "graph.csv", scores)
    with pytest.raises(BadInput, match="without places"):
        save_graph(tmp_path / "graph.json", random_scores(Graph.of_sizes(1, 1).with_places(["a", "b"])))
    with pytest.raises(Mismatch, match="another graph"):
        save_graph(tmp_path / "graph.json", scores, Circuit.full(Graph.of_sizes(2, 1)))
    with pytest.raises(Mismatch, match="other nodes than gpt2"):
        load_graph(save_graph(tmp_path / "graph.json", scores), tiny_model("gpt2"))
