"""Concept studies: configs, a planted latent that must be found, resuming, honest conclusions, the report's files."""

import copy
import json
import re

import pytest
import torch
import yaml

from monosem import pages, studies
from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.studies.sections import SECTIONS, conclusion
from tiny import tiny_model

FRAMES = ["the cat was {} and it sat", "a dog is {} at night", "she was very {} in the house", "he is {} on the mat"]
FRAMES += ["they sat in {} rome", "you and I {} the sun", "one man is {} at sea", "two {} dog ran to paris"]
CONFIG = {
    "name": "planted",
    "model": "tiny",
    "dictionary": "tiny-sae",
    "positive": [frame.format(word) for frame in FRAMES for word in ("happy", "good")],
    "negative": [frame.format(word) for frame in FRAMES for word in ("sad", "bad")],
    "test": ["the man was", "she is happy and", "a house"],
    "control": ["three four five", "the capital of france is"],
    "candidates": 4,
    "doses": [0.5, 1.0],
    "random_latents": 4,
    "random_continuations": 3,
    "max_new_tokens": 4,
}
PLANTED = 7


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


@pytest.fixture(scope="module")
def sae(model):
    """Random latents, and one that is planted: it reads "happy or good against sad or bad" and writes "happy"."""
    draw = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (32, 24), "b_enc": (24,), "W_dec": (24, 32), "b_dec": (32,)}
    weights = {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    sides = []
    for side in ("positive", "negative"):
        run = model.run(CONFIG[side], capture="resid_post.1", logits=False)
        words = run.tokens.ids == model.tokens("very happy").ids[0, 1]
        for word in ("good", "sad", "bad"):
            words |= run.tokens.ids == model.tokens(f"very {word}").ids[0, 1]
        sides.append(run["resid_post.1"][words])
    up, down = (side.mean(0) for side in sides)
    direction = torch.linalg.solve(torch.cat([s - s.mean(0) for s in sides]).T.cov() + 0.1 * torch.eye(32), up - down)
    direction = direction / direction.norm()
    weights["W_enc"][:, PLANTED] = 10 * direction
    weights["b_enc"][PLANTED] = -10 * (direction @ (up + down) / 2)
    happy = int(model.tokens("very happy").ids[0, 1])
    weights["W_dec"][PLANTED] = 2 * model.W_U[:, happy] / model.W_U[:, happy].norm()
    return Dictionary(
        DictionaryParts(
            DictionaryTensors(**weights), "topk", k=6, site="resid_post.1", model_name="tiny", name="tiny-sae"
        )
    )


def go(model, sae, folder, lines=None, **changes):
    say = None if lines is None else lines.append
    return studies.run(CONFIG | changes, folder=folder, say=say, quiet=True, model=model, dictionary=sae)


@pytest.fixture(scope="module")
def finished(model, sae, tmp_path_factory):
    lines = []
    return go(model, sae, tmp_path_factory.mktemp("study"), lines), lines


def test_the_planted_latent_is_found(finished):
    result, _ = finished
    found = result.results["sections"]["candidates"]
    assert found["target"] == PLANTED
    assert found["held_out"]["auroc"] > 0.75
    assert found["held_out"]["auroc_low"] <= found["held_out"]["auroc"] <= found["held_out"]["auroc_high"]
    assert found["held_out"]["p"] < 0.05
    assert result.results["sections"]["conclusion"]["claims"][0]["verdict"] == "yes"
    held, search = (set(found["held_out"]["prompts"][side]) for side in ("positive", "negative"))
    assert len(held) == len(search) == len(CONFIG["positive"]) // 2


def test_numbers_of_the_arms_are_those_of_hand_made_edits(model, sae, finished):
    from monosem import edits

    result, _ = finished
    defence = result.results["sections"]["defence"]
    assert [arm["kind"] for arm in defence["arms"]] == ["target", "reconstruction"] + ["random"] * 4
    made = [edits.clamp(sae, PLANTED, 0.0), edits.splice(sae)]
    for arm, edit in zip(defence["arms"], [edit.at(positions=slice(1, None)) for edit in made]):
        for part in ("test", "control"):
            p = model.run(CONFIG[part], logits="last").logits.log_softmax(-1)
            q = model.run(CONFIG[part], edits=edit, logits="last").logits.log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1)
            assert arm[part]["kl"] == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-6)
            assert arm[part]["changed"] == int((p.argmax(-1) != q.argmax(-1)).sum())
    assert PLANTED not in defence["randoms"]
    assert not {row["latent"] for row in result.results["sections"]["candidates"]["candidates"]} & set(
        defence["randoms"]
    )


