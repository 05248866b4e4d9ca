"""A learnt mask comes to the share of edges that is asked for, in graphs of any size."""

from types import SimpleNamespace

import pytest
import torch

from monosem.circuits import learning


@pytest.mark.parametrize("n", [200, 20_000])
def test_few_gates_of_many_are_left_open_and_they_are_the_needed_ones(monkeypatch, n):
    """KL is here what the needed gates leave out; the others cost nothing, as most edges of a model."""
    needed, asked, steps = n // 100, n // 50, 300
    share = 6.0 / needed
    monkeypatch.setattr(learning, "run_masks", lambda batch, masks, grad: masks[:, :needed])
    monkeypatch.setattr(learning, "kl", lambda clean, gates: (share * (1 - gates)).sum(-1, keepdim=True))
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    batch = SimpleNamespace(wiring=SimpleNamespace(model=model), clean_logits=None)
    start = SimpleNamespace(edges=torch.ones(n, dtype=torch.bool), n_edges=n)
    gates = learning.GATES["edge-pruning"]
    mask = learning._Learning([batch], start, gates, None, asked, 0.3, 0, 6.0)
    kept = [mask.step(number, steps)[1] for number in range(steps)]
    assert kept[-1] == pytest.approx(asked / n, rel=0.5)
    closed = next(number for number, one in enumerate(kept) if one < 0.5)
    assert max(kept[closed:]) < 0.6  # and they do not open again
    opened = gates.opened(mask.logits.detach())
    assert set(opened.topk(needed).indices.tolist()) == set(range(needed))
