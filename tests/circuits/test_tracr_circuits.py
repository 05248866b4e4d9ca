"""Programs that tracr compiled: the model answers as tracr's own does, and scores find the edges of its weights."""

import pytest
import torch

from monosem.circuits import attribute, exact, faithfulness, recovery
from monosem.patching import zero
from tiny_tracr import PROGRAMS, compiled


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_model_answers_as_tracrs_own(name: str) -> None:
    pairs, truth, model, answers = compiled(name)
    logits = model.run(pairs.clean, logits="last").logits[:, 0]
    torch.testing.assert_close(logits, torch.tensor(answers, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    assert logits.std() > 0.1
    found = faithfulness(model, pairs, [truth, truth.complement()], corruption=zero(), quiet=True)
    assert found.shares().tolist() == pytest.approx([1, 0], abs=1e-6)


@pytest.mark.parametrize("name", PROGRAMS)
def test_scores_against_zero_find_the_edges_of_the_weights(name: str) -> None:
    """Queries and keys only leave out the first token, so that their scores are small, but above all others'."""
    pairs, truth, model, _ = compiled(name)
    for method in ("exact", "eap", "eap-ig"):
        if method == "exact":
            scores = exact(model, pairs, corruption=zero(), quiet=True)
        else:
            scores = attribute(model, pairs, method, corruption=zero(), batch_size=24, quiet=True)
        found = recovery(scores, truth)
        assert (found.auroc.value, found.precision) == (1.0, 1.0)
