"""Neurons and latents as nodes, and keys by query head: against plain scores, autograd through masks, and by hand."""

import pytest
import torch
from torch import Tensor

from monosem.circuits import (
    EDGE_METHODS,
    Circuit,
    Graph,
    attribute,
    compare_scores,
    exact,
    latent_units,
    neuron_units,
    ungrouped,
)
from monosem.circuits.batches import Batch, Batches
from monosem.circuits.methods import Options
from monosem.circuits.running import run_circuits, run_masks
from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from monosem.patching import mean, zero
from tiny import tiny_model
from tiny_circuits import logit_gap, random_pairs, wide
from tiny_dictionaries import random_tensors, tiny_dictionary

NUMBERS = [3, 40, 7]


def some_units(model: Model, kind: str):
    if kind == "neuron":
        return [neuron_units(model, 0, NUMBERS), neuron_units(model, 2, [5])]
    site = {"sae": ("mlp_out.0", None), "transcoder": ("mlp_input.0", "mlp_out.0")}[kind]
    dictionary = tiny_dictionary(
        "relu", random_tensors(width=48), site=site[0], site_out=site[1], model_name=model.name
    )
    return [latent_units(model, dictionary, NUMBERS)]


def unit_batch(model: Model, kind: str, corruption=None) -> Batch:
    pairs = random_pairs(model)
    graph = Graph.of(model, units=some_units(model, kind))
    return next(iter(Batches(model, pairs, graph, logit_gap, corruption, len(pairs))))


@pytest.mark.parametrize(("family", "readers"), [("gpt2", 12 * 2 + 2 + 1), ("llama", 8 * 2 + 2 + 1)])
def test_every_unit_adds_the_edges_of_its_mlp(family: str, readers: int) -> None:
    """A node of layer 0 is read by q, k and v of two layers (of 4 heads, or 4, 2 and 2), their MLPs and the logits."""
    model = tiny_model(family)
    plain, apart = Graph.of(model), Graph.of(model, units=some_units(model, "neuron"))
    assert apart.n_edges == plain.n_edges + 3 * readers + 1
    assert [name for name in apart.sources if name not in plain.sources] == ["m0.n3", "m0.n40", "m0.n7", "m2.n5"]
    assert apart.slots == plain.slots
    assert apart.index("m0.n40->a1.h0<q>")[0] == 0


@pytest.mark.parametrize("kind", ["neuron", "sae", "transcoder"])
@pytest.mark.parametrize("corruption", [None, zero(), mean()], ids=["prompt", "zero", "mean"])
def test_scores_are_derivatives_and_parts_of_the_mlps(kind: str, corruption) -> None:
    model = wide("llama" if kind == "neuron" else "gpt2")
    batch = unit_batch(model, kind, corruption)
    graph = batch.wiring.graph
    masks = graph.real.expand(graph.shape).double()[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(logit_gap(run_masks(batch, masks, grad=True)[0], batch.pairs, None).sum(), masks)
    scores = EDGE_METHODS["eap"].score(batch, Options())
    torch.testing.assert_close(scores, slope[0] * graph.real, rtol=1e-4, atol=2e-6)
    plain = attribute(model, batch.pairs, "eap", metric=logit_gap, corruption=corruption, quiet=True)
    for name in ("m0", "a1.h0"):
        own = scores[
            0, [row for row, source in enumerate(graph.sources) if source.split(".n")[0].split(".l")[0] == name]
        ]
        whole = plain.values[0, plain.graph.sources.index(name)] * len(batch.pairs)
        torch.testing.assert_close(own.sum(0), whole, rtol=1e-6, atol=1e-9)
    assert own.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["neuron", "sae", "transcoder"])
