"""Statistics leave out norm outliers inside prompts, and say how many: slow sums over bare activations as oracle."""

import pytest
import torch

from monosem import latents
from monosem.activations import Skipper, SkipRule, left_out_words
from monosem.dictionaries import Dictionary, evaluate
from monosem.directions import Direction
from monosem.errors import BadInput
from monosem.models import Model
from monosem.steering import outcome
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

SITE = "resid_post.1"
HUGE = " dog"  # a word whose stream is an outlier in every layer
POSITIVE = ["the cat sat on", "a cat sat dog the", "the mat cat", "cat the sat mat"]
NEGATIVE = ["the sea ran on", "a sea ran the", "the mat dog sea", "sea the ran mat"]


@pytest.fixture(scope="module")
def model() -> Model:
    made = tiny_model("llama")
    huge = made.to_single_token(HUGE)
    made.hf.get_input_embeddings().register_forward_hook(
        lambda _, args, out: torch.where((args[0] == huge)[..., None], 1000 * out, out)
    )
    return made


@pytest.fixture(scope="module", params=[{}, {"skip_rule": {"outlier": 10.0, "outlier_norm": 150.0}}])
def sae(request) -> Dictionary:
    tensors = random_tensors(32, 24, 0, (1 / 6, 1 / 4))
    return tiny_dictionary("relu", tensors, model_name="", metadata=request.param)


def usual(model: Model, prompt: str) -> torch.Tensor:
    """The activations that count, from transformers itself."""
    ids = model.tokens(prompt).rows()[0]
    x = model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
    wrong = {model.to_single_token(HUGE), *model.special_ids}
    return torch.stack([row for position, row in enumerate(x) if position and ids[position] not in wrong])


def outliers(model: Model, prompts: list[str]) -> int:
    return sum(row[1:].count(model.to_single_token(HUGE)) for row in model.tokens(prompts).rows())


def dense(sae: Dictionary, x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ sae.W_enc + sae.b_enc)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_pooling(model, sae, pool):
    found = latents.pooled(model, sae, POSITIVE, pool)
    codes = [dense(sae, usual(model, prompt)) for prompt in POSITIVE]
    expected = torch.stack([one.amax(0) if pool == "max" else one.mean(0) for one in codes])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_prompts_values_depend_on_no_other_prompt(model, sae):
    many = latents.pooled(model, sae, [*["dog dog dog a"] * 9, *POSITIVE], batch_size=5)[9:]
    torch.testing.assert_close(many, latents.pooled(model, sae, POSITIVE), rtol=1e-5, atol=1e-5)


def test_contrast_and_what_it_says(model, sae):
    found = latents.contrast(model, sae, POSITIVE, NEGATIVE, permutations=20)
    assert found.table["difference"].abs().max() < 50  # an outlier's codes are in the hundreds
    tokens = found.config["tokens"]
    assert tokens["left_out"] == {"first": 8, "outlier": outliers(model, POSITIVE + NEGATIVE)}
    assert tokens["left_out"]["outlier"] == 2
    assert tokens["kept"] == sum(len(usual(model, prompt)) for prompt in POSITIVE + NEGATIVE)
    assert left_out_words(tokens) == "10 tokens left out (8 first, 2 outlier)"


def test_top_shows_only_tokens_that_count(model, sae):
    found = latents.top(model, sae, ["a cat sat dog the", "the cat dog"])
    assert HUGE not in set(found.table["token"])
    assert set(found.table["position"][found.table["prompt"] == 0]) == {1, 2, 4}
    assert found.config["tokens"]["left_out"] == {"first": 2, "outlier": 2}
    assert set(found.last["prompt"]) == {0}
    with pytest.raises(BadInput, match=r"ends with ' dog', which does not count \(outlier\)"):
        latents.top(model, sae, "the cat dog", positions="last")
    with pytest.raises(BadInput, match=r"ends with ' dog'.*outlier"):
        latents.pooled(model, sae, ["the cat", "the cat dog"], "last")
    with pytest.raises(BadInput, match="no token that counts"):
        latents.pooled(model, sae, ["the cat", "the dog"])