def test_attack_is_in_units_of_the_latents_own_maximum(model, finished):
    result, _ = finished
    attack = result.results["sections"]["attack"]
    targets = [arm for arm in attack["arms"] if arm["kind"] == "target"]
    assert [arm["value"] for arm in targets] == pytest.approx([0.5 * attack["maximum"], attack["maximum"], 20.0])
    for arm in attack["arms"]:
        assert len(arm["rows"].get("test", [])) == (3 if arm["kind"] == "target" else 0)
    primary = [arm for arm in attack["arms"] if arm["kind"] == "random" and arm["dose"] == 1.0]
    assert len(primary) == 4
    assert sum(arm["continued"] for arm in primary) == 3


def test_findings_are_said_as_they_come(finished):
    _, lines = finished
    for section in SECTIONS:
        assert any(line.strip().startswith(f"{section.letter}. ") for line in lines)
    assert any(f"target: latent {PLANTED}" in line for line in lines)
    assert lines[-1].endswith("report.html")


def test_files_of_the_report(finished):
    result, _ = finished
    names = {path.name for path in result.folder.iterdir()}
    assert {"report.html", "report.md", "results.json", "config.yaml", "sections"} <= names
    text = (result.folder / "results.json").read_text()
    held = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert held["provenance"]["seed"] == 0
    assert re.fullmatch("[0-9a-f]{16}", held["provenance"]["model_weights"])
    again = studies.StudyConfig.load(result.folder / "config.yaml")
    assert again == result.settings
    assert studies.StudyResult.load(result.folder).results == result.results


def test_the_page_is_self_contained(finished):
    page = finished[0].html.read_text()
    without_plotly = re.sub(r"<script>.{100000,}?</script>", "", page, flags=re.S)
    assert len(without_plotly) < len(page) / 4
    assert not re.findall(r"(?:https?:)?//[a-z]", without_plotly)
    assert "default-src 'none'" in page
    for section in SECTIONS:
        assert f'<section id="{section.letter}">' in page
    for name in ("search", "held_out", "defence", "dose_kl", "dose_changed", "dose_concept", "dose_perplexity"):
        assert f'id="plot-{name}"' in page


def test_prompts_cannot_break_the_report(model, sae, tmp_path):
    nasty = "the </script><b>cat</b> | `dog`\nsat {{ 1 }}"
    result = go(model, sae, tmp_path, test=[nasty], max_new_tokens=2)
    page = result.html.read_text()
    assert "<b>cat</b>" not in page
    table = [line for line in (tmp_path / "report.md").read_text().splitlines() if "cat</b>" in line]
    assert table
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 9 for line in table)


def test_a_resumed_study_takes_what_is_done(model, sae, tmp_path, monkeypatch, finished):
    real, calls = SECTIONS[3].make, []
    cut = [*SECTIONS]

    def interrupted(context, earlier):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(context, earlier)

    cut[3] = type(SECTIONS[3])(
        SECTIONS[3].letter, SECTIONS[3].name, SECTIONS[3].title, interrupted, SECTIONS[3].findings
    )
    monkeypatch.setattr("monosem.studies.study.SECTIONS", tuple(cut))
    with pytest.raises(KeyboardInterrupt):
        go(model, sae, tmp_path)
    kept = sorted(path.name for path in (tmp_path / "sections").glob("?-*.json"))
    assert kept == ["A-dictionary.json", "B-candidates.json", "C-defence.json"]
    stamps = {name: (tmp_path / "sections" / name).stat().st_mtime_ns for name in kept}
    resumed = go(model, sae, tmp_path)
    assert stamps == {name: (tmp_path / "sections" / name).stat().st_mtime_ns for name in kept}
    for results in (resumed.results, whole := copy.deepcopy(finished[0].results)):
        for section in results["sections"].values():
            section.pop("seconds")
    assert resumed.results["sections"] == whole["sections"]


