"""The organisms that are trained under interchange interventions: their own forward pass is Hugging Face's, and edges
that it exchanges are those that exact patching patches. Their training takes a minute: recipes/circuit_organisms.py."""

import pytest
import torch

from monosem.circuits import exact
from tiny import randomise
from tiny_trained import CAUSAL, edge_names, forward, interchanged, organism, untrained


@pytest.fixture(scope="module")
def hf():
    model = untrained().double().eval().requires_grad_(False)
    randomise(model, 0)
    return model


def test_the_forward_pass_is_hugging_faces(hf) -> None:
    ids = torch.randint(0, 6, (5, 3), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(forward(hf, ids)[0], hf(ids).logits[:, -1], rtol=1e-9, atol=1e-9)


def test_exchanged_edges_are_what_exact_patching_patches(hf) -> None:
    pairs, truth, model = organism("flags", hf)
    scores = exact(model, pairs, quiet=True)
    clean, other = pairs.clean.ids, forward(hf, pairs.corrupted.ids)[1]
    rows, every = torch.arange(len(pairs)), torch.ones(len(pairs), dtype=torch.bool)

    def gap(taken: dict) -> float:
        logits = forward(hf, clean, other, taken)[0]
        return float((logits[rows, pairs.right] - logits[rows, pairs.wrong]).mean())

    moved = {name: gap({}) - gap({name: every}) for name in edge_names()}
    seen = {name: float(scores.values[scores.graph.index(name)]) for name in moved}
    assert seen == pytest.approx(moved, abs=1e-6)
    assert min(abs(seen[name]) for name in truth.table["edge"]) > 1e-4


@pytest.mark.parametrize("name", CAUSAL)
def test_every_edge_of_the_circuit_changes_the_answers_of_all_pairs(name: str) -> None:
    pairs, truth, _ = organism(name, untrained())
    assert len(pairs) == 12
    for number in range(-1, truth.n_edges):
        which = torch.full((len(pairs),), number)
        answers = interchanged(CAUSAL[name], pairs.clean.ids, pairs.corrupted.ids, which)
        assert torch.equal(answers == pairs.right, which < 0)
    assert torch.equal(answers, pairs.wrong)  # the last edge carries all
