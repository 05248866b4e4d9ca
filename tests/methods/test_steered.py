"""Steering: the planted direction writes its words, a random one does not; the second half of the openings chooses
nothing; what is interrupted goes on."""

import importlib
import json
import math

import pandas as pd
import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.methods import MethodsConfig, MethodsReport, compare_methods, verdicts
from monosem.methods.detection import Scene, detect
from monosem.methods.parts import Material
from monosem.methods.steered import Stage, _arms, _gain, _harmonic, steer
from monosem.steering import Spoken
from tiny_concept import MARKERS, OPENINGS, SETTINGS, concept, planted_model, values

MODEL, U = planted_model()
job = importlib.import_module("monosem.methods.job")
METHODS = ("dim", "lda", "logistic", "bag_of_words", "random", "shuffled")
FEW = SETTINGS | {"methods": METHODS}


def scene(**changes):
    one = concept(**changes)
    return Scene(MODEL, one, MethodsConfig.parse(FEW), Material.of(MODEL, one, (24, 12, 16), 48, 0))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    other = values(60, name="other")
    return compare_methods(MODEL, [values(), other], folder=folder, settings=FEW, quiet=True)


def of(done, method, name="mood", budget=2.0):
    rows = done.results["concepts"][name]["steering"]["rows"]
    return next(row for row in rows if row["method"] == method and row["budget"] == budget)


def test_the_planted_direction_writes_its_words(done):
    dim, random, plain = of(done, "dim"), of(done, "random"), of(done, "", budget=None)
    written = [sum(word in text for word in MARKERS) for _, text in dim["texts"]]
    assert sum(map(bool, written)) > len(written) / 2
    assert dim["shift"] > random["shift"]
    assert dim["chance"] > plain["chance"]
    assert plain["nats"] == 0
    assert plain["shift"] == plain["score"] == 0
    assert dim["score"] > random["score"]


def test_strengths_are_matched_on_the_first_half(done):
    for method in ("dim", "logistic", "random", "shuffled"):
        for budget in SETTINGS["budgets"]:
            row = of(done, method, budget=budget)
            assert row["tuned_nats"] == pytest.approx(budget, rel=0.17), method
    assert of(done, "lda")["same_as"] == "dim"
    assert of(done, "lda")["texts"] == of(done, "dim")["texts"]


def test_the_second_half_of_the_openings_chooses_nothing():
    """With other openings in its place, strengths and layer are the same."""
    first = scene()
    detection = detect(first)
    stage = Stage.of(first)
    made = steer(first, detection)
    changed = Stage.of(first)
    changed.held[:] = ["the night", "moon in the sun", "a very", "I sat"]
    arms, _ = _arms(changed, detection.directions, ["dim", "random"], made.facts["site"])
    amounts = {(row["method"], row["budget"]): row["amount"] for row in made.rows if row["method"] in ("dim", "random")}
    assert {(arm.methods[0], arm.budget): arm.amount for arm in arms} == amounts
    assert not set(stage.tune) & set(stage.held)
    assert {*stage.tune, *stage.held} == set(OPENINGS)


def test_one_pass_over_a_text_is_what_generation_says():
    spoken = Spoken.by(MODEL, OPENINGS[:3], max_new_tokens=5)
    change = [edits.add(("resid_post.1", U), 3.0)]
    read, said = spoken._read(spoken.prompts, change), spoken._said(change)
    for one, other in zip(read, said):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert float((read[0] - spoken.logits[0]).abs().max()) > 0.1
    parted = edits.add(("resid_post.1", U), 3.0).at(scope="generated")
    assert float(spoken.divergence(parted)[0]) == pytest.approx(0, abs=1e-6)
    assert float(spoken.divergence(change)[0]) > 1e-3
    assert float(spoken.divergence(()).abs().max()) == 0
    other = MODEL.run(["so " + OPENINGS[0]], logits="last").logits[0].double().log_softmax(-1)
    own = MODEL.run([OPENINGS[0]], logits="last").logits[0].double().log_softmax(-1)
    after = spoken.after(["so " + one for one in OPENINGS[:3]])
    assert float(after[0]) == pytest.approx(float((own.exp() * (own - other)).sum()), abs=1e-4)