def test_directions(model):
    found = Direction.fit(model, POSITIVE, NEGATIVE, SITE, at="mean")
    up, down = (torch.stack([usual(model, p).double().mean(0) for p in side]).mean(0) for side in (POSITIVE, NEGATIVE))
    torch.testing.assert_close(found.vector, (up - down).float(), rtol=1e-4, atol=1e-4)
    assert found.provenance["tokens"]["left_out"] == {"first": 8, "outlier": 2}
    with pytest.raises(BadInput, match="token ' dog' of prompt 'the cat dog' does not count"):
        Direction.fit(model, ["the cat dog", "a cat"], NEGATIVE, SITE)
    whole = Direction.fit(model, POSITIVE, NEGATIVE, SITE, at="mean", skip=SkipRule(outlier=None))
    assert whole.vector.norm() > 10 * found.vector.norm()
    Direction.fit(model, ["the cat dog", "a cat"], NEGATIVE, SITE, skip=SkipRule.none())


def test_means_of_continuations(model, sae):
    prompts = ["the cat", "a mat sat"]
    plain = outcome(model, prompts, max_new_tokens=6, read=SITE)
    new = plain.new[0]
    huge = next(token for token in new if token not in model.special_ids)  # now what the first one says is an outlier
    hook = model.hf.get_input_embeddings().register_forward_hook(
        lambda _, args, out: torch.where((args[0] == huge)[..., None], 1000 * out, out)
    )
    try:
        for read in (SITE, sae):
            found = outcome(model, prompts, max_new_tokens=6, read=read)
            for row, prompt in enumerate(model.tokens(prompts).rows()):
                ids = prompt + found.new[row]
                x = model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
                wrong = {huge, model.to_single_token(HUGE), *model.special_ids}
                kept = [i for i in range(len(prompt), len(ids)) if ids[i] not in wrong]
                assert found.left_out[row] == len(found.new[row]) - len(kept)
                if kept:
                    torch.testing.assert_close(found.means[row], x[kept].mean(0), rtol=1e-4, atol=1e-4)
                else:
                    assert found.means[row] is None
    finally:
        hook.remove()


def test_evaluation_and_index_follow_the_dictionarys_rule(model, tmp_path):
    ids = torch.randint(4, 99, (6, 12), generator=torch.Generator().manual_seed(1))
    norms = torch.stack(
        [model.hf(row[None], output_hidden_states=True).hidden_states[2][0].norm(dim=-1) for row in ids]
    )
    limit = float(norms[:, 3:].flatten().quantile(0.7))
    rule = {"special": False, "first": 3, "outlier": 5.0, "outlier_norm": limit}
    sae = tiny_dictionary(
        "relu", random_tensors(32, 24, 0, (1 / 6, 1 / 4)), model_name="", metadata={"skip_rule": rule}
    )
    counted = int((norms[:, 3:] <= limit).sum())
    assert 0 < counted < 6 * 9
    found = evaluate(model, sae, ids, quiet=True)
    assert found.tokens == counted
    assert found.skipped["first"] == 18
    assert found.config["outlier_norm"] == {SITE: limit}
    index = latents.build_index(model, sae, ids, tmp_path / "i.sqlite", latents.IndexConfig(context=12), quiet=True)
    assert index.meta["tokens"] == counted
    assert index.meta["skip"] == str(sae.skip)


def test_counts_of_windows_and_of_prompts_are_the_same(model):
    """One definition: what a harvest keeps of a window is what counts in it as a prompt."""
    ids = torch.randint(3, 99, (5, 12), generator=torch.Generator().manual_seed(0))
    x = {SITE: model.run(ids, capture=SITE)[SITE]}
    site = model.site(SITE)
    windows, prompts = Skipper.of(model, [site]), Skipper.of(model, [site])
    kept = windows.keep(ids, {SITE: x[SITE].flatten(0, 1)})
    assert torch.equal(prompts.counted(model.tokens(ids), x).flatten().nonzero()[:, 0], kept)
    assert windows.counts == prompts.counts
    assert windows.counts["outlier"] == int((ids[:, 1:] == model.to_single_token(HUGE)).sum())
