"""ACDC, RelP, evidence, stability and the check against exact scores."""

from dataclasses import replace

import pytest
import torch

from monosem.circuits import (
    EDGE_METHODS,
    Circuit,
    EdgeScores,
    Graph,
    acdc,
    attribute,
    compare_scores,
    evidence,
    exact,
    stability,
)
from monosem.circuits.methods import Options
from monosem.circuits.relevance import rules
from monosem.circuits.running import run_circuits
from monosem.errors import BadInput, Mismatch
from monosem.metrics import kl
from monosem.models import Site
from tiny import tiny_model
from tiny_circuits import FAMILIES, batch_of, logit_gap, random_pairs, wide


def one_by_one(batch, threshold: float, start: Circuit) -> Circuit:
    """ACDC as it is written down: an edge at a time, one run each."""

    def loss(circuit: Circuit) -> float:
        return float(kl(batch.clean_logits, run_circuits(batch, [circuit])[0]).mean())

    circuit, graph = start, start.graph
    now = loss(circuit)
    for slot in reversed(range(graph.shape[2])):
        for source in reversed(range(graph.shape[1])):
            if circuit.edges[0, source, slot]:
                edges = circuit.edges.clone()
                edges[0, source, slot] = False
                without = replace(circuit, edges=edges)
                if loss(without) - now < threshold:
                    circuit, now = without, loss(without)
    return circuit.pruned()


@pytest.mark.parametrize("threshold", [3e-4, 1e-3])
def test_acdc_tries_several_edges_and_decides_one_by_one(threshold: float) -> None:
    model = wide("gpt2")
    pairs = random_pairs(model, (5, 4))
    start = attribute(model, pairs, "eap", metric=logit_gap, quiet=True).greedy(60)
    expected = one_by_one(batch_of(model, pairs), threshold, start)
    found = acdc(model, pairs, threshold, start=start, batch_size=1, quiet=True)
    assert torch.equal(found.edges, expected.edges)
    assert 0 < found.n_edges < start.n_edges


def test_acdc_needs_a_threshold_above_zero() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(BadInput, match="above 0"):
        acdc(model, random_pairs(model), 0.0, quiet=True)


# ---------------------------------------------------------------------- RelP
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_what_flows_into_an_mlp_flows_out_of_it(family: str) -> None:
    """Input times gradient of an MLP's slot is output times gradient of what it writes, where nothing has a bias."""
    model = wide(family)
    batch = batch_of(model, random_pairs(model))
    with rules(model) as edits:
        found = batch.slopes([0.0], edits=edits, inner=True)
        out = [Site("mlp_out", layer) for layer in model.layers()]
        run = model.run(batch.pairs.clean, capture=[*out, "resid_pre.0"], edits=edits, logits="last", grad=True)
        slopes = torch.autograd.grad(logit_gap(run.logits, batch.pairs, None).sum(), [run[site] for site in out])
    real = batch.pairs.clean.mask
    for part in batch.wiring.graph.reads:
        if part.kind == "whole":
            inward = (found.of(part, real, held=True)[0] * batch.clean.streams[batch.wiring.reads(part)][real]).sum(-1)
            outward = (run[out[part.layer]] * slopes[part.layer]).sum(-1)[real].detach()
            torch.testing.assert_close(inward, outward, rtol=1e-4, atol=1e-5)
            assert outward.abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_change_no_value_and_leave_nothing_behind(family: str) -> None:
    model = wide(family)
    pairs = random_pairs(model)
    before = model.run(pairs.clean, logits="last").logits
    eap = attribute(model, pairs, "eap", metric=logit_gap, quiet=True)
    with rules(model) as edits:
        within = model.run(pairs.clean, edits=edits, logits="last").logits
    torch.testing.assert_close(within, before)
    relp = attribute(model, pairs, "relp", metric=logit_gap, quiet=True)
    assert (relp.values - eap.values).abs().max() > 1e-2
    assert torch.equal(attribute(model, pairs, "eap", metric=logit_gap, quiet=True).values, eap.values)
    assert relp.values.isfinite().all()


