"""Scores of heads as sums over pairs of nodes: exact in float64, each term against the modules' own weights."""

import pytest
import torch
from frozen_autograd import exact_model

from monosem import graphs
from monosem.errors import BadInput
from tiny import tiny_model

IDS = [7, 31, 9, 44, 15, 62]


def scores_of(model, layer):
    """Before a soft cap, by the eager formula; with all patterns, as all softmaxes are in float32 then."""
    patterns = [f"pattern.{one}" for one in range(model.cfg.n_layers)]
    run = model.run([IDS], capture=[f"rot_q.{layer}", f"rot_k.{layer}", *patterns])
    q, k = run[f"rot_q.{layer}"][0], run[f"rot_k.{layer}"][0]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    module = model.branch("attn", layer).module
    return torch.einsum("qhd,khd->hqk", q, k) * getattr(module, "scaling", q.shape[-1] ** -0.5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3"])
def test_terms_add_up_to_the_score(family):
    model = exact_model(family)
    graph = graphs.attribution_graph(model, [IDS], n_nodes=50, quiet=True)
    for layer, head, query, key in [(0, 0, 3, 1), (1, 2, 5, 5), (2, 3, 4, 0)]:
        scores = scores_of(model, layer)
        found = graphs.qk_attribution(graph, layer, head, query=query, key=key)
        assert float(found.terms.sum()) == pytest.approx(float(scores[head, query, key]), abs=1e-10)
        assert found.score == pytest.approx(float(scores[head, query, key]), abs=1e-10)
        less = graphs.qk_attribution(graph, layer, head, query=query, key=key, against="mean")
        mean = scores[head, query, : query + 1].mean()
        assert less.score == pytest.approx(float(scores[head, query, key] - mean), abs=1e-10)
        assert len(found.ids) == len(graph.nodes) - len(graph.weights) + 1
        assert found.terms[-1].abs().max() == 0  # nothing is left out of a whole graph
    best = graphs.qk_attribution(graph, 1, 2, query=4)
    assert best.key == int(graph.parts.frozen.run["pattern.1"][0, 2, 4].argmax())


def test_a_term_is_what_both_nodes_give():
    """Neurons of block 0 at the query and at the key, through the projections and the rotation of block 1."""
    model, layer, head, query, key = exact_model("llama"), 1, 2, 5, 2
    graph = graphs.attribution_graph(model, [IDS], n_nodes=10_000, quiet=True)
    found = graphs.qk_attribution(graph, layer, head, query=query, key=key)
    neurons = graph.nodes[(graph.kinds == "neuron") & (graph.nodes.layer == 0)]
    ones = [neurons[neurons.position == at].iloc[0] for at in (query, key)]
    stream = model.run([IDS], capture=["resid_pre.1", "pattern.0"])["resid_pre.1"][0]
    norm = model.blocks[1].input_layernorm

    def projected(node, side, position):
        part = node.activation * model.W_out[0][node["index"]]
        size = (stream[position].square().mean() + norm.variance_epsilon).sqrt()
        normed = part / size * norm.weight
        number = head if side == "q" else head // 2
        kind = {"q": "q_proj", "k": "k_proj"}[side]
        W = getattr(model.blocks[1].self_attn, kind).weight.T.unflatten(1, (-1, model.cfg.d_head))[:, number]
        x = normed @ W
        rotary = model.hf.model.rotary_emb
        cos, sin = rotary(stream[None], torch.tensor([[position]]))
        half = torch.cat([-x[len(x) // 2 :], x[: len(x) // 2]])
        return x * cos[0, 0] + half * sin[0, 0]

    term = projected(ones[0], "q", query) @ projected(ones[1], "k", key) * model.blocks[1].self_attn.scaling
    at = {one: number for number, one in enumerate(found.ids)}
    assert float(found.terms[at[ones[0].id], at[ones[1].id]]) == pytest.approx(float(term), abs=1e-10)
    assert abs(float(term)) > 1e-8


def test_a_pruned_graph_keeps_the_rest_as_left_out(tmp_path):
    graph = graphs.attribution_graph(tiny_model("llama"), [IDS], n_nodes=60, quiet=True)
    whole, small = (graphs.qk_attribution(one, 1, 0) for one in (graph, graph.prune(0.5)))
    assert small.score == pytest.approx(whole.score)
    assert len(small.ids) < len(whole.ids)
    assert float(small.terms.sum()) == pytest.approx(whole.score, abs=1e-4)
    assert small.terms[-1].abs().max() > 0
    assert small.side("key", 3).weight.abs().max() > 0
    best = whole.top(1).iloc[0]
    number = {one: at for at, one in enumerate(whole.ids)}
    assert float(whole.terms[number[best.query_node], number[best.key_node]]) == pytest.approx(best.weight)


def test_bad_input_is_refused(tmp_path):
    graph = graphs.attribution_graph(tiny_model("llama"), [IDS], n_nodes=20, quiet=True)
    back = graphs.read_graph(graph.save(tmp_path / "graph.json"))
    for wrong, says in [
        (lambda: graphs.qk_attribution(back, 1, 0), "from a file"),
        (lambda: graphs.qk_attribution(graph, 9, 0), "layer 9 has no attention"),
        (lambda: graphs.qk_attribution(graph, 1, 9), "heads 0 to 3"),
        (lambda: graphs.qk_attribution(graph, 1, 0, query=7), "query= is one of the 6"),
        (lambda: graphs.qk_attribution(graph, 1, 0, query=2, key=4), "does not look at token 4"),
        (lambda: graphs.qk_attribution(graph, 1, 0, against="others"), "'mean'"),
        (lambda: graphs.qk_attribution(graph, 1, 0).side("both"), "'query' or 'key'"),
    ]:
        with pytest.raises(BadInput, match=says):
            wrong()
