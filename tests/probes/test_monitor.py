"""A probe that watches generation, against the same probe on a run over the finished texts."""

import math

import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, Mismatch
from monosem.probes import Reading, Rows, calibrated, fit, predict_control, read_rows, split, watch
from tiny_latents import MODEL, NEGATIVE, POSITIVE

TEXTS, LABELS = [*POSITIVE, *NEGATIVE], [1] * len(POSITIVE) + [0] * len(NEGATIVE)
PROMPTS = ["a good day", "the", "one two three cat sat on"]


@pytest.fixture(scope="module")
def parts():
    return split(read_rows(MODEL, TEXTS, LABELS, ["resid_post.0", "resid_post.1"], positions="mean"))


@pytest.fixture(scope="module")
def probe(parts):
    probe = fit(parts.train, parts.validation).at("resid_post.1")
    return calibrated(probe, parts.validation.at("resid_post.1")).with_parts({}, threshold=torch.tensor([0.3]).double())


def slow(how, f):
    """The reading after the last of these log-odds, from all of them."""
    if how == "ema":
        now = f[0]
        for one in f[1:]:
            now = 0.5 ** (1 / 8) * now + (1 - 0.5 ** (1 / 8)) * one
        return now
    windows = [sum(f[max(0, i - 15) : i + 1]) / len(f[max(0, i - 15) : i + 1]) for i in range(len(f))]
    none = math.prod(1 / (1 + math.exp(one)) for one in f)
    simple = {"token": f[-1], "mean": sum(f) / len(f), "max": max(f), "window": max(windows)}
    return simple[how] if how in simple else math.log((1 - none) / none)


@pytest.mark.parametrize("how", ["token", "mean", "max", "ema", "window", "noisy_or"])
def test_readings_do_not_depend_on_chunks_or_padding(how):
    draw = torch.Generator().manual_seed(0)
    f = torch.randn(3, 40, generator=draw).double() * 0.3
    mask = torch.arange(40) >= torch.tensor([0, 5, 12])[:, None]  # padded on the left
    whole = Reading(how).add(f, mask)
    reading = Reading(how)
    chunks = torch.cat([reading.add(f[:, a:b], mask[:, a:b]) for a, b in ((0, 20), (20, 21), (21, 40))], 1)
    assert torch.equal(whole[mask], chunks[mask])
    for row, first in enumerate((0, 5, 12)):
        for end in (first + 1, first + 4, 40):
            assert whole[row, end - 1].item() == pytest.approx(slow(how, f[row, first:end].tolist()))


@pytest.mark.parametrize("how", ["token", "ema"])
def test_watching_is_reading_the_finished_texts(probe, how):
    found = watch(MODEL, PROMPTS, probe, how=how, max_new_tokens=6)
    plain = MODEL.generate(PROMPTS, max_new_tokens=6)
    assert found.generation.new == plain.new  # looking on changes nothing
    run = MODEL.run(plain.ids, capture=probe.places[0].site)
    for row, (old, new) in enumerate(zip(plain.prompt.rows(), plain.new)):
        mine = found.table[found.table["prompt"] == row]
        read = len(mine)
        assert len(old) + len(new) - 1 <= read <= len(old) + len(new)
        f = probe.log_odds(run[probe.places[0].site][row, :read][None])[0]
        assert mine["score"].tolist() == pytest.approx(f.tolist(), abs=1e-4)
        assert math.isnan(mine["reading"].iloc[0])  # neither the first token counts nor special ones
        counted = [i for i in range(1, read) if [*old, *new][i] not in MODEL.special_ids]
        expected = [slow(how, [float(f[j]) for j in counted if j <= i]) for i in range(counted[0], read)]
        assert mine["reading"].tolist()[counted[0] :] == pytest.approx(expected, abs=1e-4)
        fires = [i for i, one in enumerate(mine["reading"]) if one > 0.3]
        assert found.first[row] == (fires[0] if fires else None)
        assert found.delay[row] == (fires[0] + 1 - len(old) if fires else None)
        assert mine["generated"].tolist() == [i >= len(old) for i in range(read)]
    assert 0 < found.cost < 0.05
    assert found.seconds[0] > found.seconds[1] > 0
    assert len(found.plot().data) == 3


def test_a_first_token_of_great_norm_decides_nothing(probe):
    """An attention sink would make the reading fire at once, and stay."""
    sink = edits.add((probe.places[0].site, probe.direction("pattern").unit * 1e4)).at(positions=0)
    plain, sunk = (watch(MODEL, PROMPTS[::2], probe, max_new_tokens=4, edits=one) for one in ((), sink))
    assert sunk.table["score"].max() > 100 > plain.table["score"].max()
    assert sunk.table["reading"].dropna().max() < 100


def test_other_edits_act_before_the_look(probe):
    push = edits.add((probe.places[0].site, probe.direction("pattern").unit * 50))
    plain, pushed = (watch(MODEL, PROMPTS, probe, max_new_tokens=2, edits=one) for one in ((), push))
    assert pushed.table["score"].min() > plain.table["score"].max()


def test_what_cannot_watch_is_refused(parts, probe, tiny_model):
    with pytest.raises(BadInput, match="single states at one place"):
        watch(MODEL, PROMPTS, fit(parts.train, parts.validation))
    with pytest.raises(Mismatch, match="fitted on states of llama, not of gpt2"):
        watch(tiny_model("gpt2"), PROMPTS, probe)


def test_which_detector_also_steers(parts, probe):
    token = 7
    arms = {
        "read": probe.direction("read"),
        "pattern": probe.direction("pattern"),
        "off": edits.scale("resid_post.1", 1.0),
    }
    held = parts.test.at("resid_post.1")
    found = predict_control(MODEL, arms, held, PROMPTS, lambda logits: logits[:, token], strength=0.5)
    table = found.table.set_index("arm")
    size = 0.5 * float(held.x[0].norm(dim=1).mean())
    clean = MODEL.run(PROMPTS, logits="last").logits
    moved = MODEL.run(PROMPTS, edits=edits.add(("resid_post.1", arms["read"].unit * size)), logits="last").logits
    assert table.loc["read", "effect"] == pytest.approx(float((moved - clean)[:, token].mean()), abs=1e-5)
    expected = (clean.log_softmax(-1).exp() * (clean.log_softmax(-1) - moved.log_softmax(-1))).sum(-1).mean()
    assert table.loc["read", "kl"] == pytest.approx(float(expected), abs=1e-5)
    assert table.loc["off", ["effect", "kl"]].abs().max() < 1e-6
    assert math.isnan(table.loc["off", "auroc"])
    assert 0.5 < table.loc["read", "auroc"] <= 1
    with pytest.raises(BadInput, match="detection needs"):
        predict_control(MODEL, arms, held.part(held.y), PROMPTS, lambda logits: logits[:, token])
    assert isinstance(held, Rows)
