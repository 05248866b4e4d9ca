"""Attributions to latents and output scores, against finite differences and hooks on the native model."""

from contextlib import contextmanager

import pytest
import torch

from monosem.data import PromptPairs
from monosem.directions import Direction, latent_attributions, latent_directions
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.latents import output_scores
from monosem.models import Site
from tiny_latents import MODEL, NEGATIVE, POSITIVE, SAE, SITE

DIRECTION = Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE)
TOKEN = MODEL.bare("good")[-1]
LAYERS = MODEL.hf.model.layers
PROMPTS = ["a good e", "the cat is good"]


@contextmanager
def hooked(*pairs):
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first(out):
    return out[0] if isinstance(out, tuple) else out


def instead(out, x):
    return (x, *out[1:]) if isinstance(out, tuple) else x


def state_and_logits(ids, away):
    """The output of block 1 and the last logits; with what every part writes along the direction taken out, or not."""
    unit = DIRECTION.unit

    def without(module, args, out):
        return instead(out, first(out) - (first(out) @ unit)[..., None] * unit)

    held = []
    pairs = [(LAYERS[1], lambda module, args, out: held.append(first(out)))]
    if away:
        parts = [MODEL.hf.model.embed_tokens, *(part for one in LAYERS for part in (one.self_attn, one.mlp))]
        pairs += [(part, without) for part in parts]
    with hooked(*pairs), torch.no_grad():
        logits = MODEL.hf(ids).logits[0, -1]
    return held[0][0], logits


def metric(logits):
    return logits[..., TOKEN] - logits[..., 3].pow(2) / 10


def by_differences(ids, latent, steps):
    """Of one prompt: every token's activation less the ablated one, times a central difference of the metric."""
    (x, _), (x0, _) = (state_and_logits(ids, away) for away in (False, True))
    f, f0 = (SAE.encode(one).dense()[:, latent] for one in (x, x0))
    row, size, total = SAE.W_dec[latent], 0.02, 0.0

    def value(state):
        with hooked((LAYERS[1], lambda module, args, out: instead(out, state[None]))), torch.no_grad():
            return float(metric(MODEL.hf(ids).logits[0, -1].double()))

    for step in range(steps):
        share = 1.0 if steps == 1 else (step + 0.5) / steps
        between = x0 + share * (x - x0)
        for token in range(1, len(x)):  # the first does not count
            up, down = between.clone(), between.clone()
            up[token] += size * row
            down[token] -= size * row
            total += float(f[token] - f0[token]) * (value(up) - value(down)) / (2 * size) / steps
    return total


@pytest.mark.parametrize("steps", [1, 3])
def test_attributions_are_finite_differences(steps):
    found = latent_attributions(MODEL, SAE, DIRECTION, PROMPTS, metric, steps=steps, batch_size=1)
    assert len(found.table) == SAE.width
    assert found.table["attribution"].abs().is_monotonic_decreasing
    for number, row in found.table.iloc[[0, 1, 5]].reset_index(drop=True).iterrows():
        expected = [by_differences(MODEL.tokens(prompt).ids, int(row["latent"]), steps) for prompt in PROMPTS]
        largest = max(1e-3, found.table["attribution"].abs().max())
        assert row["attribution"] == pytest.approx(sum(expected) / 2, abs=0.02 * largest), number
        values = found.values[:, [0, 1, 5][number]]
        assert values.tolist() == pytest.approx(expected, abs=0.02 * largest)
    batched = latent_attributions(MODEL, SAE, DIRECTION, PROMPTS, metric, steps=steps)
    both = batched.table.merge(found.table, on="latent")
    assert both["attribution_x"].tolist() == pytest.approx(both["attribution_y"].tolist(), abs=1e-4)


def test_tokens_as_a_metric_and_candidates_by_their_rows():
    found = latent_attributions(MODEL, SAE, DIRECTION, PROMPTS, [TOKEN], candidates=7, steps=2)
    cosines = torch.nn.functional.cosine_similarity(SAE.W_dec, DIRECTION.vector[None]).abs()
    assert set(found.table["latent"]) == set(cosines.topk(7).indices.tolist())
    expected = []
    for prompt in PROMPTS:
        ids = MODEL.tokens(prompt).ids
        clean, ablated = (state_and_logits(ids, away)[1] for away in (False, True))
        said = int(ablated.argmax())
        expected.append([float(one[TOKEN] - one[said]) for one in (clean, ablated)])
    held = found.config["metric"]
    assert [held["clean"], held["ablated"]] == pytest.approx(torch.tensor(expected).mean(0).tolist(), abs=1e-3)


def test_attributions_refuse():
    with pytest.raises(BadInput, match="needs prompts"):
        latent_attributions(MODEL, SAE, DIRECTION, [], metric)
    with pytest.raises(BadInput, match="no gradient"):
        latent_attributions(MODEL, SAE, DIRECTION, PROMPTS, lambda logits: logits.detach()[:, 0])
    with pytest.raises(Mismatch):
        latent_attributions(MODEL, SAE, Direction(torch.ones(32), Site.parse(SITE), "other"), PROMPTS, metric)


# ---------------------------------------------------------------------- output scores
def test_output_scores_are_made_by_hand():
    prompt, latents = "the cat sat on", [0, 3, 17]
    found = output_scores(MODEL, SAE, latents, prompt=prompt, times=3.0, tokens=5, batch_size=2).table
    ids = MODEL.tokens(prompt).ids
    x, clean = state_and_logits(ids, False)
    most = SAE.encode(x[-1]).dense().max()
    for row, latent in zip(found.to_dict("records"), latents):
        lens = (SAE.W_dec[latent] * MODEL.hf.model.norm.weight) @ MODEL.hf.lm_head.weight.T
        own = lens.topk(5).indices

        def turned_up(module, args, out, latent=latent):
            x = first(out).clone()
            x[:, -1] += 3.0 * most * SAE.W_dec[latent]
            return instead(out, x)

        with hooked((LAYERS[1], turned_up)), torch.no_grad():
            after = MODEL.hf(ids).logits[0, -1]
        for logits, name in ((after, "score"), (clean, "before")):
            p = logits.double().softmax(-1)
            places = [(p > p[token]).sum() for token in own]
            expected = float(p[own].max() * (1 - min(places) / len(p)))
            assert row[name] == pytest.approx(expected, rel=1e-3)
        assert row["token"] == MODEL.str_token(int(own[after[own].argmax()]))


def test_latents_that_do_not_steer_are_left_out():
    pairs = PromptPairs(POSITIVE, NEGATIVE)
    every = latent_directions(MODEL, SAE, pairs, n=30)
    latents = [int(one.provenance["latent"]) for one in every]
    scores = dict(zip(latents, output_scores(MODEL, SAE, latents).table["score"]))
    edge = sorted(scores.values())[-4]
    kept = latent_directions(MODEL, SAE, pairs, n=2, least_output=edge)
    assert [int(one.provenance["latent"]) for one in kept] == [one for one in latents if scores[one] >= edge][:2]
    assert kept[0].provenance["output_score"] == pytest.approx(scores[int(kept[0].provenance["latent"])])
    with pytest.raises(BadInput, match="none has an output score of 2"):
        latent_directions(MODEL, SAE, pairs, least_output=2.0)
    with pytest.raises(UnknownName):
        output_scores(MODEL, SAE, [SAE.width])
