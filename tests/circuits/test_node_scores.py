"""AtP and AtP*: closed forms against softmax, node scores against edits of the pattern and gradients taken apart."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosem import edits
from monosem.circuits import Graph, node_scores
from monosem.circuits.nodes import key_effects, query_pattern
from monosem.errors import BadInput
from monosem.models import Model, Site
from tiny import tiny_model
from tiny_circuits import logit_gap, random_pairs, wide


@settings(max_examples=30, deadline=None)
@example(seed=6681, size=39.0, sink=False)
@given(seed=st.integers(0, 10_000), size=st.floats(0.1, 40.0), sink=st.booleans())
def test_closed_forms_are_softmax(seed: int, size: float, sink: bool) -> None:
    size = min(size, 8.0) if sink else size  # a sink's share is known to its rounding, times e^|change|
    draw = torch.Generator().manual_seed(seed)
    scores, change, slope = (torch.randn(2, 3, 5, 5, generator=draw, dtype=torch.float64) for _ in range(3))
    scores, change = scores * size, change * size / 4
    hidden = torch.ones(5, 5).triu(1).bool()

    def pattern(s: Tensor) -> Tensor:
        s = s.masked_fill(hidden, -torch.inf)
        if not sink:
            return s.softmax(-1)
        return torch.cat([s, torch.zeros(*s.shape[:-1], 1, dtype=s.dtype)], -1).softmax(-1)[..., :-1]

    p = pattern(scores)
    torch.testing.assert_close(query_pattern(p, change), pattern(scores + change), rtol=1e-6, atol=1e-9)
    found = key_effects(p, change, slope)
    for t in range(5):
        moved = scores.clone()
        moved[..., t] += change[..., t]
        expected = ((pattern(moved) - p) * slope).sum(-1)
        torch.testing.assert_close(found[..., t], expected, rtol=1e-6, atol=1e-9)


def gradient(model: Model, pairs, site: Site) -> tuple[Tensor, Tensor]:
    run = model.run(pairs.clean, capture=site, logits="last", grad=True)
    (slope,) = torch.autograd.grad(logit_gap(run.logits, pairs, None).sum(), run[site])
    return run[site].detach(), slope


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_atp_is_difference_times_gradient(family: str) -> None:
    model = wide(family)
    pairs = random_pairs(model, (6, 6))
    found = node_scores(model, pairs, "atp", metric=logit_gap, quiet=True).table.set_index("node")
    for site, nodes in ((Site("z", 1), "a1.h{}"), (Site("k", 2), "a2.kv{}<k>"), (Site("q", 0), "a0.h{}<q>")):
        value, slope = gradient(model, pairs, site)
        other = model.run(pairs.corrupted, capture=site, logits=False)[site]
        effects = -((other - value) * slope).sum((1, 3))
        for head in range(effects.shape[1]):
            row = found.loc[nodes.format(head)]
            assert row["effect"] == pytest.approx(float(effects[:, head].mean()), rel=1e-4, abs=1e-6)
            assert row["score"] == pytest.approx(float(effects[:, head].abs().mean()), rel=1e-4, abs=1e-6)
    assert len(found) == len(Graph.of(model).sources) + 3 * (4 + 2 + 2)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_queries_and_keys_go_through_a_pattern_that_the_model_computes(family: str) -> None:
    """The layer's pattern is read from runs with one query, or one key of one position, of the other run."""
    model, layer = wide(family), 1
    pairs = random_pairs(model, (5, 5))
    found = node_scores(model, pairs, "atp*", metric=logit_gap, quiet=True).table.set_index("node")
    p, slope = gradient(model, pairs, Site("pattern", layer))
    other = model.run(pairs.corrupted, capture=[f"rot_q.{layer}", f"rot_k.{layer}"], logits=False)

    def through(site: str, head: int, position: int | None) -> Tensor:
        value = model.run(pairs.clean, capture=site, logits=False)[site].clone()
        where = slice(None) if position is None else position
        value[:, where, head] = other[site][:, where, head]
        run = model.run(pairs.clean, capture=f"pattern.{layer}", edits=[edits.patch(site, value)], logits=False)
        return -((run[f"pattern.{layer}"] - p) * slope).sum((1, 2, 3))

    query = through(f"rot_q.{layer}", 2, None).mean()
    assert found.loc[f"a{layer}.h2<q>", "effect"] == pytest.approx(float(query), rel=1e-4, abs=1e-6)
    key = sum(through(f"rot_k.{layer}", 1, position).mean() for position in range(5))
    assert found.loc[f"a{layer}.kv1<k>", "effect"] == pytest.approx(float(key), rel=1e-4, abs=1e-6)


def test_dropped_gradients_are_gradients_without_a_layer() -> None:
    model = wide("gpt2")
    pairs = random_pairs(model, (5, 5))
    found = node_scores(model, pairs, "atp*", metric=logit_gap, quiet=True).table.set_index("node")
    site = Site("mlp_out", 0)
    other = model.run(pairs.corrupted, capture=site, logits=False)[site]
    sizes = []
    for layer in range(3):
        held = [edits.Edit(Site(name, layer), lambda x, moment: x.detach(), "held") for name in ("attn_out", "mlp_out")]
        run = model.run(pairs.clean, capture=site, edits=held, logits="last", grad=True)
        total = logit_gap(run.logits, pairs, None).sum()
        (slope,) = torch.autograd.grad(total, run[site], allow_unused=True)
        sizes.append(torch.zeros(2) if slope is None else ((other - run[site].detach()) * slope).sum((1, 2)).abs())
    assert found.loc["m0", "score"] == pytest.approx(float(sum(sizes).mean()) / 2, rel=1e-5, abs=1e-8)


def test_batches_do_not_change_nodes_and_names_are_checked() -> None:
    model = wide("llama")
    pairs = random_pairs(model, (6, 4, 5))
    one, three = (node_scores(model, pairs, metric=logit_gap, batch_size=n, quiet=True).table for n in (1, 3))
    assert one["score"].tolist() == pytest.approx(three["score"].tolist(), rel=1e-6, abs=1e-9)
    with pytest.raises(BadInput, match="'atp' or 'atp\\*'"):
        node_scores(tiny_model("gpt2"), pairs, "at", quiet=True)  # type: ignore[arg-type]