def test_circuits_of_units_have_both_ends(kind: str) -> None:
    batch = unit_batch(wide("gpt2"), kind)
    graph = batch.wiring.graph
    parts = [Circuit.empty(graph), Circuit.full(graph)]
    only = Circuit(graph, Circuit.full(graph).out_of("m0") | Circuit.full(graph).out_of("input"))
    empty, full, some = run_circuits(batch, [*parts, only])
    torch.testing.assert_close(empty, batch.other_logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(full, batch.clean_logits, rtol=1e-10, atol=1e-10)
    (alone,) = run_circuits(batch, [only])  # the rest of the MLP lives, its units do not
    torch.testing.assert_close(some, alone, rtol=1e-10, atol=1e-10)


def test_a_neurons_edge_into_the_logits_by_hand() -> None:
    """The last stream with the neuron's change added, through GPT-2's own norm and unembedding."""
    model = wide("gpt2")
    pairs = random_pairs(model, (6, 6))
    units = [neuron_units(model, 0, NUMBERS)]
    scores = exact(model, pairs, ["m0.n40->logits", "m0.n3->m2"], metric=logit_gap, units=units, quiet=True)
    hf, posts = model.hf.transformer, {}

    def both(ids: Tensor, name: str) -> Tensor:
        handle = hf.h[0].mlp.c_proj.register_forward_pre_hook(lambda m, args: posts.__setitem__(name, args[0]))
        stream = model.hf(ids, output_hidden_states=False).logits
        handle.remove()
        return stream

    with torch.no_grad():
        clean, _ = both(pairs.clean.ids, "clean"), both(pairs.corrupted.ids, "other")
        last = {}
        handle = hf.ln_f.register_forward_pre_hook(lambda m, args: last.__setitem__("x", args[0]))
        model.hf(pairs.clean.ids)
        handle.remove()
        change = (posts["other"] - posts["clean"])[:, -1, 40, None] * hf.h[0].mlp.c_proj.weight[40]
        moved = model.hf.lm_head(hf.ln_f(last["x"][:, -1] + change))
        fell = logit_gap(clean[:, -1], pairs, None) - logit_gap(moved, pairs, None)
    assert float(scores.values[scores.graph.index("m0.n40->logits")]) == pytest.approx(float(fell.mean()), abs=1e-9)
    assert abs(float(fell.mean())) > 1e-4


@pytest.mark.parametrize("method", [name for name in EDGE_METHODS if name != "random"])
def test_every_method_scores_units(method: str) -> None:
    """What is linear in what a node writes adds up to the MLP's own score; routes do not."""
    model = tiny_model("gpt2")
    pairs = random_pairs(model, (5, 5))
    units = some_units(model, "neuron")
    found, plain = (
        attribute(model, pairs, method, steps=2, units=one, quiet=True) for one in (units, ())
    )  # fmt: skip
    assert found.values.isfinite().all()
    if method != "ifr":
        rows = [row for row, name in enumerate(found.graph.sources) if name == "m0" or name.startswith("m0.n")]
        whole = plain.values[0, plain.graph.sources.index("m0")]
        torch.testing.assert_close(found.values[0, rows].sum(0), whole, rtol=1e-3, atol=1e-5)
    assert found.plot().data


def test_units_can_be_chosen_and_checked() -> None:
    model = wide("gpt2")
    pairs = random_pairs(model, (5, 5))
    scores = attribute(model, pairs, "eap-ig", metric=logit_gap, units=some_units(model, "neuron"), quiet=True)
    circuit = scores.greedy(120)
    assert any(".n" in name for name in circuit.nodes)
    found = compare_scores(model, pairs, scores, n=30, metric=logit_gap, quiet=True)
    assert found.table["exact"].notna().all()
    assert circuit.plot().data


def test_units_that_there_are_not() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(UnknownName, match="no neuron of layer 0 has number 9999"):
        neuron_units(model, 0, [9999])
    with pytest.raises(BadInput, match="one at least and each once"):
        neuron_units(model, 0, [1, 1])
    with pytest.raises(BadInput, match="a norm behind"):
        neuron_units(tiny_model("gemma2"), 0, [1])
    with pytest.raises(BadInput, match="latents are nodes where"):
        latent_units(model, tiny_dictionary("relu", k=None, model_name=model.name), [1])
    with pytest.raises(BadInput, match="one MLP"):
        Graph.of(model, units=[neuron_units(model, 0, [1]), neuron_units(model, 0, [2])])


# ---------------------------------------------------------------------- keys and values by query head
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "phi3"])  # phi3: one module of queries, keys, values
def test_slots_by_query_head_sum_to_the_group(family: str) -> None:
    model = wide(family)
    apart, pairs = ungrouped(model), random_pairs(wide(family))
    assert Graph.of(apart) == Graph.of_sizes(3, 4) == Graph.of(model, grouped=False)
    assert (Graph.of(apart).n_edges, Graph.of(model).n_edges) == (13 * 18 + 28, 9 * 18 + 28)
    for method in ("eap", "eap-ig"):
        fine, coarse = (attribute(one, pairs, method, metric=logit_gap, quiet=True) for one in (apart, model))
        torch.testing.assert_close(fine.by_group(coarse.graph).values, coarse.values, rtol=1e-6, atol=1e-8)
    names = ["a0.h1->a2.h1<k>", "a0.h1->a2.h0<k>"]
    one, other = (float(fine.values[fine.graph.index(name)]) for name in names)
    assert one != pytest.approx(other)


def test_models_that_share_nothing_cannot_be_ungrouped() -> None:
    with pytest.raises(BadInput, match="for each query head already"):
        ungrouped(tiny_model("gpt2"))
    unknown = tiny_model("phi3")  # with attention that does not say how many heads share
    del unknown.blocks[1].self_attn.num_key_value_groups
    with pytest.raises(BadInput, match="2 of 3 layers have modules of their own.*by group"):
        ungrouped(unknown)
