"""Graphs of latents of transcoders, mixed with neurons, with skip connections and across layers, against autograd."""

from dataclasses import replace

import pytest
import torch
from frozen_autograd import Oracle, exact_model

from monosem import graphs
from monosem.dictionaries import CrossLayer
from monosem.dictionaries.several_parts import CrossLayerParts, Facts
from monosem.errors import BadInput, Mismatch
from monosem.models.places.sites import Site
from tiny import model_of
from tiny_dictionaries import random_tensors, tiny_dictionary

IDS, D, WIDTH, LAYERS = [7, 31, 9, 44, 15, 62], 32, 24, 3


def one_layer(layer=1, skip=False, kind="relu", **about):
    tensors = random_tensors(D, WIDTH, seed=layer, scales=(0.3, 0.3), dtype=torch.float64)
    draw = torch.Generator().manual_seed(9)
    W_skip = torch.randn(D, D, generator=draw, dtype=torch.float64) * 0.2 if skip else None
    sites = {"site": f"mlp_input.{layer}", "site_out": f"mlp_out.{layer}", "model_name": ""}
    return tiny_dictionary(kind, replace(tensors, W_skip=W_skip), transcoder=True, **(sites | about))


def cross_layer(out="mlp_raw", model_name=""):
    draw = torch.Generator().manual_seed(4)

    def rand(*shape, size):
        return torch.randn(*shape, generator=draw, dtype=torch.float64) * size

    sites = [[Site(name, layer) for layer in range(LAYERS)] for name in ("mlp_input", out)]
    decoders = [rand(WIDTH, LAYERS - s, D, size=0.3) for s in range(LAYERS)]
    tensors = {"W_enc": rand(LAYERS, D, WIDTH, size=0.3), "b_enc": rand(LAYERS, WIDTH, size=0.3)}
    return CrossLayer(
        CrossLayerParts(
            facts=Facts("relu", *sites, model_name=model_name),
            W_dec=decoders,
            b_dec=rand(LAYERS, D, size=0.3),
            **tensors,
        )
    )


def known(graph, kind="latent"):
    return torch.tensor(graph.kinds == kind).nonzero().flatten().tolist()


@pytest.mark.parametrize("skip", [False, True])
def test_latents_of_one_layer_among_neurons(skip):
    model, transcoder = exact_model("llama"), one_layer(skip=skip)
    graph = graphs.attribution_graph(model, [IDS], transcoder, n_nodes=10_000, tokens=[11], everywhere=True)
    torch.testing.assert_close(graph.edges.sum(-1), graph.sums, rtol=0, atol=1e-10)
    oracle = Oracle(model, IDS, {1: transcoder.W_skip} if skip else {})
    # patterns are asked for, as then all softmaxes are in float32
    run = model.run([IDS], capture=["mlp_input.1", "mlp_out.1", "pattern.0", "pattern.1", "pattern.2"])
    x = run["mlp_input.1"][0]
    codes = transcoder.encode(x).dense()
    assert len(known(graph)) == int((codes != 0).sum()) > 20
    embedded, written = oracle.gradients(oracle.logits[11] - oracle.logits.mean())
    row = graph.edges[-1]
    for column in known(graph):
        node = graph.nodes.iloc[column]
        assert node.activation == pytest.approx(float(codes[node.position, node["index"]]), abs=1e-10)
        expected = written[1][node.position] @ transcoder.W_dec[node["index"]] * node.activation
        assert float(row[column]) == pytest.approx(expected.item(), abs=1e-10)
    left = run["mlp_out.1"][0] - transcoder.decode(transcoder.encode(x), like=x)
    for position in range(len(IDS)):
        expected = written[1][position] @ left[position]
        assert float(row[graph.numbers[f"1_mlp-error_{position}"]]) == pytest.approx(expected.item(), abs=1e-9)
    for column in known(graph, "token"):
        position = graph.nodes.iloc[column].position
        expected = embedded[position] @ oracle.embedded[0, position]
        assert float(row[column]) == pytest.approx(expected.item(), abs=1e-10)


def test_rows_of_latents_are_gradients_of_pre_activations():
    model, transcoder = exact_model("llama"), one_layer(2)
    graph = graphs.attribution_graph(
        model, [IDS], [one_layer(1), transcoder], n_nodes=10_000, everywhere=True, neurons="none"
    )
    oracle = Oracle(model, IDS)
    for number, node in enumerate(graph.nodes.iloc[graph.rows.tolist()].to_dict("records")[:-1]):
        if node["kind"] != "latent" or node["layer"] != 2 or number % 5:
            continue
        pre = oracle.read[2, "input"][0, node["position"]] @ transcoder.W_enc[:, node["index"]]
        assert float(graph.sums[number]) == pytest.approx((pre + transcoder.b_enc[node["index"]]).item(), abs=1e-10)
        _, written = oracle.gradients(pre)
        for column in known(graph):
            other = graph.nodes.iloc[column]
            row = one_layer(int(other.layer)).W_dec[other["index"]]
            expected = written[int(other.layer)][other.position] @ row * other.activation
            assert float(graph.edges[number, column]) == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_cross_layer_transcoder_writes_to_all_later_layers(family):
    model, clt = exact_model(family), cross_layer()
    graph = graphs.attribution_graph(model, [IDS], clt, n_nodes=10_000, tokens=[11], everywhere=True)
    torch.testing.assert_close(graph.edges.sum(-1), graph.sums, rtol=0, atol=1e-10)
    assert set(graph.kinds) == {"latent", "error", "token", "bias", "logit"}
    oracle = Oracle(model, IDS)
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = oracle.logits if cap is None else cap * torch.atanh(oracle.logits / cap)
    _, written = oracle.gradients(logits[11] - logits.mean())
    for column in known(graph):
        node = graph.nodes.iloc[column]
        rows = clt.rows(int(node.layer), int(node["index"]))[0]
        expected = sum(written[int(node.layer) + i][node.position] @ row for i, row in enumerate(rows))
        assert float(graph.edges[-1, column]) == pytest.approx(expected.item() * node.activation, abs=1e-9)


def test_the_first_token_is_error_unless_everywhere():
    model, transcoder = model_of("llama"), one_layer()
    graph = graphs.attribution_graph(model, [IDS], transcoder, neurons="none")
    latents = graph.nodes[graph.kinds == "latent"]
    assert len(latents) > 0
    assert latents.position.min() > 0
    assert graph.error < 1e-5


def test_few_nodes_of_many_latents():
    model = exact_model("llama")
    graph = graphs.attribution_graph(model, [IDS], cross_layer(), n_nodes=30, everywhere=True)
    assert len(known(graph)) == 30
    torch.testing.assert_close(graph.edges.sum(-1), graph.sums, rtol=0, atol=1e-10)


def test_what_is_no_transcoder_of_an_mlp_is_refused():
    model = model_of("llama")
    for wrong, says in [
        (tiny_dictionary(model_name=""), "is no transcoder"),
        (one_layer(site="z.1", per_head=True), "reads z.1"),
        (one_layer(site="mlp_post.1"), "mlp_post.1"),
        (one_layer(site_out="attn_out.1"), "writes attn_out.1"),
        ([one_layer(), one_layer()], "two transcoders write"),
        ("smollm2", "takes transcoders"),
        (one_layer(model_name="google/gemma-2-2b"), "was made for 'google/gemma-2-2b', not"),
        (cross_layer(model_name="gpt2"), "was made for 'gpt2', not"),
    ]:
        with pytest.raises((BadInput, Mismatch), match=says):
            graphs.attribution_graph(model, "the cat", wrong)
