"""What a direction says of itself, which models it refuses, and the threshold that it may carry."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from sklearn.metrics import silhouette_score

from monosem import edits
from monosem.data import PromptPairs
from monosem.directions import Direction, Directions
from monosem.directions.diagnostics import silhouette
from monosem.edits import weights
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.models import Model, Site, identity
from monosem.probes import Distances, fit, read_rows, split, with_threshold
from tiny import tiny_hf, tiny_tokenizer
from tiny_latents import MODEL, NEGATIVE, POSITIVE, SITE

FOUND = Direction.fit(MODEL, POSITIVE[:8], NEGATIVE[:8], SITE)
NEW = [f"{prompt} or was" for prompt in NEGATIVE]  # prompts that found nothing
PARTS = split(read_rows(MODEL, [*POSITIVE, *NEGATIVE], [1] * 16 + [0] * 16, [SITE], positions="mean"))


# ---------------------------------------------------------------------- what it says, and whom it refuses
def test_a_file_says_on_what_and_how_a_direction_was_found(tmp_path):
    FOUND.with_threshold(MODEL, NEGATIVE[8:], target_fpr=0.2).save(tmp_path / "d.safetensors")
    with safe_open(tmp_path / "d.safetensors", "pt") as file:
        (held,) = json.loads(file.metadata()["directions"]).values()
    said = held["provenance"]
    assert (held["model"], held["site"], said["position"], said["method"]) == ("llama", SITE, "last", "dim")
    assert said["prompts"] == {"positive": 8, "negative": 8}
    assert said["norm"] == pytest.approx(float(FOUND.vector.norm()))
    assert (said["units"], said["operation"]) == ("activation, not normalised", "add")
    assert said["made_on"] == identity(MODEL)
    assert (said["made_on"]["d_model"], said["made_on"]["n_layers"]) == (32, 3)
    assert said["calibration"]["n"] == 8
    assert -1 <= said["stability"] <= 1
    assert said["tokens"]["rule"] if "rule" in said["tokens"] else said["tokens"]
    other = Direction.fit(MODEL, POSITIVE[:7] + POSITIVE[8:9], NEGATIVE[:8], SITE).provenance
    assert other["data"] != said["data"]
    assert Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE, method="leace").provenance["operation"] == "erase"


def other_model(name="llama", tokenizer=None, **sizes):
    return Model(tiny_hf("llama", **sizes), tokenizer or tiny_tokenizer(), name)


def other_vocabulary():
    tokenizer = tiny_tokenizer()
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    listed = made["model"]["vocab"]
    listed[10], listed[11] = listed[11], listed[10]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(made))
    return tokenizer


def test_another_model_of_the_same_name_is_refused_in_one_line():
    probe, distance = fit(PARTS.train, PARTS.validation), Distances.fit(PARTS.train, "mahalanobis")
    deep = other_model(num_hidden_layers=5)
    swapped = other_model(tokenizer=other_vocabulary())
    for made in (FOUND, probe, distance):
        made.check(MODEL)
        for model, words in ((deep, "other sizes"), (swapped, "another vocabulary")):
            with pytest.raises(Mismatch, match=words) as refused:
                made.check(model)
            assert "\n" not in str(refused.value)
        with pytest.raises(Mismatch, match="of another|of llama, not of|made for llama, not for"):
            made.check(other_model("other"))
    with pytest.raises(UnknownName):
        Direction(torch.ones(32), Site("resid_post", 7), "llama").check(MODEL)


def test_the_same_model_in_another_state_is_not_refused():
    half = Model(tiny_hf("llama").bfloat16(), tiny_tokenizer(), "llama")
    FOUND.check(half)
    more = tiny_tokenizer()
    more.add_special_tokens({"pad_token": "<padding>"})
    more.chat_template = "{{ messages }}"
    FOUND.check(other_model(tokenizer=more))
    FOUND.check(Model(tiny_hf("llama"), None, "llama"))
    with weights.orthogonalise(MODEL, FOUND).applied():
        FOUND.check(MODEL)


def test_edits_and_conditions_of_another_models_direction_are_refused():
    other = Direction(FOUND.vector, FOUND.site, "other")
    makers = [edits.add, edits.ablate, edits.reflect, lambda d: edits.set_to(d, 1.0), lambda d: edits.slerp(d, 5.0)]
    for make in makers:
        for edit in (make(other), make(other).at(everywhere=True)):
            with pytest.raises(Mismatch, match="made for other, not for llama"):
                MODEL.run("the cat", edits=edit)
            with pytest.raises(Mismatch, match="made for other, not for llama"):
                MODEL.generate("the cat", edits=edit, max_new_tokens=1)
    gated = edits.add((SITE, FOUND.vector), 1.0).when(edits.condition(other, above=0.0))
    with pytest.raises(Mismatch, match="made for other"):
        MODEL.run("the cat", edits=gated)
    for whole in (edits.ablate_writes, weights.orthogonalise):
        with pytest.raises(Mismatch, match="made for other"):
            whole(MODEL, other)
    MODEL.run("the cat", edits=edits.add((other.site, other.vector), 1.0))  # a transfer that is meant


# ---------------------------------------------------------------------- thresholds
def projections(prompts, over):
    pooled = {"last": lambda x: x[-1], "max": lambda x: x[1:].max(), "mean": lambda x: x[1:].mean()}[over]
    states = (MODEL.run(prompt, capture=SITE)[SITE][0] for prompt in prompts)
    return torch.stack([pooled(x @ FOUND.vector / FOUND.vector.norm()) for x in states])


@pytest.mark.parametrize("over", ["last", "mean", "max"])
def test_a_threshold_is_a_rank_of_what_the_condition_will_see(over):
    made = FOUND.with_threshold(MODEL, NEW, target_fpr=0.2, over=over, batch_size=5)
    ranked = projections(NEW, over).sort().values
    assert made.calibration["threshold"] == pytest.approx(float(ranked[math.ceil(17 * 0.8) - 1]), abs=1e-5)
    gate = edits.condition(made)
    MODEL.run([*POSITIVE, *NEW], edits=edits.add(made, 1.0).when(gate))
    opened = [one.open for one in sorted(gate.log)]
    expected = projections([*POSITIVE, *NEW], over) > made.calibration["threshold"] + 1e-6
    assert opened == expected.tolist()
    assert sum(opened[16:]) <= 0.2 * 17


def test_a_direction_of_means_is_compared_by_means():
    found = Direction.fit(MODEL, POSITIVE[:8], NEGATIVE[:8], SITE, at="mean")
    kept = [one.with_threshold(MODEL, NEW, target_fpr=0.2).calibration["over"] for one in (found, FOUND)]
    assert kept == ["mean", "last"]


def test_a_threshold_that_cannot_be_is_refused():
    with pytest.raises(BadInput, match=r"needs at least 99 negative prompts, and there are 16"):
        FOUND.with_threshold(MODEL, NEW, target_fpr=0.01)
    with pytest.raises(BadInput, match="between 0 and 1"):
        FOUND.with_threshold(MODEL, NEW, target_fpr=1.5)
    with pytest.raises(Mismatch):
        FOUND.with_threshold(other_model(num_hidden_layers=5), NEW)
    made = FOUND.with_threshold(MODEL, NEW, target_fpr=0.2, over="mean")
    with pytest.raises(BadInput, match="over='mean', not 'last'"):
        edits.condition(made, over="last")
    with pytest.raises(BadInput, match="one threshold"):
        edits.condition(FOUND)
    with pytest.raises(BadInput, match="one threshold"):
        edits.condition(made, measure="cosine")


def test_prompts_that_found_a_direction_give_it_no_threshold(tmp_path):
    with pytest.raises(BadInput, match=r"found or judged with 8 of these 16 prompts"):
        FOUND.with_threshold(MODEL, NEGATIVE, target_fpr=0.2)
    judged = Directions.fit(
        MODEL, PromptPairs(POSITIVE[:8], NEGATIVE[:8]), SITE, held_out=PromptPairs(POSITIVE[8:12], NEGATIVE[8:12])
    )
    judged.save(tmp_path / "kept.safetensors")
    (kept,) = Directions.load(tmp_path / "kept.safetensors")
    with pytest.raises(BadInput, match=r"with 12 of these 16 prompts"):
        kept.with_threshold(MODEL, NEGATIVE, target_fpr=0.2)
    assert kept.with_threshold(MODEL, NEGATIVE[12:], target_fpr=0.2).calibration["n"] == 4
    assert "seen" not in judged.table.columns
    assert "seen" not in judged.config


def test_rows_that_chose_a_probe_give_it_no_threshold():
    probe = fit(PARTS.train, PARTS.validation)
    with pytest.raises(BadInput, match="probe was fitted on or chosen by"):
        with_threshold(probe, PARTS.validation, target_fpr=0.4)
    kept = with_threshold(probe, PARTS.test, target_fpr=0.4)
    assert kept.about["threshold_negatives"] == int((~PARTS.test.y).sum())
    with pytest.raises(BadInput, match="found or judged with"):
        probe.direction().check_new(PARTS.train.texts, "no")


def test_a_condition_reads_what_detects():
    found = Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE, method="lda")
    gate = edits.condition(found, above=0.0)
    MODEL.run(POSITIVE, edits=edits.add(found, 0.1).when(gate))
    x = torch.stack([MODEL.run(prompt, capture=SITE)[SITE][0, -1] for prompt in POSITIVE])
    expected = x @ found.read / found.read.norm()
    assert [one.score for one in sorted(gate.log)] == pytest.approx(expected.tolist(), abs=1e-4)
    assert not torch.allclose(expected, x @ found.vector / found.vector.norm(), atol=0.1)


@pytest.mark.parametrize("position", ["last", "mean"])
def test_a_probe_is_a_condition(position):
    rows = read_rows(MODEL, [*POSITIVE, *NEGATIVE], [1] * 16 + [0] * 16, [SITE], positions=position)
    parts = split(rows)
    probe = with_threshold(fit(parts.train, parts.validation), parts.test, target_fpr=0.25)
    probe = probe.with_parts({}, threshold=probe.threshold + 1e-4)  # not at the score of a row itself
    gate = edits.condition(probe)
    MODEL.run(list(rows.texts), edits=edits.add(FOUND, 1.0).when(gate))
    assert [one.open for one in sorted(gate.log)] == probe.fires(rows)[0].tolist()
    several = fit(*(part.joined() for part in (parts.train, parts.validation)))
    assert edits.condition(several, above=0.0).site == Site.parse(SITE)


# ---------------------------------------------------------------------- clumps
def test_silhouettes_are_scikit_learns():
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randn(9, generator=draw) + 2, torch.randn(6, generator=draw)
    labels = [1] * 9 + [0] * 6
    assert silhouette(up, down) == pytest.approx(silhouette_score(torch.cat([up, down])[:, None].numpy(), labels))
    assert silhouette(torch.ones(3), torch.ones(3)) == 0
    table = Directions.fit(MODEL, PromptPairs(POSITIVE, NEGATIVE), SITE).table
    assert -1 <= table["silhouette"][0] <= 1
