"""Circuits that were put into weights: found whole against zero, and the part that differs against prompts."""

import pytest
import torch

from monosem.circuits import Circuit, attribute, exact, faithfulness, learn_circuit, recovery
from monosem.data import TokenPairs
from monosem.patching import zero
from tiny_planted import copying, induction

PLANTED = {"copying": copying, "induction": induction}


def planted(name: str) -> tuple[TokenPairs, Circuit, object]:
    model, truth, prompts, answers = PLANTED[name]()
    wrong = [row[1] if row[1] != answer else row[2] for row, answer in zip(prompts, answers)]
    draw = torch.Generator().manual_seed(5)
    others = [torch.randperm(12, generator=draw)[:8].tolist() for _ in prompts]
    sides = [model.tokens(torch.tensor(side), mask=torch.ones(len(side), 8)) for side in (prompts, others)]
    return TokenPairs(*sides, torch.tensor(answers), torch.tensor(wrong)), truth, model


@pytest.mark.parametrize("name", PLANTED)
def test_the_model_answers_by_its_circuit_alone(name: str) -> None:
    pairs, truth, model = planted(name)
    logits = model.run(pairs.clean, logits="last").logits
    assert torch.equal(logits.argmax(-1), pairs.right)
    found = faithfulness(model, pairs, [truth, truth.complement()], corruption=zero(), quiet=True)
    assert found.shares().tolist() == pytest.approx([1, 0], abs=1e-6)


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("method", ["eap", "eap-ig", "relp", "eap-gp", "exact"])
def test_scores_against_zero_find_it_all(name: str, method: str) -> None:
    pairs, truth, model = planted(name)
    if method == "exact":
        scores = exact(model, pairs, corruption=zero(), quiet=True)
    else:
        scores = attribute(model, pairs, method, corruption=zero(), batch_size=12, quiet=True)
    found = recovery(scores, truth)
    assert (found.auroc.value, found.precision) == (1.0, 1.0)
    assert torch.equal(scores.top_n(truth.n_edges).edges, truth.edges)


@pytest.mark.parametrize("name", PLANTED)
def test_edges_that_carry_the_same_on_both_sides_have_no_score_against_prompts(name: str) -> None:
    pairs, truth, model = planted(name)
    scores = exact(model, pairs, quiet=True)
    same = [edge for edge in truth.table["edge"] if edge.startswith("input->a0") and edge.endswith(("<q>", "<k>"))]
    moved = {edge: abs(float(scores.values[scores.graph.index(edge)])) for edge in truth.table["edge"]}
    assert max(moved[edge] for edge in same) < 0.05 * max(moved.values())


@pytest.mark.parametrize("method", ["edge-pruning", "ugs"])
def test_learnt_masks_keep_the_planted_edges(method: str) -> None:
    pairs, truth, model = planted("copying")
    found = learn_circuit(model, pairs, truth.n_edges, method, steps=120, corruption=zero(), batch_size=12, quiet=True)
    assert torch.equal(found.edges, truth.edges)
