"""Circuits that were put into weights: found whole against zero, and the part that differs against prompts."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from monosem.circuits import attribute, exact, faithfulness, learn_circuit, recovery
from monosem.data import TokenPairs
from monosem.models import Model
from monosem.patching import zero
from tiny_planted import PLANTED, planted


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


@pytest.mark.parametrize("name", ["copying", "induction"])
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
    assert method != "edge-pruning" or found.notes == ()


def test_a_mask_that_is_no_circuit_yet_says_so() -> None:
    """Gates that are nearly all open still, and a cut that is further from the model than greedy edges are."""
    pairs, truth, model = planted("copying")
    options = {"corruption": zero(), "batch_size": 5, "quiet": True}
    found = learn_circuit(model, pairs, truth.n_edges, "ugs", steps=10, **options)
    other = attribute(model, pairs, metric="negative_kl", **options).greedy(found.n_edges)
    learnt, chosen = faithfulness(model, pairs, [found, other], **options).kl().tolist()
    assert chosen < learnt
    _, settled, beaten = found.notes
    assert "the mask had not settled: after 10 steps its gates kept 41 edges" in settled
    assert f"{chosen:.2f} nats against {learnt:.2f}" in beaten


def test_a_model_of_three_tokens() -> None:
    """As gpt-nano-sort's: what is tried on a model has no token that it lacks."""
    config = GPT2Config(vocab_size=3, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model = Model(GPT2LMHeadModel(config).eval(), name="three tokens")
    sides = [model.tokens(torch.tensor([row]), mask=torch.ones(1, 4)) for row in ([0, 1, 2, 1], [2, 1, 2, 0])]
    scores = exact(model, TokenPairs(*sides, torch.tensor([0]), torch.tensor([1])), quiet=True)
    assert scores.values[0][scores.graph.real].isfinite().all()
