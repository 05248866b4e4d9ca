"""Selection, readings along a text, latents as directions: against passes that hooks make, and what was planted."""

import math

import pytest
import torch

from monosem import edits, metrics
from monosem.data import PromptPairs
from monosem.directions import Direction, Directions, alike, along, latent_directions, prefilter, select
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.models import Site
from tiny_latents import MODEL, NEGATIVE, POSITIVE, SAE, SITE

PAIRS = PromptPairs(POSITIVE[:6], NEGATIVE[:6])
FOUND = Directions.fit(MODEL, PromptPairs(POSITIVE[6:], NEGATIVE[6:]), ["resid_pre.1", "mlp_out.1", "resid_post.1"])
TOKEN = MODEL.bare("good")[-1]


def ablated_by_hooks(prompts, vector, pre=True):
    """Arditi's hooks: before each block, and after attention and MLP."""
    unit, handles = vector / vector.norm(), []

    def without(x):
        return x - (x @ unit)[..., None] * unit

    def before(module, args, kwargs):
        if args:
            return (without(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": without(kwargs["hidden_states"])}

    def after(module, args, out):
        return (without(out[0]), *out[1:]) if isinstance(out, tuple) else without(out)

    for block in MODEL.hf.model.layers:
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles += [part.register_forward_hook(after) for part in (block.self_attn, block.mlp)]
    try:
        return torch.stack([MODEL.hf(MODEL.tokens(prompt).ids).logits[0, -1] for prompt in prompts])
    finally:
        for handle in handles:
            handle.remove()


def test_ablation_everywhere_is_that_of_hooks():
    vector = FOUND[1].vector
    away = edits.ablate_writes(MODEL, vector)
    ours = torch.cat([MODEL.run(prompt, edits=away).logits[:, -1] for prompt in POSITIVE[:3]])
    torch.testing.assert_close(ours, ablated_by_hooks(POSITIVE[:3], vector), rtol=1e-3, atol=1e-4)
    final = MODEL.run(POSITIVE[0], edits=away, capture="resid_post.2")["resid_post.2"]
    assert (final @ vector / vector.norm()).abs().max() < 1e-3


def test_arditis_scores_are_made_by_hand():
    chosen = select(
        MODEL, FOUND, PAIRS, tokens=[TOKEN], latest=1.0, most_kl=math.inf, least_induced=-math.inf, batch_size=4
    )

    def score(logits):
        p = logits.double().softmax(-1)[:, TOKEN]
        return float(((p + 1e-8).log() - (1 - p + 1e-8).log()).mean())

    clean = torch.stack([MODEL.run(prompt).logits[0, -1] for prompt in PAIRS.negative])
    for one, (_, row) in zip(chosen.candidates, chosen.table.iterrows()):
        added = [MODEL.run(prompt, edits=edits.add(one)).logits[0, -1] for prompt in PAIRS.negative]
        damage = metrics.kl(clean, ablated_by_hooks(PAIRS.negative, one.vector)).mean()
        assert row["bypass"] == pytest.approx(score(ablated_by_hooks(PAIRS.positive, one.vector)), abs=1e-3)
        assert row["induce"] == pytest.approx(score(torch.stack(added)), abs=1e-3)
        assert row["kl"] == pytest.approx(float(damage), abs=1e-3)
    assert chosen.best is chosen.candidates[0]
    assert chosen.table["bypass"][0] == min(chosen.table["bypass"])


def test_filters_leave_out_and_say_why():
    chosen = select(MODEL, FOUND, PAIRS, tokens=[TOKEN], latest=0.7, most_kl=math.inf, least_induced=-math.inf)
    layers = dict(zip(chosen.table["site"], chosen.table["left_out"]))
    assert layers == {"resid_pre.1": "", "mlp_out.1": "", "resid_post.1": "late"}  # int(.7 · 3) = 2
    none = select(MODEL, FOUND, PAIRS, tokens=[TOKEN], latest=1.0, most_kl=0.0)
    with pytest.raises(BadInput, match="3 changes too much"):
        _ = none.best
    strict = select(MODEL, FOUND, PAIRS, tokens=[TOKEN], latest=1.0, most_kl=math.inf, least_induced=math.inf)
    assert set(strict.table["left_out"]) == {"does not induce"}
    with pytest.raises(BadInput, match="3 late.*: give directions of earlier layers"):
        _ = select(MODEL, FOUND, PAIRS, by="cosmic", latest=0.0).best


def test_cosmic_compares_last_tokens_where_the_classes_are_least_alike():
    chosen = select(MODEL, FOUND, PAIRS, by="cosmic", latest=1.0, most_kl=math.inf)
    cosine = torch.nn.functional.cosine_similarity
    means = {}
    for layer in range(3):
        site = f"resid_post.{layer}"
        sides = [
            torch.stack([MODEL.run(p, capture=site)[site][0, -1] for p in side])
            for side in (PAIRS.positive, PAIRS.negative)
        ]
        means[site] = [side.mean(0) for side in sides]
    site = min(means, key=lambda one: float(cosine(*means[one], dim=0)))
    assert chosen.config["baseline"]["sites"] == [site]
    for one, (_, row) in zip(chosen.candidates, chosen.table.iterrows()):
        added = torch.stack([MODEL.run(p, edits=edits.add(one), capture=site)[site][0, -1] for p in PAIRS.negative])
        gone = [
            MODEL.run(p, edits=edits.ablate_writes(MODEL, one.vector), capture=site)[site][0, -1]
            for p in PAIRS.positive
        ]
        assert row["induce"] == pytest.approx(float(cosine(added, means[site][0][None]).mean()), abs=1e-4)
        assert row["bypass"] == pytest.approx(float(cosine(torch.stack(gone), means[site][1][None]).mean()), abs=1e-4)
        assert row["score"] == pytest.approx(row["induce"] + row["bypass"])
    assert chosen.best is chosen.candidates[int(chosen.table["score"].argmax())]


def test_what_lies_behind_cosmics_layers_is_said_to_induce_nothing():
    found = Directions.fit(MODEL, PromptPairs(POSITIVE[6:], NEGATIVE[6:]))
    chosen = select(MODEL, found, PAIRS, by="cosmic", latest=2.0, most_kl=math.inf)
    sites = chosen.config["baseline"]["sites"]
    plain = {
        side: torch.stack([torch.cat([MODEL.run(p, capture=s)[s][0, -1] for s in sites]) for p in given])
        for side, given in (("up", PAIRS.positive), ("down", PAIRS.negative))
    }
    still = float(torch.nn.functional.cosine_similarity(plain["down"], plain["up"].mean(0)[None]).mean())
    same = [abs(value - still) < 1e-6 for value in chosen.table["induce"]]
    assert 0 < sum(same) < 3
    assert chosen.doubts[0].startswith(f"{sum(same)} of 3 candidates lie behind what COSMIC compares")
    assert not select(MODEL, found, PAIRS, tokens=[TOKEN], latest=2.0).doubts


@pytest.mark.parametrize("paired", [False, True])
def test_the_prefilter_keeps_prompts_that_begin_as_their_side_says(paired):
    def half(prompt):  # the log-odds are above 0 where the tokens have more than half of the probability
        return float(MODEL.hf(MODEL.tokens(prompt).ids).logits[0, -1].double().softmax(-1)[tokens].sum())

    first = MODEL.hf(MODEL.tokens(POSITIVE[0]).ids).logits[0, -1].double().softmax(-1).sort(descending=True)
    tokens = first.indices[: int((first.values.cumsum(0) <= 0.5).sum()) + 1].tolist()  # just above half
    up, down = ([half(p) for p in side] for side in (POSITIVE, NEGATIVE))
    good, calm = [p > 0.5 for p in up], [p < 0.5 for p in down]
    assert (0 < sum(good) < len(good)) or (0 < sum(calm) < len(calm))
    found = prefilter(MODEL, PromptPairs(POSITIVE, NEGATIVE, paired=paired), tokens, fewest=1)
    assert found.dropped == {"positive": good.count(False), "negative": calm.count(False)}
    keep = [a and b for a, b in zip(good, calm)]
    assert list(found.pairs.positive) == [p for p, k in zip(POSITIVE, keep if paired else good) if k]
    assert list(found.pairs.negative) == [p for p, k in zip(NEGATIVE, keep if paired else calm) if k]
    with pytest.raises(BadInput, match="99 a side are needed"):
        prefilter(MODEL, PromptPairs(POSITIVE, NEGATIVE, paired=paired), tokens, fewest=99)


def test_selection_refuses_what_it_cannot_do():
    with pytest.raises(BadInput, match="needs tokens="):
        select(MODEL, FOUND, PAIRS)
    with pytest.raises(BadInput, match="takes none"):
        select(MODEL, FOUND, PAIRS, by="cosmic", tokens=[TOKEN])
    with pytest.raises(UnknownName, match="arditi"):
        select(MODEL, FOUND, PAIRS, by="ardity")
    other = Directions([Direction(torch.ones(32), Site("resid_post", 1), "another")])
    with pytest.raises(Mismatch, match="made for another"):
        select(MODEL, other, PAIRS, by="cosmic")
    with pytest.raises(Mismatch, match="made for another"):
        along(MODEL, "a", other)
    with pytest.raises(UnknownName):
        along(MODEL, "a", Direction(torch.ones(32), Site("resid_post", 7)))


# ---------------------------------------------------------------------- readings
@pytest.mark.parametrize("method", ["dim", "lda", "pca_pairs", "logistic"])
def test_class_means_read_as_minus_one_and_one(method):
    pairs = PromptPairs(POSITIVE, NEGATIVE)
    found = Directions.fit(MODEL, pairs, method=method)
    for side, mean in ((POSITIVE, 1.0), (NEGATIVE, -1.0)):
        scores = along(MODEL, side, found).table
        last = scores[scores["position"] == scores.groupby("row")["position"].transform("max")]
        assert last.groupby("site")["score"].mean().tolist() == pytest.approx([mean] * 3, abs=2e-3)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_row_alone_is_the_row_in_a_batch(padding):
    prompts = ["the cat", "a dog sat on the mat"]
    both = along(MODEL, MODEL.tokens(prompts, padding=padding), FOUND.at("last")).table
    for row, prompt in enumerate(prompts):
        alone = along(MODEL, prompt, FOUND).table
        of_row = both[both["row"] == row]
        assert of_row["token"].tolist() == alone["token"].tolist()
        assert of_row["score"].tolist() == pytest.approx(alone["score"].tolist(), abs=1e-4)


def test_the_picture_has_a_row_a_layer_and_a_column_a_token():
    figure = along(MODEL, "the cat sat", FOUND).plot()
    assert figure.data[0].z.shape == (3, len(MODEL.bare("the cat sat")))
    plain = Directions([Direction(torch.ones(32), Site("resid_post", 1), MODEL.name)])
    scores = along(MODEL, "the cat", plain)
    x = MODEL.run("the cat", capture="resid_post.1")["resid_post.1"][0]
    torch.testing.assert_close(scores.values[0, 0], x.sum(-1) / 32**0.5)
    assert scores.config["units"] == "units of activation"
    with pytest.raises(BadInput, match="several directions"):
        along(MODEL, "a", Directions.fit(MODEL, PAIRS, SITE, at=["last", "mean"]))


def test_sets_are_compared_where_the_stream_is_the_same():
    post = Directions([FOUND["resid_pre.1"]])
    other = Directions([Direction(FOUND["resid_pre.1"].vector, Site("resid_post", 0), MODEL.name)])
    table = alike({"a": post, "b": other})
    assert table["cosine"].tolist() == pytest.approx([1.0])
    with pytest.raises(BadInput, match="no site"):
        alike({"a": post, "b": Directions([FOUND["resid_post.1"]])})
    with pytest.raises(Mismatch, match="another"):
        alike({"a": post, "b": Directions([Direction(torch.ones(32), Site("resid_pre", 1), "another")])})


# ---------------------------------------------------------------------- latents
@pytest.mark.parametrize("by", ["auroc", "mean_diff", "cohen", "composite", "decoder_cos"])
def test_latents_are_ranked_by_the_score_that_is_asked_for(by):
    pairs = PromptPairs(POSITIVE, NEGATIVE)
    found = latent_directions(MODEL, SAE, pairs, by=by, n=3)
    assert len(found) == 3
    column = {"mean_diff": "difference", "composite": "score"}.get(by, by)
    values = [one.provenance[column] for one in found]
    assert values == sorted(values, reverse=True)
    latent = int(found[0].provenance["latent"])
    assert float(found[0].unit @ SAE.W_dec[latent] / SAE.W_dec[latent].norm()) == pytest.approx(1, abs=1e-5)
    size = found[0].vector.norm() / SAE.W_dec[latent].norm()
    assert float(size) == pytest.approx(abs(found[0].provenance["difference"]) or 1.0, rel=1e-4)
    with pytest.raises(UnknownName, match="auroc"):
        latent_directions(MODEL, SAE, pairs, by="aurok")


def test_cohens_d_is_that_of_the_formula():
    from monosem.statistics import cohen

    up, down = torch.tensor([[1.0, 2], [3, 2]]), torch.tensor([[0.0, 2], [2, 2], [1, 2]])
    expected = (2 - 1) / math.sqrt((2 * 1.0 + 2 * 1.0) / 3)
    assert cohen(up, down).tolist() == pytest.approx([expected, 0.0])
