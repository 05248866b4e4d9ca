"""The whole job on a tiny model, interrupted and gone on with."""

import json
from html import escape
from pathlib import Path

import pytest

from monosem.circuits import faithfulness, find_circuit, load_graph
from monosem.circuits import job as jobs
from monosem.errors import BadFile, BadInput, Mismatch
from monosem.pages import number
from tiny import tiny_model
from tiny_circuits import random_pairs

SETTINGS = {"edges": 60, "check": 8, "sets": 2, "steps": 2, "method": "eap"}


def test_a_job_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    pairs = random_pairs(model, (6, 5, 6, 5))
    whole = find_circuit(model, pairs, folder=tmp_path / "whole", settings=SETTINGS, quiet=True)

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(jobs, "evidence", stop)
        with pytest.raises(KeyboardInterrupt):
            find_circuit(model, pairs, folder=tmp_path / "parts", settings=SETTINGS, quiet=True)
    with monkeypatch.context() as done:
        for name in ("attribute", "compare_scores", "curve"):
            done.setattr(jobs, name, stop)
        again = find_circuit(model, pairs, folder=tmp_path / "parts", settings=SETTINGS, quiet=True)
    assert json.dumps(again.results, sort_keys=True) == json.dumps(whole.results, sort_keys=True)

    page, text = (whole.folder / name for name in ("report.html", "report.md"))
    assert escape(again.results["edges"][0]["edge"]) in page.read_text(encoding="utf-8")
    assert "## Faithfulness by size" in text.read_text(encoding="utf-8")
    read, kept = load_graph(whole.folder / "graph.json", model)
    assert kept.table["edge"].tolist() == whole.circuit.table["edge"].tolist()
    assert read.top(3)["edge"].tolist() == whole.scores.top(3)["edge"].tolist()
    results = whole.results
    chosen = {
        row["circuit"]: whole.scores.greedy(60, absolute=row["circuit"] == "absolute")
        for row in (results["circuit"], results["other_way"])
    }
    assert [*chosen] == ["absolute", "signed"]
    assert chosen["absolute"].edges.equal(whole.circuit.edges)
    run = faithfulness(model, pairs[[2, 3]], chosen, quiet=True)
    for row, score, kl in zip((results["circuit"], results["other_way"]), run.shares().tolist(), run.kl().tolist()):
        assert row["score"] == pytest.approx(score)
        assert row["kl"] == pytest.approx(kl)
        gap = row["clean"] - row["corrupted"]  # ends and value are of the same pairs
        assert row["score"] == pytest.approx((row["value"] - row["corrupted"]) / gap)
    head, rest = text.read_text(encoding="utf-8").split("## Largest edges")
    for part, of in ((head, results["circuit"]), (rest, results["ends"])):
        assert f"is {number(of['clean'])} for clean and {number(of['corrupted'])} for corrupted prompts" in part
    assert whole.results["pairs"] == {"scores": 2, "judged": 2}
    with pytest.raises(Mismatch, match="edges: 60, now 50"):
        find_circuit(model, pairs, folder=tmp_path / "whole", settings=SETTINGS | {"edges": 50}, quiet=True)
    damaged = tmp_path / "whole" / "parts" / "check.json"
    damaged.write_text(damaged.read_text(encoding="utf-8")[:40])
    with pytest.raises(BadFile, match="delete this file, and the same command measures the step again"):
        find_circuit(model, pairs, folder=tmp_path / "whole", settings=SETTINGS, quiet=True)
    damaged.unlink()
    assert find_circuit(model, pairs, folder=tmp_path / "whole", settings=SETTINGS, quiet=True).results == results


def test_what_no_job_can_do(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    pairs = random_pairs(model, (5, 5))
    with pytest.raises(BadInput, match="2 pairs or more"):
        find_circuit(model, pairs[[0]], folder=tmp_path / "a", quiet=True)
    with pytest.raises(BadInput, match="no method 'eapp'"):
        find_circuit(model, pairs, folder=tmp_path / "b", settings={"method": "eapp"}, quiet=True)
    settings = SETTINGS | {"how": "top_n", "edges": 1}
    with pytest.raises(
        BadInput, match="chosen edges lie on a path from the input to the logits: choose more edges, or how=greedy"
    ):
        find_circuit(model, pairs, folder=tmp_path / "c", settings=settings, quiet=True)
