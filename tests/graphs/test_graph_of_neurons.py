"""Graphs of neurons against autograd through Hugging Face's frozen modules, in float64."""

import pytest
import torch
from frozen_autograd import Oracle, exact_model

from anymodel import tiny_any
from monosem import graphs
from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from tiny import model_of

IDS = [7, 31, 9, 44, 15, 62]
# what a neuron's row is of: the linear layer, and (gated) the layer whose activation multiplies it
LAYERS = {
    "llama": ("up_proj", "gate_proj"),
    "gemma2": ("up_proj", "gate_proj"),
    "gpt2": ("c_fc", None),
    "gpt_neox": ("dense_h_to_4h", None),
}
DOWN = {"llama": "down_proj", "gemma2": "down_proj", "gpt2": "c_proj", "gpt_neox": "dense_4h_to_h"}


def oracle_row(model, oracle, family, layer, position, index):
    """The value that a neuron's row is of, differentiable."""
    linear, gate = LAYERS[family]
    value = oracle.read[layer, linear][0, position, index]
    if gate is None:
        return value
    act = model.blocks[layer].mlp.act_fn
    return value * act(oracle.read[layer, gate][0, position, index]).detach()


def columns(model, graph, oracle, family, gradients):
    """What each node of a graph of all neurons gives: gradients times what it writes."""
    embedded, written = gradients
    found = []
    for node in graph.nodes.to_dict("records"):
        layer, position = node["layer"], node["position"]
        if node["kind"] == "neuron":
            down = getattr(model.blocks[layer].mlp, DOWN[family])
            weight = down.weight if family == "gpt2" else down.weight.T
            found.append(float(written[layer][position] @ weight[node["index"]]) * node["activation"])
        elif node["kind"] == "token":
            found.append((embedded[position] @ oracle.embedded[0, position]).item())
        else:
            found.append(0.0)
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture(scope="module", params=list(LAYERS))
def case(request):
    model = exact_model(request.param)
    graph = graphs.attribution_graph(model, [IDS], n_nodes=10_000, tokens=[11, 12])
    return request.param, model, graph, Oracle(model, IDS)


def test_rows_are_gradients_times_what_is_written(case):
    family, model, graph, oracle = case
    draw = torch.Generator().manual_seed(1)
    for row in torch.randperm(len(graph.rows) - 2, generator=draw)[:40].tolist():
        node = graph.nodes.iloc[int(graph.rows[row])]
        value = oracle_row(model, oracle, family, node.layer, node.position, node["index"])
        assert float(graph.sums[row]) == pytest.approx(value.item(), abs=1e-10)
        expected = columns(model, graph, oracle, family, oracle.gradients(value))
        linear = torch.tensor(graph.kinds != "bias")
        torch.testing.assert_close(graph.edges[row][linear], expected[linear], rtol=0, atol=1e-10)


def test_logit_rows_are_gradients_of_centred_logits(case):
    family, model, graph, oracle = case
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = oracle.logits if cap is None else cap * torch.atanh(oracle.logits / cap)
    for row, token in zip(range(len(graph.rows) - 2, len(graph.rows)), (11, 12)):
        value = logits[token] - logits.mean()
        assert float(graph.sums[row]) == pytest.approx(value.item(), abs=1e-9)
        expected = columns(model, graph, oracle, family, oracle.gradients(value))
        linear = torch.tensor(graph.kinds != "bias")
        torch.testing.assert_close(graph.edges[row][linear], expected[linear], rtol=0, atol=1e-9)


def test_rows_add_up(case):
    graph = case[2]
    torch.testing.assert_close(graph.edges.sum(-1), graph.sums, rtol=0, atol=1e-10)
    assert graph.completeness == pytest.approx(1)


def test_a_smaller_graph_has_the_same_edges_and_errors_for_the_rest(case):
    _, model, whole, _ = case
    small = graphs.attribution_graph(model, [IDS], n_nodes=60, tokens=[11, 12])
    assert (small.kinds == "neuron").sum() == 60
    torch.testing.assert_close(small.edges.sum(-1), small.sums, rtol=0, atol=1e-10)
    at = torch.tensor([whole.numbers[one] for one in small.nodes["id"]])
    rows = torch.tensor([int((whole.rows == at[node]).nonzero()) for node in small.rows.tolist()])
    known = torch.tensor(small.kinds != "error")
    torch.testing.assert_close(small.edges[:, known], whole.edges[rows][:, at[known]], rtol=0, atol=1e-10)
    # an error is what the neurons that are no nodes give together
    for column in torch.nonzero(~known).flatten().tolist():
        node = small.nodes.iloc[column]
        same = (whole.nodes.kind == "neuron") & (whole.nodes.layer == node.layer)
        same &= (whole.nodes.position == node.position) & ~whole.nodes.id.isin(small.nodes.id)
        expected = whole.edges[rows][:, torch.tensor(same.to_numpy())].sum(-1)
        if "mlp" in node["id"]:
            torch.testing.assert_close(small.edges[:, column], expected, rtol=0, atol=1e-10)


