"""Top latents, contrasts and their statistics, against naive re-implementations and a planted latent."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from monosem import latents
from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.latents.effects import logit_effects
from monosem.models import Model
from tiny import tiny_hf
from tiny_latents import MODEL, NEGATIVE, POSITIVE, SAE, SITE, TOPK, WIDTH, dictionary

# ---------------------------------------------------------------------- prompts


def dense_by_hand(prompt: str, sae: Dictionary, pool: str) -> torch.Tensor:
    run = MODEL.run([prompt], capture=SITE)
    acts = sae.encode(run[SITE][0]).dense()
    if pool == "last":
        return acts[-1]
    kept = [i for i, t in enumerate(run.tokens.ids[0].tolist()) if i > 0 and t not in MODEL.special_ids]
    return acts[kept].amax(0) if pool == "max" else acts[kept].mean(0)


@pytest.mark.parametrize("pool", ["max", "mean", "last"])
@pytest.mark.parametrize("sae", [SAE, TOPK])
def test_pooling_against_one_prompt_at_a_time(pool, sae):
    prompts = ["a good e", "bad", "the cat d e f g h", "x y"]
    prompts = [p for p in prompts if len(MODEL.tokens(p).rows()[0]) > 1]
    found = latents.pooled(MODEL, sae, prompts, pool, batch_size=3)
    expected = torch.stack([dense_by_hand(p, sae, pool) for p in prompts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_top_lists_every_token_and_always_the_last():
    prompts = ["a good e", "a bad e f g"]
    found = latents.top(MODEL, TOPK, prompts, n=3)
    for number, prompt in enumerate(prompts):
        run = MODEL.run([prompt], capture=SITE)
        acts = TOPK.encode(run[SITE][0]).dense()
        mine = found.table[found.table.prompt == number]
        assert 0 not in set(mine.position)
        for position, group in mine.groupby("position"):
            values, order = acts[position].sort(descending=True)
            positive = int((values > 0).sum())
            assert group.latent.tolist() == order[: min(3, positive)].tolist()
            assert group.value.tolist() == pytest.approx(values[: min(3, positive)].tolist(), rel=1e-4)
            assert set(group.token) == {run.str_tokens[0][position]}
        assert mine[mine["last"]].position.unique().tolist() == [len(run.str_tokens[0]) - 1]
    assert set(latents.top(MODEL, TOPK, prompts, positions="last").table["last"]) == {True}
    assert len(found.last) <= 6


def test_contrast_finds_a_planted_latent_and_confirms_it_on_prompts_that_it_did_not_see():
    run = MODEL.run(POSITIVE + NEGATIVE, capture=SITE)
    mean = torch.stack([run[SITE][i][run.tokens.mask[i]][1:].mean(0) for i in range(32)])
    difference = mean[:16].mean(0) - mean[16:].mean(0)
    weights = SAE.tensors
    W_enc, b_enc = weights.W_enc.clone() * 0.1, weights.b_enc.clone()
    W_enc[:, 17] = difference / difference.norm() * 5
    b_enc[17] = -float((mean @ W_enc[:, 17]).mean())
    planted = Dictionary(DictionaryParts(
        DictionaryTensors(W_enc=W_enc, b_enc=b_enc, W_dec=weights.W_dec, b_dec=weights.b_dec),
        "relu", site=SITE, model_name="llama",
    ))  # fmt: skip
    found = latents.contrast(MODEL, planted, POSITIVE, NEGATIVE, permutations=300)
    assert found.best == 17
    first = found.table.iloc[0]
    assert first.held_out_auroc > 0.85
    assert first.p < 0.01
    assert first.held_out_low <= first.held_out_auroc <= first.held_out_high
    assert found.table.score.is_monotonic_decreasing
    reverse = latents.contrast(MODEL, planted, NEGATIVE, POSITIVE, permutations=50)
    assert reverse.best != 17


def test_held_out_prompts_play_no_part_in_the_ranking():
    """Changing only held-out prompts leaves every search column as it was."""
    from monosem.data import PromptPairs

    _, rest = PromptPairs(POSITIVE, NEGATIVE).split(0.5, seed=0)
    out = {p: f"{p} h g f" for p in rest.positive}
    first = latents.contrast(MODEL, SAE, POSITIVE, NEGATIVE, permutations=50)
    second = latents.contrast(MODEL, SAE, [out.get(p, p) for p in POSITIVE], NEGATIVE, permutations=50)
    for name in ("latent", "score", "auroc", "p", "p_family"):
        assert np.array_equal(first.table[name], second.table[name]), name
    assert not np.array_equal(first.table.held_out_auroc, second.table.held_out_auroc)


def test_unpaired_prompts(tmp_path):
    with pytest.raises(BadInput, match="16 positive but 9 negative"):
        latents.contrast(MODEL, SAE, POSITIVE, NEGATIVE[:9])
    found = latents.contrast(MODEL, SAE, POSITIVE, NEGATIVE[:9], paired=False, permutations=50)
    found.save(tmp_path / "contrast.json")
    assert (tmp_path / "contrast.json").stat().st_size > 100
    assert found.config["prompts"] == {"search": 8, "held_out": 8}


def test_bad_input():
    with pytest.raises(BadInput, match="no prompts"):
        latents.top(MODEL, SAE, [])
    with pytest.raises(BadInput, match="no token that counts"):
        latents.top(MODEL, SAE, ["a"])
    with pytest.raises(BadInput, match="empty"):
        latents.top(MODEL, SAE, ["a good e", ""])
    with pytest.raises(UnknownName, match="'all' or 'last'"):
        latents.top(MODEL, SAE, ["a good e"], positions="some")
    with pytest.raises(UnknownName, match="pool"):
        latents.contrast(MODEL, SAE, POSITIVE, NEGATIVE, pool="median")
    with pytest.raises(Mismatch):
        latents.top(MODEL, dictionary(model_name="another"), ["a good e"])


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_neox", "granite", "cohere"])
def test_logit_effects_are_the_derivative_of_the_logits(family):
    """Against autograd through the model's own final norm, at a stream orthogonal to the row (there the norm's scale
    does not change to first order): derivative × scale = effect, up to a constant over the vocabulary."""
    model = Model(tiny_hf(family), None, family)
    sae = dictionary(model_name=family)
    row = sae.W_dec[3]
    layer_norm = family in ("gpt2", "gpt_neox", "cohere")
    moved = row - row.mean() if layer_norm else row
    x = torch.randn(32, generator=torch.Generator().manual_seed(5))
    x = x - x.mean() if layer_norm else x
    x = x - moved * (x @ moved) / moved.square().sum()
    _, slope = torch.func.jvp(model.unembed, (x,), (row,))
    expected = slope * x.square().mean().sqrt()
    effect = torch.cat(list(logit_effects(model, sae)))
    torch.testing.assert_close(effect[3], expected - expected.mean(), rtol=1e-3, atol=1e-4)
    up, values, down, low = latents.extreme_tokens(model, sae, n=4)
    assert up[3].tolist() == effect[3].topk(4).indices.tolist()
    assert low[3].tolist() == pytest.approx(effect[3].sort().values[:4].tolist(), rel=1e-4)
    assert values.shape == (WIDTH, 4)
    assert down.shape == (WIDTH, 4)


@pytest.mark.parametrize(("family", "multiplier"), [("llama", 1.0), ("granite", 0.6)])
def test_logit_effects_at_z_go_through_the_output_projection(family, multiplier):
    weights, model = SAE.tensors, Model(tiny_hf(family), None, family)
    at_z = Dictionary(DictionaryParts(weights, "relu", site="z.1", model_name=family, per_head=True))
    project = model.hf.get_submodule("model.layers.1.self_attn.o_proj")
    written = [project(row) * multiplier for row in weights.W_dec]
    mapped = DictionaryTensors(
        W_enc=weights.W_enc, b_enc=weights.b_enc, W_dec=torch.stack(written), b_dec=weights.b_dec
    )
    at_out = Dictionary(DictionaryParts(mapped, "relu", site="attn_out.1", model_name=family))
    one, other = (torch.cat(list(logit_effects(model, sae))) for sae in (at_z, at_out))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    off = Dictionary(DictionaryParts(mapped, "relu", site="mlp_post.1", model_name=family))
    with pytest.raises(BadInput, match=r"mlp_post\.1 have no direct effect"):
        latents.extreme_tokens(model, off, n=4)


def gated(bias: float) -> Dictionary:
    """Nothing fires unless pre-activations exceed `-bias`."""
    weights = SAE.tensors
    biases = torch.full((WIDTH,), bias)
    return Dictionary(DictionaryParts(
        DictionaryTensors(W_enc=weights.W_enc, b_enc=biases, W_dec=weights.W_dec, b_dec=weights.b_dec),
        "relu", site=SITE, model_name="llama",
    ))  # fmt: skip


def test_prompts_keep_their_numbers_when_some_are_silent():
    prompts = [f"{a} {b}" for a in "abcdefghijklm" for b in ("the cat", "good", "sun moon")]
    assert len(prompts) > 32  # more than one batch
    loudest = latents.pooled(MODEL, gated(0.0), prompts).amax(1)
    cut = float(loudest.median())
    table = latents.top(MODEL, gated(-cut), prompts, n=1).table
    expected = (loudest > cut).nonzero()[:, 0].tolist()
    assert 0 < len(expected) < len(prompts)
    assert set(expected) <= set(table.prompt)
    for number in expected:
        found = table[table.prompt == number].value.max()
        assert found >= float(loudest[number]) - cut - 1e-3


def test_no_latent_fires():
    with pytest.raises(BadInput, match="fires on any of the prompts"):
        latents.contrast(MODEL, gated(-1e6), POSITIVE, NEGATIVE)


def test_best_tells_apart_before_it_is_large():
    columns = ["latent", "score", "auroc", "auroc_low", "rate_negative"]
    rows = [(5, 9.0, 0.55, 0.4, 1.0), (6, 8.0, 0.8, 0.6, 0.1), (2, 4.0, 0.9, 0.75, 0.0), (1, 3.0, 0.95, 0.8, 0.0)]
    table = pd.DataFrame(rows, columns=columns)
    assert latents.Contrast(table, {}).best == 2  # 6 tells apart as well, but of so few prompts it may be luck
    assert latents.Contrast(table, {}).candidates(4)["latent"].tolist() == [2, 1, 6, 5]
    worth = table.score * (2 * table.auroc_low - 1).clip(0) * (1 - table.rate_negative / 2)
    assert worth.tolist() == pytest.approx([0, 1.52, 2.0, 1.8])
    assert latents.Contrast(table[:1], {}).best == 5  # where none does
    assert latents.Contrast(table, {}).top(2)["latent"].tolist() == [5, 6]


def test_a_latent_that_is_on_everywhere_gives_way():
    rows = [(5, 4.5, 1.0, 0.9, 1.0), (2, 4.0, 1.0, 0.9, 0.2)]
    table = pd.DataFrame(rows, columns=["latent", "score", "auroc", "auroc_low", "rate_negative"])
    assert latents.Contrast(table, {}).best == 2


def test_a_saved_contrast_is_json(tmp_path):
    found = latents.contrast(MODEL, SAE, POSITIVE, NEGATIVE, permutations=20)
    assert not found.table.held_out_low.isna().any()
    found.save(tmp_path / "contrast.json")
    held = json.loads((tmp_path / "contrast.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert [row["latent"] for row in held["table"]] == found.table.latent.tolist()


def test_tokens_keep_the_space_before_them():
    """The decoder of a SentencePiece vocabulary drops it from the first token of a text, which each is by itself."""
    table = latents.top(MODEL, SAE, "the cat sat", n=1).table
    assert set(table.token) == {" cat", " sat"}