def test_scores_choose_on_the_first_half_and_judge_on_the_second():
    rows = [
        {"method": "a", "left_out": "", "tuned": 0.2, "score": 0.9, "budget": 1.0, "shift": 0.1},
        {"method": "a", "left_out": "", "tuned": 0.5, "score": 0.3, "budget": 2.0, "shift": 0.2},
        {"method": "", "left_out": "", "tuned": 0.9, "score": 0.9, "budget": None, "shift": 0.0},
        {"method": "b", "left_out": "no strength"},
    ]
    assert {name: row["score"] for name, row in verdicts.chosen_budgets(rows).items()} == {"a": 0.3}
    assert _harmonic(0.5, 1.0) == pytest.approx(2 / 3)
    assert _harmonic(0.0, 0.0) == 0
    plain = torch.tensor([0.2, 0.4])
    assert _gain(torch.tensor([0.5, 0.8]), plain) == pytest.approx(0.35 / 0.7)
    assert _gain(plain, plain) == _gain(torch.tensor([0.1, 0.1]), plain) == _gain(plain, torch.ones(2)) == 0


# ---------------------------------------------------------------------- verdicts
def made(areas, shifts):
    names = ["dim", "median", "projected", "pca_pairs", "pca_global", "lat", "repe", "lda", "logistic", "random"]
    detection = [{"method": name, "auroc": area, "left_out": ""} for name, area in zip(names, areas)]
    rows = [
        {"method": n, "shift": s, "budget": 1.0, "left_out": "", "tuned": 0, "score": 0} for n, s in zip(names, shifts)
    ]
    return {"detection": detection, "steering": {"rows": rows}}


def test_predict_control_is_spearmans_correlation_without_controls():
    areas, shifts = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 9.0], [9, 7, 8, 6, 4, 5, 2, 3, 1, -50]
    found = verdicts.predict_control({"one": made(areas, shifts)}, 1.0)
    expected = pd.Series(areas[:9]).corr(pd.Series(shifts[:9]), method="spearman")
    assert found["concepts"]["one"]["value"] == pytest.approx(expected)
    assert found["concepts"]["one"]["n"] == 9
    assert found["together"]["said"] == "better detectors steer more"
    turned = verdicts.predict_control({"one": made(areas, [-s for s in shifts])}, 1.0)
    assert turned["together"]["said"] == "better detectors steer less"


def test_from_three_concepts_on_concepts_are_drawn_again():
    """27 pairs that are no independent draws would make a narrow interval; three concepts that disagree do not."""
    areas, up = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], [9, 8, 7, 6, 5, 4, 3, 2, 1]
    concepts = {"a": made(areas, up), "b": made(areas, up), "c": made(areas, up[::-1])}
    found = verdicts.predict_control(concepts, 1.0)["together"]
    assert found["value"] == pytest.approx(1 / 3)
    assert (found["low"], found["high"]) == pytest.approx((-1, 1))
    assert found["said"] == "no relation is shown either way"


def test_few_methods_give_no_verdict():
    found = verdicts.predict_control({"one": made([0.9, 0.8, 0.7], [3, 2, 1])}, 1.0)
    assert found["together"]["said"] == "3 methods: too few to say anything"
    assert (found["together"]["low"], found["together"]["high"]) == (-1.0, 1.0)
    assert verdicts.predict_control({"one": made([0.9], [1])}, 1.0)["together"] is None