# ---------------------------------------------------------------------- evidence
def test_evidence_is_what_its_runs_say() -> None:
    model = wide("llama")
    pairs = random_pairs(model, (6, 6, 5))
    circuit = attribute(model, pairs, "eap-ig", metric=logit_gap, quiet=True).greedy(60)
    found = evidence(model, pairs, circuit, sets=3, metric=logit_gap, quiet=True)
    batch, full = batch_of(model, pairs), Circuit.full(circuit.graph)

    def mean(one: Circuit) -> float:
        return float(logit_gap(run_circuits(batch, [one])[0], pairs, None).mean())

    top, bottom = mean(full), mean(Circuit.empty(circuit.graph))
    assert found.sufficiency.value == pytest.approx((mean(circuit) - bottom) / (top - bottom))
    assert found.necessity.value == pytest.approx((top - mean(circuit.complement())) / (top - bottom))
    for row in found.completeness.itertuples():
        assert row.left == pytest.approx((row.model - bottom) / (top - bottom))
    row = found.minimality[found.minimality["set"] == -1].iloc[0]
    fell = mean(circuit) - mean(circuit.without(circuit.out_of(row["node"])))
    assert row["share"] == pytest.approx(abs(fell) / abs(top - bottom))
    assert len(found.minimality) == len([node for node in circuit.nodes if node != "input"])
    whole = evidence(model, pairs, full, sets=3, metric=logit_gap, quiet=True)
    assert (whole.sufficiency.value, whole.necessity.value) == pytest.approx((1, 1))
    assert whole.completeness["gap"].max() == pytest.approx(0, abs=1e-9)
    assert {"PN", "PS"} & set(found.table["number"])
    for table, column in ((found.completeness, "gap"), (found.minimality, "share")):
        assert ((table["low"] <= table[column]) & (table[column] <= table["high"])).all()
        assert (table["high"] - table["low"]).max() > 1e-3
    same = evidence(model, pairs[[0, 0]], circuit, sets=2, nodes=2, metric=logit_gap, quiet=True)
    for table, column in ((same.completeness, "gap"), (same.minimality, "share")):  # equal pairs leave no doubt
        assert table["low"].tolist() == pytest.approx(table[column].tolist())
        assert table["high"].tolist() == pytest.approx(table[column].tolist())


def test_an_empty_circuit_has_no_evidence() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(BadInput, match="circuit with edges"):
        evidence(model, random_pairs(model), Circuit.empty(Graph.of(model)), quiet=True)


# ---------------------------------------------------------------------- resampling and exact scores
def test_circuits_of_equal_pairs_are_stable() -> None:
    model = tiny_model("gpt2")
    pairs = random_pairs(model, (5, 5))
    same = pairs[[0, 0, 0, 0]]
    found = stability(model, same, 30, "eap", draws=5, group=1, quiet=True)
    assert found.overlaps == (1.0,) * 5
    assert torch.equal(found.core(1.0).edges, found.circuit.edges)
    other = stability(model, random_pairs(model, (5, 6, 5, 6)), 30, "eap", draws=20, group=1, quiet=True)
    assert min(other.overlaps) < 1
    table = other.table
    assert table["frequency"].between(0, 1).all()
    assert table["in_circuit"].sum() == other.circuit.n_edges
    with pytest.raises(BadInput, match="make 1 groups"):
        stability(model, pairs, 30, "eap", quiet=True)


def test_the_check_has_exact_scores_of_sampled_edges() -> None:
    model = wide("gpt2")
    pairs = random_pairs(model)
    scores = [attribute(model, pairs, name, metric=logit_gap, quiet=True) for name in ("eap", "eap-ig", "random")]
    true = exact(model, pairs, metric=logit_gap, quiet=True)
    found = compare_scores(model, pairs, scores, n=40, metric=logit_gap, quiet=True)
    assert len(found.table) == 40
    for row in found.table.itertuples():
        assert row.exact == pytest.approx(float(true.values[true.graph.index(row.edge)]), abs=1e-9)
    best = scores[0].top(1)["edge"][0]
    assert best in found.table[~found.table["drawn"]]["edge"].tolist()
    summary = found.summary.set_index(["method", "edges"])["pearson"]
    assert summary["eap-ig", "all"] > 0.6 > abs(summary["random", "all"])
    assert len(found.plot().data) == 4
    with pytest.raises(Mismatch, match="different graphs"):
        compare_scores(tiny_model("llama"), pairs, scores, quiet=True)


def test_scores_by_another_tool_can_be_checked() -> None:
    model = tiny_model("gpt2")
    pairs = random_pairs(model)
    batch = batch_of(model, pairs)
    values = EDGE_METHODS["eap"].score(batch, Options()) / len(pairs)
    found = compare_scores(model, pairs, EdgeScores(Graph.of(model), values, "theirs"), n=10, quiet=True)
    assert found.summary["method"].unique().tolist() == ["theirs"]
