"""Blocks of another make: MLP first, only an MLP, two MLPs. A row makes them readable: no technique knows of them."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from monosem import components, edits, lenses, patching
from monosem.data import TokenPairs
from monosem.errors import Mismatch, UnknownName
from monosem.models import Family, Model, verify
from monosem.models.places.families import attn, mlp
from monosem.patching.paths.nodes import sender_kinds
from tiny import randomise, tiny_hf, tiny_tokenizer
from tiny_dictionaries import random_tensors, tiny_dictionary

IDS = torch.randint(3, 100, (2, 7), generator=torch.Generator().manual_seed(0))


class Block(LlamaDecoderLayer):
    """Its branches, one after the other, whatever they are."""

    order: tuple[str, ...] = ()

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        for branch in self.order:
            if branch == "attn":
                out, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
            elif branch == "mlp":
                out = self.mlp(self.post_attention_layernorm(hidden_states))
            else:
                more = kwargs if isinstance(self.mlp2, Attending) else {}
                out = self.mlp2(self.third_layernorm(hidden_states), **more)
            hidden_states = hidden_states + out
        return hidden_states


class Attending(nn.Module):
    """A second attention in the place of a second MLP, on the rotation that the first one was given."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.attention(hidden_states=x, **kwargs)[0]


SECOND = replace(mlp("third_layernorm", path="mlp2"), name="mlp2", norm="ln3")
# name -> (the branches of each layer, the row)
MAKES: dict[str, tuple[list[tuple[str, ...]], Family]] = {
    "MLP first": ([("mlp", "attn")] * 3, Family("mlp_first", (), (mlp(), attn()))),
    "two MLPs": ([("attn", "mlp", "mlp2")] * 3, Family("two_mlps", (), (attn(), mlp(), SECOND))),
    "only an MLP": ([("attn", "mlp"), ("mlp",), ("attn", "mlp")], Family("mlp_only", ())),
}


def model_of(name: str) -> Model:
    orders, row = MAKES[name]
    hf = tiny_hf("llama")
    for layer, order in zip(hf.model.layers, orders):
        layer.__class__ = Block
        layer.order = order
        if "mlp2" in order:
            layer.mlp2, layer.third_layernorm = LlamaMLP(hf.config), LlamaRMSNorm(32)
        if "attn" not in order:
            del layer.self_attn, layer.input_layernorm
    randomise(hf, 1)
    return Model(hf.eval(), tiny_tokenizer(), name, family=row)


@pytest.fixture(params=list(MAKES))
def model(request):
    return model_of(request.param)


@pytest.fixture
def pairs():
    ids = IDS.clone()
    ids[:, 2] = torch.tensor([50, 60])
    made = model_of("MLP first")
    return TokenPairs(made.tokens(IDS), made.tokens(ids), torch.tensor([7, 8]), torch.tensor([9, 10]))


def branches(model: Model) -> list[Any]:
    return [branch for layer in model.layers() for branch in model.branches(layer)]


def test_the_identities_hold(model):
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()


def test_branches_say_what_they_read_and_write(model):
    orders, _ = MAKES[model.name]
    assert [[branch.name for branch in model.branches(layer)] for layer in model.layers()] == [*map(list, orders)]
    run = model.run(IDS, [site for one in branches(model) for site in (one.reads, one.raw, one.out)] + ["resid_post.2"])
    for branch in branches(model):
        close(branch.write(run[branch.raw]), run[branch.out])
        before = sum(run[one.out] for one in model.written_before(branch.reads))
        close(run["resid_pre.0"] + before, run[branch.reads])
        if branch.pointwise:
            close(branch.answer(run[branch.reads]), run[branch.out])
    assert model.branch("mlp", 0).reads.name == ("resid_pre" if orders[0][0] == "mlp" else "resid_mid")
    with pytest.raises(UnknownName, match="has no branch 'conv'; it has"):
        model.branch("conv", 0)


def test_writing_a_stream_between_branches_changes_everything_behind_it(model):
    shift = torch.randn(32, generator=torch.Generator().manual_seed(3))
    for before, branch in zip(model.branches(0), model.branches(0)[1:]):
        through = model.run(IDS, edits=edits.add((str(before.out), shift))).logits
        close(model.run(IDS, edits=edits.add((str(branch.reads), shift))).logits, through)


def test_a_sweep_equals_run_by_run(model, pairs):
    names = list(dict.fromkeys(branch.out.name for branch in branches(model)))
    swept = patching.sweep(model, pairs, names, over=("layer", "position"), quiet=True)
    other = model.run(pairs.clean, [branch.out for branch in branches(model)])
    for cell, score in list(zip(swept.cells, swept.effect().tolist()))[::5]:
        at = cell.at[0]
        patched = edits.function(cell.place, lambda x, cell=cell, at=at: put(x, other[cell.place], at))
        logits = model.run(pairs.corrupted, edits=patched, logits="last").logits
        plain = model.run(pairs.corrupted, logits="last").logits
        assert score == pytest.approx(float(difference(logits, pairs) - difference(plain, pairs)), abs=1e-4)


def test_all_paths_together_are_the_whole_effect(model, pairs):
    """Everything that differs sent straight to the logits, nothing answering: the stream of the other run."""
    senders = {"all": list(sender_kinds(model))}
    found = patching.paths(model, pairs, senders, quiet=True)
    assert found.shares().tolist() == pytest.approx([-1.0], abs=1e-3)