# ---------------------------------------------------------------------- the job
def test_the_report_holds_every_method_and_number(done):
    page, text = (done.folder / "report.html").read_text(), (done.folder / "report.md").read_text()
    assert json.loads((done.folder / "results.json").read_text()) == json.loads(json.dumps(done.results))
    for name in METHODS:
        assert f"<td>{name}</td>" in page
        assert f"| {name} |" in text
    for name in ("mood", "other"):
        area = next(row for row in done.results["concepts"][name]["detection"] if row["method"] == "dim")["auroc"]
        assert f"{area:.2f} [" in page
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            assert line.count("|") == lines[number - 1].count("|") == lines[number + 1].count("|")
    assert set(done.table["method"]) == set(METHODS)
    assert len(done.detection) == 2 * len(METHODS)
    assert {"detection", "curves", "predict_control"} == {
        name for name in ("detection", "curves", "predict_control") if done.plot(name).data
    }
    assert list(done.predict_control["concept"]) == ["mood", "other", "all"]
    assert str(done.directions("mood", "dim")[0].site).startswith("resid_post")
    with pytest.raises(UnknownName):
        done.plot("nothing")


def test_a_method_is_set_beside_shuffled_labels_concept_by_concept():
    """Easy concepts are easy for the control as well: differences hold what means with overlapping intervals hide."""
    areas = {"a": (0.60, 0.55), "b": (0.80, 0.76), "c": (0.99, 0.93)}
    found = {
        name: {
            "detection": [
                {"method": method, "auroc": area, "left_out": ""} for method, area in zip(("dim", "shuffled"), both)
            ],
            "steering": None,
        }
        for name, both in areas.items()
    }
    dim, control = verdicts.summary(found, 1.0)
    assert dim["auroc_over"] == pytest.approx(0.05)
    assert 0.04 <= dim["auroc_over_low"] < dim["auroc_over_high"] <= 0.06
    assert dim["auroc_low"] < control["auroc_high"]
    assert dim["auroc_over_concepts"] == 3
    assert "auroc_over" not in control
    assert math.isnan(dim["score_over"])


def test_what_is_done_is_not_done_again(done, monkeypatch):
    monkeypatch.setattr(job, "detect", None)
    monkeypatch.setattr(job, "steer", None)
    again = compare_methods(MODEL, values(), folder=done.folder, settings=FEW, quiet=True)
    assert again.results["concepts"]["mood"] == done.results["concepts"]["mood"]
    with pytest.raises(Mismatch, match="seed: 0, now 1"):
        compare_methods(MODEL, values(), folder=done.folder, settings=FEW | {"seed": 1}, quiet=True)
    with pytest.raises(BadInput, match="another concept of the name 'mood'"):
        compare_methods(MODEL, values(50), folder=done.folder, settings=FEW, quiet=True)


def test_interrupted_it_goes_on(tmp_path, done, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job, "steer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare_methods(MODEL, values(), folder=tmp_path, settings=FEW, quiet=True)
    monkeypatch.setattr(job, "detect", None)  # detection is kept
    whole = compare_methods(MODEL, values(), folder=tmp_path, settings=FEW, quiet=True)
    ours, theirs = (one.results["concepts"]["mood"]["steering"]["rows"] for one in (whole, done))
    assert [row["texts"] for row in ours] == [row["texts"] for row in theirs]
    for one, other in zip(ours, theirs):
        assert one["shift"] == pytest.approx(other["shift"], abs=1e-5)


def test_without_openings_nothing_is_steered(tmp_path):
    found = compare_methods(MODEL, values(openings=[]), folder=tmp_path, settings=FEW, quiet=True)
    assert found.steering.empty
    assert set(found.results["summary"][0]) >= {"auroc", "shift"}
    assert math.isnan(found.results["summary"][0]["shift"] or math.nan)
    assert "nothing was steered" in (tmp_path / "report.md").read_text()
    with pytest.raises(BadInput, match="3 openings to continue"):
        compare_methods(MODEL, values(openings=OPENINGS[:3]), folder=tmp_path / "b", settings=FEW, quiet=True)


def test_it_is_a_result(done, tmp_path):
    assert isinstance(done, MethodsReport)
    assert done.config["analysis"] == "methods.compare_methods"
    assert done.save(tmp_path / "means.csv").exists()