def test_another_study_in_the_folder_is_refused(model, sae, tmp_path):
    go(model, sae, tmp_path, max_new_tokens=1)
    with pytest.raises(Mismatch, match=r"seed: 0, now 1.*--fresh"):
        go(model, sae, tmp_path, max_new_tokens=1, seed=1)
    result = studies.run(
        CONFIG | {"max_new_tokens": 1, "seed": 1},
        folder=tmp_path,
        say=None,
        quiet=True,
        fresh=True,
        model=model,
        dictionary=sae,
    )
    assert result.settings.seed == 1


def test_a_given_latent_is_the_target(model, sae, tmp_path):
    result = go(model, sae, tmp_path, latent=3, max_new_tokens=1)
    assert result.results["sections"]["defence"]["target"] == 3
    assert "given" in result.results["sections"]["candidates"]["reason"]


def fabricated(results, changes):
    """The results with some numbers replaced: {(section, arm kind, dose, part): {key: value}}."""
    made = copy.deepcopy(results["sections"])
    for (section, kind, dose, part), numbers in changes.items():
        for arm in made[section]["arms"]:
            if arm["kind"] == kind and arm["dose"] == dose:
                arm[part].update(numbers)
    return made


NOTHING = {"changed": 0, "changed_rate": 0.0, "changed_low": 0.0, "changed_high": 0.3, "kl": 1e-6}
STILL = {"concept_shift": 0.0, "concept_low": -0.1, "concept_high": 0.1}


def verdicts(sections):
    return {claim["rule"]: claim["verdict"] for claim in conclusion.conclude(sections)}


def test_no_effect_gives_a_conclusion_of_no_effect(finished):
    sections = fabricated(
        finished[0].results,
        {
            ("defence", "target", 0.0, "test"): NOTHING,
            ("defence", "target", 0.0, "control"): NOTHING,
            ("attack", "target", 1.0, "test"): NOTHING | STILL,
        },
    )
    sections["defence"]["p"]["test"] = 0.6
    sections["candidates"]["held_out"] |= {"auroc": 0.55, "auroc_low": 0.35, "auroc_high": 0.75, "p": 0.4}
    found = verdicts(sections)
    assert (found["detects"], found["matters"], found["steers"]) == ("no", "no", "no")
    assert found["spares"] == "yes"
    said = conclusion.headline(sections, conclusion.conclude(sections))
    assert "is not shown to detect" in said
    assert "is not shown to move continuations" in said
    text = " ".join(claim["text"] for claim in conclusion.conclude(sections))
    assert "more than switching off a random one is not shown" in text


def test_a_strong_effect_gives_a_conclusion_of_one(finished):
    sections = fabricated(
        finished[0].results,
        {
            ("defence", "target", 0.0, "test"): {"changed": 2, "changed_rate": 0.67, "kl": 0.8},
            ("defence", "target", 0.0, "control"): NOTHING,
            ("attack", "target", 1.0, "test"): {"concept_shift": 0.9, "concept_low": 0.5, "concept_high": 1.2},
            ("attack", "random", 1.0, "test"): {"concept_shift": 0.1},
        },
    )
    sections["defence"]["p"]["test"] = 0.05
    sections["candidates"]["held_out"] |= {"auroc": 0.95, "auroc_low": 0.85, "auroc_high": 1.0, "p": 0.001}
    found = verdicts(sections)
    assert [found[rule] for rule in ("detects", "matters", "spares", "steers")] == ["yes"] * 4


def test_random_latents_that_steer_as_much_void_the_claim(finished):
    sections = fabricated(
        finished[0].results,
        {
            ("attack", "target", 1.0, "test"): {"concept_shift": 0.9, "concept_low": 0.5, "concept_high": 1.2},
            ("attack", "random", 1.0, "test"): {"concept_shift": 1.0},
        },
    )
    assert verdicts(sections)["steers"] == "no"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"negative": CONFIG["negative"][:-1]}, "unpaired prompts: 16 positive and 15 negative"),
        ({"test": ["a dog", "  "]}, "test.1: empty prompt"),
        ({"test": []}, "test"),
        ({"positve": []}, "positve: no such field; did you mean 'positive'"),
        ({"primary_dose": 3.0}, "primary_dose 3.0 is not one of doses"),
        ({"control": [CONFIG["positive"][0]]}, "must not be used in the search"),
        ({"name": "../escape"}, "name"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
    ],
)
def test_bad_configs_name_the_field_in_one_line(tmp_path, changes, words):
    path = tmp_path / "concept.yaml"
    path.write_text(yaml.safe_dump(CONFIG | changes))
    with pytest.raises(BadInput, match=re.escape(words)) as caught:
        studies.StudyConfig.load(path)
    assert "\n" not in str(caught.value)