def test_the_last_layers_nodes_are_the_most_influential(case):
    """Of the last layer everything is known: its influence comes from logits alone."""
    _, model, whole, _ = case
    small = graphs.attribution_graph(model, [IDS], n_nodes=60, tokens=[11, 12])
    last = small.nodes[(small.nodes.kind == "neuron") & (small.nodes.layer == 2)].id
    table = whole.table
    best = table[(table.kind == "neuron") & (table.layer == 2)].nlargest(len(last), "influence").id
    assert 0 < len(last) < 60
    assert set(last) == set(best)


def test_the_half_rule_gives_gates_their_half():
    model = exact_model("llama")
    oracle = Oracle(model, IDS)
    graph = graphs.attribution_graph(model, [IDS], n_nodes=10_000, neurons="half")
    torch.testing.assert_close(graph.edges.sum(-1), graph.sums, rtol=0, atol=1e-10)
    row = int((graph.nodes.iloc[graph.rows.tolist()].layer.to_numpy() == 2).argmax()) + 5
    node = graph.nodes.iloc[int(graph.rows[row])]
    up, gate = (oracle.read[2, name][0, node.position, node["index"]] for name in ("up_proj", "gate_proj"))
    act = model.blocks[2].mlp.act_fn(gate)
    value = (act.detach() * up + (act / gate * up).detach() * gate) / 2
    expected = columns(model, graph, oracle, "llama", oracle.gradients(value))
    linear = torch.tensor(graph.kinds != "bias")
    torch.testing.assert_close(graph.edges[row][linear], expected[linear], rtol=0, atol=1e-10)


def test_a_difference_of_logits_and_a_direction():
    model = exact_model("llama")
    both = graphs.attribution_graph(model, [IDS], tokens=[11, 12], n_nodes=50)
    one = graphs.attribution_graph(model, [IDS], tokens=11, wrong=12, n_nodes=10_000)
    assert float(one.sums[-1]) == pytest.approx(float(both.sums[-2] - both.sums[-1]), abs=1e-10)
    vector = model.W_U[:, 11] - model.W_U[:, 12]
    along = graphs.attribution_graph(model, [IDS], direction=("final_norm", vector), n_nodes=10_000)
    # the direction is normalised in float32
    torch.testing.assert_close(along.edges[-1] * vector.norm(), one.edges[-1], rtol=0, atol=1e-5)


def test_the_fewest_likeliest_tokens():
    model = model_of("llama")
    p = model.run([IDS]).logits[0, -1].softmax(-1)
    graph = graphs.attribution_graph(model, [IDS], n_logits=90, n_nodes=50)
    chosen = graph.nodes[graph.nodes.kind == "logit"]
    assert p[chosen["index"].tolist()].sum() >= 0.95 > p[chosen["index"].tolist()[:-1]].sum()
    assert chosen["index"].tolist() == p.topk(len(chosen)).indices.tolist()


def test_what_is_refused():
    model = model_of("llama")
    for wrong, says in [
        (lambda: graphs.attribution_graph(model, ["the cat", "a dog"]), "one prompt"),
        (lambda: graphs.attribution_graph(model, "the cat", n_nodes=0), "n_nodes"),
        (lambda: graphs.attribution_graph(model, "the cat", memory="10KB"), "over memory=10 KB"),
        (lambda: graphs.attribution_graph(model, "the cat", tokens=[5, 5]), "each of them once"),
        (lambda: graphs.attribution_graph(model, "the cat", wrong=5), "wrong="),
        (lambda: graphs.attribution_graph(model_of("mixtral"), "the cat"), "give transcoders"),
    ]:
        with pytest.raises(BadInput, match=says):
            wrong()
    with pytest.raises(UnknownName, match="rule for neurons"):
        graphs.attribution_graph(model, "the cat", neurons="all")


@pytest.mark.parametrize("kind", ["qwen3_next", "mixtral", "deepseek_v3"])
def test_what_is_no_linear_map_and_has_no_neurons_is_an_error_node(kind):
    """Gated attention, a memory, latent attention, mixtures: the rows add up all the same."""
    model = Model(tiny_any(kind))
    graph = graphs.attribution_graph(
        model, [IDS], n_nodes=30, neurons="none" if kind == "mixtral" else "up", tokens=[11]
    )
    assert graph.error < 1e-5
    errors = set(graph.nodes.id[graph.kinds == "error"])
    branches = {branch.name for branch in model.branches()}
    opaque = {one.split("_")[1].removesuffix("-error") for one in errors}
    assert opaque == (branches if kind != "mixtral" else {"mlp"})
