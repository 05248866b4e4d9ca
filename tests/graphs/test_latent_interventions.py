"""Interventions on latents: straight effects are columns of the graph; all anew is a hook on the bare model."""

import pytest
import torch
from frozen_autograd import exact_model
from test_graph_of_latents import cross_layer, one_layer

from monosem import edits, graphs
from tiny import tiny_model

IDS = [7, 31, 9, 44, 15, 62]


def plt(**about):
    return [one_layer(layer, **about) for layer in range(3)]


def latents_of(graph, n):
    nodes = graph.nodes[(graph.kinds == "latent") & (graph.nodes.position < len(IDS))]
    return nodes.iloc[:: max(1, len(nodes) // n)].to_dict("records")


@pytest.mark.parametrize("kind", ["per layer", "cross-layer", "pre-norm out", "skip", "skip, pre-norm out"])
def test_straight_effects_of_latents_are_columns(kind):
    """Constrained runs (patterns, norms' sizes and MLPs held) of the model itself, one node at a time and together."""
    model = exact_model("gemma2" if "pre-norm out" in kind else "llama")
    transcoders = {
        "per layer": plt(),
        "cross-layer": cross_layer(),
        "pre-norm out": [one_layer(layer, site_out=f"mlp_raw.{layer}") for layer in range(3)],
        "skip": plt(skip=True),
        "skip, pre-norm out": [one_layer(layer, site_out=f"mlp_raw.{layer}", skip=True) for layer in range(3)],
    }[kind]
    graph = graphs.attribution_graph(model, [IDS], transcoders, n_nodes=10_000, everywhere=True, quiet=True)
    picked = latents_of(graph, 6)
    assert len(picked) >= 6
    for node in picked:
        table = graphs.intervene(graph, {node["id"]: 2.0}, direct=True).table
        column = graph.edges[:, graph.number(node["id"])]
        size = max(float(column.abs().max()), 0.1)
        measured = torch.tensor(table.change.to_numpy(), dtype=column.dtype)
        assert (measured - column).abs().max() < 1e-5 * size  # norms' sizes are patched in float32
    assert max(float(graph.edges[:, graph.number(one["id"])].abs().max()) for one in picked) > 0.01
    changes = {one["id"]: factor for one, factor in zip(picked, (0.0, 2.0, -1.0, 0.5, 3.0, 0.0))}
    table = graphs.intervene(graph, changes, direct=True).table
    assert (table.change - table.expected).abs().max() < 1e-4 * float(table.expected.abs().max())


@pytest.mark.parametrize("clt", [False, True])
def test_everything_anew_is_a_hook_on_the_bare_model(clt):
    """The latent's write is changed where it writes, and what follows is the model's own."""
    model, transcoder = tiny_model("llama"), cross_layer("mlp_out") if clt else plt()
    graph = graphs.attribution_graph(model, [IDS], transcoder, everywhere=True, n_nodes=10_000, quiet=True)
    nodes = [one for one in latents_of(graph, 40) if one["layer"] == 0][:3]
    plain = model.hf(input_ids=torch.tensor([IDS])).logits[0, -1].detach()
    for node in nodes:
        found = graphs.intervene(graph, {node["id"]: 3.0}, freeze_attention=False)
        rows = transcoder.rows(0, node["index"])[0] if clt else transcoder[0].W_dec[[node["index"]]]
        handles = []
        for layer, row in enumerate(rows):

            def hook(module, args, output, row=row, node=node):
                changed = output.clone()
                changed[0, node["position"]] += (2.0 * node["activation"] * row).to(output)
                return changed

            handles.append(model.blocks[layer].mlp.register_forward_hook(hook))
        try:
            expected = model.hf(input_ids=torch.tensor([IDS])).logits[0, -1].detach()
        finally:
            for handle in handles:
                handle.remove()
        torch.testing.assert_close(found.logits[1], expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.logits[0], plain, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, plain, atol=1e-3)


def test_frozen_patterns_keep_what_heads_look_at():
    model = tiny_model("llama")
    graph = graphs.attribution_graph(model, [IDS], plt(), everywhere=True, n_nodes=10_000, quiet=True)
    node = next(one for one in latents_of(graph, 40) if one["layer"] == 0 and one["position"] == 2)
    free, held = (graphs.intervene(graph, {node["id"]: 30.0}, freeze_attention=one).logits[1] for one in (False, True))
    assert not torch.allclose(free, held, atol=1e-4)
    patterns = [f"pattern.{layer}" for layer in range(3)]
    clean = model.run([IDS], capture=patterns)
    made = graphs.node_edits(graph, {node["id"]: 30.0})
    run = model.run([IDS], edits=[*made, *(edits.patch(one, clean[one]) for one in patterns)], logits="last")
    torch.testing.assert_close(held, run.logits[0], rtol=0, atol=1e-5)


def test_generation_under_an_intervention_is_a_pass_over_what_was_generated():
    """With the cache and `onwards`, as one pass over the whole text with the same edits says."""
    model = tiny_model("llama")
    graph = graphs.attribution_graph(model, [IDS], plt(), everywhere=True, n_nodes=10_000, quiet=True)
    node = next(one for one in latents_of(graph, 60) if one["position"] == 4)
    made = graphs.node_edits(graph, {node["id"]: -40.0}, onwards=True)
    ids = model.generate([IDS], edits=made, max_new_tokens=5).ids.rows()[0]
    plain = model.generate([IDS], max_new_tokens=5).ids.rows()[0]
    assert ids != plain
    for end in range(len(IDS), len(ids)):
        logits = model.run([ids[:end]], edits=made, logits="last").logits[0]
        assert int(logits.argmax()) == ids[end]
