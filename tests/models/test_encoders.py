"""Encoders with a head for masked tokens, against transformers' hidden states, attention probabilities and logits."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from anymodel import randomised, tiny_config
from monosem import components, edits, lenses, patching
from monosem.data import TokenPairs
from monosem.errors import BadInput, UnknownName
from monosem.models import Model, load_model, verify

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
# model type -> what else its config says
TYPES: dict[str, dict[str, object]] = {
    "bert": {},
    "ernie": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "data2vec-text": {},
    "xlm-roberta-xl": {},
    "roberta-prelayernorm": {},
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 1},  # each group for two of four layers
    "modernbert": {},
    "mpnet": {},
    "nomic_bert": {},
    "jina_embeddings_v3": {},
    "gte": {},
    "deberta-v2": {},
    "megatron-bert": {},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "roformer": {"embedding_size": 16},
    "big_bird": {"attention_type": "original_full"},
}
OFF = ("mpnet", "deberta-v2", "megatron-bert", "rembert", "roformer", "big_bird")  # not on the attention registry


def tiny_masked(kind: str) -> PreTrainedModel:
    config = tiny_config(kind, **TYPES[kind])
    hf = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    turns = [p for name, p in hf.named_parameters() if kind == "roformer" and "embed_positions" in name]
    kept = [p.clone() for p in turns]  # rotations are no weights, although RoFormer holds them as such
    randomised(hf)
    for parameter, value in zip(turns, kept):
        parameter.copy_(value)
    return hf


def model_of(kind: str) -> Model:
    return Model(tiny_masked(kind), None, kind)


@pytest.mark.parametrize("kind", TYPES)
def test_identities(kind):
    result = verify(model_of(kind))
    assert result.ok, result.table[~result.table.ok].to_string()
    assert "a later token changes no earlier one" not in set(result.table.identity)
    assert "right padded = alone" in set(result.table.identity)


@pytest.mark.parametrize("kind", ["rembert", "bert"])
def test_exchanged_keys_and_values_are_found(kind):
    hf, family = tiny_masked(kind), model_of(kind).family
    attention, feed = family.branches
    parts = attention.mixers[0].parts
    mixer = replace(attention.mixers[0], parts=parts | {"k": parts["v"], "v": parts["k"]})
    wrong = replace(family, branches=(replace(attention, mixers=(mixer,)), feed))
    assert not verify(Model(hf, family=wrong)).ok


@torch.no_grad()
@pytest.mark.parametrize("kind", TYPES)
def test_streams_and_logits_are_transformers(kind):
    model = model_of(kind)
    streams = [f"resid_pre.{layer}" for layer in model.layers()]
    run = model.run(IDS, [*streams, f"resid_post.{model.cfg.n_layers - 1}"])
    native = model.hf(IDS, output_hidden_states=True)
    for site, state in zip(streams, native.hidden_states):
        torch.testing.assert_close(run[site], state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run.logits, native.logits, rtol=1e-4, atol=1e-4)
    last = run[f"resid_post.{model.cfg.n_layers - 1}"]
    torch.testing.assert_close(model.unembed(last), native.logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in OFF])
def test_patterns_see_later_tokens(kind):
    model = model_of(kind)
    run = model.run(IDS, "pattern.1")
    assert bool((run["pattern.1"][:, :, 0, 1:] > 0).any())
    model.hf.set_attn_implementation("eager")
    native = model.hf(IDS, output_attentions=True).attentions[1]
    torch.testing.assert_close(run["pattern.1"], native, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "modernbert", "roberta", "deberta-v2"])
def test_padding_is_masked_as_transformers_masks_it(kind):
    model = model_of(kind)
    short = IDS[0, :5].tolist()
    run = model.run([short, IDS[1].tolist()], "resid_post.1")
    alone = model.hf(torch.tensor([short]), output_hidden_states=True)
    torch.testing.assert_close(run["resid_post.1"][:1, :5], alone.hidden_states[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run.logits[:1, :5], alone.logits, rtol=1e-4, atol=1e-4)


def test_what_has_no_meaning_says_so():
    model = model_of("bert")
    with pytest.raises(BadInput, match="attends in both directions.* it cannot continue a text"):
        model.generate(IDS, max_new_tokens=2)
    with pytest.raises(UnknownName, match="puts the stream itself through a norm after attn_out.0"):
        components.direct_attribution(model, IDS, tokens=[5])
    with pytest.raises(UnknownName, match="has a head of its own between the last stream and the unembedding"):
        components.direct_attribution(model_of("modernbert"), IDS, tokens=[5, 5])


@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2", "albert"])
def test_a_sweep_equals_run_by_run(kind):
    model = model_of(kind)
    clean, corrupted = IDS[:1].tolist(), IDS[:1].tolist()
    corrupted[0][4] = 77
    pairs = TokenPairs.of(model, clean, corrupted, [11], [12])
    found = patching.sweep(model, pairs, "resid_pre", ("layer", "position"), positions=[0, 4, 8], quiet=True)
    source = model.run(clean, [f"resid_pre.{layer}" for layer in model.layers()])
    for cell, value in zip(found.cells, found.mean().tolist()):
        there = source["resid_pre", cell.layer][0, cell.position]

        def put(x: torch.Tensor, there: torch.Tensor = there, position: int = cell.position) -> torch.Tensor:
            x = x.clone()
            x[:, position] = there
            return x

        logits = model.run(corrupted, edits=edits.function(("resid_pre", cell.layer), put)).logits[0, -1]
        assert value == pytest.approx(float(logits[11] - logits[12]), abs=1e-4)


@torch.no_grad()
def test_the_logit_lens_reads_masked_tokens():
    model = model_of("bert")
    run = model.run(IDS, ["resid_post.1", "resid_post.3"])
    native = model.hf.cls.predictions
    torch.testing.assert_close(model.unembed(run["resid_post.1"]), native(run["resid_post.1"]), rtol=1e-4, atol=1e-4)
    assert lenses.logit(model, IDS, layers=[1]) is not None


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_a_folder_is_loaded_with_its_head(kind, tmp_path):
    hf = tiny_masked(kind)
    hf.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), quiet=True)
    with torch.no_grad():
        torch.testing.assert_close(model.run(IDS).logits, hf(IDS).logits, rtol=1e-4, atol=1e-4)
    assert type(model.hf) is type(hf)


def test_types_without_streams_to_read_say_why():
    hf = randomised(AutoModelForMaskedLM.from_config(tiny_config("longformer"), dtype=torch.float32))
    with pytest.raises(UnknownName, match="type 'longformer' are not read: it fills every text up to a multiple"):
        load_model(hf, quiet=True)


@torch.no_grad()
@pytest.mark.parametrize("site", ["resid_post", "z", "pattern", "mlp_post", "ln1_output"])
def test_an_edit_of_a_layer_leaves_the_other_calls_of_its_block_alone(site):
    """ALBERT against its own modules, called by hand: layers 2 and 3 are two calls of one block."""
    model = model_of("albert")
    first, second = (group.albert_layers[0] for group in model.hf.albert.encoder.albert_layer_groups)
    stream = model.run(IDS, "resid_pre.2")["resid_pre.2"]
    places = {
        "resid_post": (second, False),
        "z": (second.attention.dense, True),
        "mlp_post": (second.ffn_output, True),
        "ln1_output": (second.attention.LayerNorm, False),
    }

    def called(double: int | None) -> torch.Tensor:
        hidden, hook = stream, None
        for layer in (2, 3):
            if layer == double and site in places:
                module, before = places[site]
                hook = (
                    module.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
                    if before
                    else module.register_forward_hook(lambda _, args, out: out * 2)
                )
            hidden = second(hidden)
            if hook is not None:
                hook.remove()
        return model.hf.predictions(hidden)

    torch.testing.assert_close(model.run(IDS).logits, called(None), rtol=1e-4, atol=1e-4)
    if site == "pattern":  # the attention of transformers' registry is called again as well
        heads = model.run(IDS, ["pattern.2", "pattern.3"])
        model.hf.set_attn_implementation("eager")
        native = model.hf(IDS, output_attentions=True).attentions
        torch.testing.assert_close(heads["pattern.2"], native[2], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(heads["pattern.3"], native[3], rtol=1e-3, atol=1e-4)
        return
    for layer in (2, 3):
        edited = model.run(IDS, edits=edits.scale((site, layer), 2.0)).logits
        torch.testing.assert_close(edited, called(layer), rtol=1e-4, atol=1e-4)
    assert (model.blocks[1], model.blocks[2]) == (first, second)