def test_bad_concept_files(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'sentiment'"):
        studies.StudyConfig.load("sentimnt")
    for content in ("- a list", "a: [", "\x00"):
        (tmp_path / "x.yaml").write_text(content)
        with pytest.raises(BadFile):
            studies.StudyConfig.load(tmp_path / "x.yaml")


def test_bad_company(model, sae, tmp_path):
    other = tiny_model("llama", name="other")
    with pytest.raises(Mismatch, match="tiny"):
        go(other, sae, tmp_path)
    with pytest.raises(Mismatch, match=r"resid_post\.0"):
        go(model, sae, tmp_path, site="resid_post.0")
    with pytest.raises(UnknownName, match="0 to 23"):
        go(model, sae, tmp_path, latent=24)
    with pytest.raises(UnknownName):
        studies.run(CONFIG | {"dictionary": "no/such"}, folder=tmp_path, say=None, model=model)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="choose another folder"):
        go(model, sae, tmp_path / "file" / "x")


def test_numbers_are_written_briefly():
    written = [pages.number(value) for value in (0.0, 0.00001, 0.25, 1234.5, None, float("nan"))]
    assert written == ["0.000", "<0.001", "0.250", "1,234", "–", "–"]


def test_with_an_index_evidence_comes_from_its_text(model, sae, tmp_path):
    from monosem.data import Document, TokenStore
    from monosem.dictionaries import load_dictionary
    from monosem.latents import build_index

    texts = [*CONFIG["positive"], *CONFIG["negative"]] * 2
    store = TokenStore.build(model, [Document(str(i), text) for i, text in enumerate(texts)], context=32)
    held_out = {"wikitext2": {"l0": 6.0, "fve": 0.81, "ce_recovered": 0.97, "skipped": {}}, "silent_on_all": 0.01}
    sae.card = {"seed": 3, "training": {"lr": 0.001, "betas": [0.9, 0.999]}, "held_out": held_out}
    sae.save(tmp_path / "sae")
    sae.card = {}
    index = build_index(model, sae, store, tmp_path / "sae" / "index.sqlite", quiet=True)
    loaded = load_dictionary(str(tmp_path / "sae"))
    result = go(model, loaded, tmp_path / "study", dictionary=str(tmp_path / "sae"), max_new_tokens=1)
    sections = result.results["sections"]
    chosen = next(row for row in sections["candidates"]["candidates"] if row["latent"] == PLANTED)
    evidence = index.evidence(PLANTED)
    assert chosen["maximum"] == sections["attack"]["maximum"] == pytest.approx(evidence.maximum)
    assert [[word for word, _ in example] for example in chosen["examples"]] == [
        e.tokens for e in evidence.examples[:6]
    ]
    assert chosen["promoted"] == [token for token, _ in evidence.promoted[:8]]
    assert sections["dictionary"]["quality"][0]["fve"] == 0.81
    assert sections["dictionary"]["card"]["training: lr"] == "0.001"
    for text in (result.html.read_text(), (result.folder / "report.md").read_text()):
        assert "wikitext2" in text
        assert "0.810" in text
    assert sections["validation"]["page"] == f"latent-{PLANTED}.html"
    assert (result.folder / f"latent-{PLANTED}.html").stat().st_size > 500
    assert result.html.read_text().count('class="example"') >= len(chosen["examples"]) > 0


def test_neuronpedia_that_cannot_be_reached_is_said(monkeypatch):
    from monosem.studies.sections import validation

    def unreachable(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(validation.urllib.request, "urlopen", unreachable)
    found, why = validation.neuronpedia("gpt2-small/6-res-jb", 3)
    assert found is None
    assert why == "Neuronpedia could not be reached (no route to host)"