def test_paths_through_pointwise_branches_equal_native_runs(model, pairs):
    """A sender into the last layer's MLP alone: attention behind it, if there is any, computes on its own."""
    found = patching.paths(model, pairs, "embed", ["mlp_in.2"], quiet=True)
    base, source = (model.run(side, ["resid_pre.0", "resid_pre.2"]) for side in (pairs.clean, pairs.corrupted))
    delta = source["resid_pre.0"] - base["resid_pre.0"]
    branch = model.branch("mlp", 2)
    clean = model.run(pairs.clean, [branch.reads, branch.out])
    answer = branch.answer(clean[branch.reads] + delta)
    logits = model.run(pairs.clean, edits=edits.patch(branch.out, answer), logits="last").logits
    plain = model.run(pairs.clean, logits="last").logits
    expected = float(difference(logits, pairs) - difference(plain, pairs))
    assert float(found.effect()[0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
def test_direct_attribution_adds_up(model, by):
    found = components.direct_attribution(model, IDS, tokens=5, by=by)
    assert found.error < 1e-4
    kinds = {part.kind for part in found.parts}
    assert ("mlp2" in kinds) == (model.name == "two MLPs" and by != "neuron")


def test_the_cache_takes_the_stream_apart(model):
    _, cache = model.run_with_cache(IDS)
    parts, labels = cache.decompose_resid(return_labels=True)
    close(parts.sum(0), cache["resid_post", -1])
    assert labels[1:] == [f"{branch.layer}_{branch.name}_out" for branch in branches(model)]
    close(cache.stack_head_results(incl_remainder=True).sum(0), cache["resid_post", -1])
    close(cache.stack_neuron_results(incl_remainder=True).sum(0), cache["resid_post", -1])
    for branch, mlp_input in ((model.branches(1)[0], False), (model.branch("mlp", 1), True)):
        stream = cache[branch.reads]
        close(cache.apply_ln_to_stack(stream[None], 1, mlp_input)[0], branch.read(stream))


def test_lenses_and_scrubbing_read_them(model, pairs):
    assert len(lenses.logit(model, IDS, site="mlp_out").sites) == 3
    branch = model.branch("attn", 2)
    same = patching.Claim(branch.site("z"), head=1, inputs=[patching.Claim("embed")])
    whole = patching.Hypothesis([patching.Claim("resid_post.2", inputs=None)])
    assert patching.scrub(model, pairs, whole, quiet=True).table is not None
    assert patching.scrub(model, pairs, patching.Hypothesis([same]), quiet=True).table is not None


def test_a_second_attention_is_read_and_written_inside():
    hf = tiny_hf("llama")
    for layer in hf.model.layers:
        layer.__class__, layer.order = Block, ("attn", "mlp2", "mlp")
        layer.third_layernorm, attention = LlamaRMSNorm(32), LlamaAttention(hf.config, layer.self_attn.layer_idx)
        layer.mlp2 = Attending(attention)
    randomise(hf, 1)
    second = replace(attn("third_layernorm", path="mlp2.attention"), name="attn2", norm="ln3")
    model = Model(hf.eval(), tiny_tokenizer(), "two attentions", family=Family("two", (), (attn(), second, mlp())))
    names = ["attn2_rot_q.1", "attn2_scores.1", "attn2_pattern.1", "attn2_v.1", "attn2_z.1", "pattern.1"]
    run = model.run(IDS, names)
    v = run["attn2_v.1"].repeat_interleave(2, dim=2)
    close(torch.einsum("bhqk,bkhd->bqhd", run["attn2_pattern.1"], v), run["attn2_z.1"])
    zeroed = model.run(IDS, ["attn2_z.1", "pattern.1"], edits.scale("attn2_pattern.1", 0.0))
    assert zeroed["attn2_z.1"].count_nonzero() == 0
    close(zeroed["pattern.1"], run["pattern.1"])


def test_neurons_may_differ_in_number_from_layer_to_layer(pairs):
    hf = tiny_hf("llama")
    narrow = copy.deepcopy(hf.config)
    narrow.intermediate_size = 20
    hf.model.layers[1].mlp = LlamaMLP(narrow)
    randomise(hf, 1)
    model = Model(hf.eval(), tiny_tokenizer(), "narrow")
    assert [branch.n_units for branch in model.branches() if branch.units == "neuron"] == [48, 20, 48]
    assert len(patching.cells_of(model, pairs, "mlp_post", ("layer", "neuron"), neurons={1: [19], 2: [47]})) == 2
    with pytest.raises(UnknownName, match="no neuron 20: there are 0 to 19"):
        patching.cells_of(model, pairs, "mlp_post", ("layer", "neuron"), neurons={1: [20]})
    found = components.direct_attribution(model, IDS, tokens=5, by="neuron")
    assert found.error < 1e-4
    assert [sum(p.kind == "neuron" and p.layer == layer for p in found.parts) for layer in range(3)] == [48, 20, 48]
    tensors = random_tensors(d=20)
    tiny_dictionary("relu", tensors, site="mlp_post.1", model_name="narrow").check(model)
    with pytest.raises(Mismatch, match="width 20 at mlp_post.2, .* has 48"):
        tiny_dictionary("relu", tensors, site="mlp_post.2", model_name="narrow").check(model)


def test_what_a_layer_does_not_have_is_explained():
    model = model_of("only an MLP")
    with pytest.raises(UnknownName, match=r"z.1: layer 1 of only an MLP has no such site; its branches are mlp"):
        model.run(IDS, "z.1")
    with pytest.raises(UnknownName, match="has no stream between its branches"):
        model.run(IDS, "resid_mid.1")
    with pytest.raises(UnknownName, match="no branch 'attn'"):
        components.HeadResults.of(model, IDS)[1]


def difference(logits: Tensor, pairs: TokenPairs) -> Tensor:
    rows = torch.arange(len(pairs))
    return (logits[rows, pairs.right] - logits[rows, pairs.wrong]).mean()


def put(x: Tensor, value: Tensor, at: int) -> Tensor:
    x = x.clone()
    x[:, at] = value[:, at]
    return x


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
