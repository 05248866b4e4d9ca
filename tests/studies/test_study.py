"""Concept studies: configs, a planted latent that must be found, resuming, honest conclusions, the report's files."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from monosem import judges, pages, studies
from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.studies.sections import SECTIONS
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
KINDS = ["target", "several", "reconstruction", "nothing"]  # of the ablation's arms, before the random latents


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
    found, target = (result.results["sections"][name] for name in ("candidates", "target"))
    assert found["target"] == found["order"][0] == target["latent"] == PLANTED
    assert sorted(found["order"]) == sorted(row["latent"] for row in found["candidates"])
    assert target["held_out"]["auroc"] > 0.75
    assert target["held_out"]["auroc_low"] <= target["held_out"]["auroc"] <= target["held_out"]["auroc_high"]
    assert target["held_out"]["p"] < 0.05
    assert result.results["sections"]["conclusion"]["claims"][0]["verdict"] == "yes"
    held, search = (set(target["held_out"]["prompts"][side]) for side in ("positive", "negative"))
    assert len(held) == len(search) == len(CONFIG["positive"]) // 2


def test_numbers_of_the_arms_are_those_of_hand_made_edits(model, sae, finished):
    from monosem import edits

    result, _ = finished
    ablation, steering = (result.results["sections"][name] for name in ("ablation", "steering"))
    assert [arm["kind"] for arm in ablation["arms"]] == KINDS + ["random"] * 4
    order = result.results["sections"]["candidates"]["order"]
    made = [[edits.clamp(sae, PLANTED, 0.0)], [edits.clamp(sae, i, 0.0) for i in order], [edits.splice(sae)], []]
    direction = next(arm for arm in steering["arms"] if arm["kind"] == "direction")
    made.append([edits.add((sae.site, mean_difference(model, sae, result)), direction["value"])])
    for arm, several in zip([*ablation["arms"][:4], direction], made):
        edit = [one.at(positions=slice(1, None)) for one in several]
        for part in ("test", "control"):
            p = model.run(CONFIG[part], logits="last").logits.log_softmax(-1)
            q = model.run(CONFIG[part], edits=edit, logits="last").logits.log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1)
            assert arm[part]["kl"] == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-6)
            assert arm[part]["changed"] == int((p.argmax(-1) != q.argmax(-1)).sum())
    assert direction["value"] == pytest.approx(steering["maximum"] * float(sae.tensors.W_dec[PLANTED].norm()), rel=1e-5)
    assert not {PLANTED, *order} & set(ablation["randoms"])


def mean_difference(model, sae, result):
    """Unit vector of the search half's difference of means, each prompt being the mean of its tokens but the first."""
    held_out = {p for side in result.results["sections"]["target"]["held_out"]["prompts"].values() for p in side}
    means = []
    for side in ("positive", "negative"):
        runs = [
            model.run(p, capture=sae.site, logits=False)[sae.site][0, 1:] for p in CONFIG[side] if p not in held_out
        ]
        means.append(torch.stack([run.mean(0) for run in runs]).mean(0))
    return (means[0] - means[1]) / (means[0] - means[1]).norm()


def test_controls_are_active_on_the_tokens_in_question(model, sae, finished):
    """Those tokens are where the target is active on test prompts; p is from just the prompts that have one."""
    ablation = finished[0].results["sections"]["ablation"]
    activity, prompts = [], []
    for number, prompt in enumerate(CONFIG["test"]):
        codes = sae.encode(model.run(prompt, capture=sae.site, logits=False)[sae.site][0, 1:]).dense()
        here = codes[codes[:, PLANTED] > 0]
        activity += [here.abs() * sae.tensors.W_dec.norm(dim=1)]
        prompts += [number] if len(here) else []
    activity = torch.cat(activity)
    matching, where = ablation["matching"], ablation["where_active"]
    assert (matching["tokens"], where["n"]) == (len(activity), len(prompts))
    assert matching["target"] == pytest.approx(float(activity[:, PLANTED].mean()), rel=1e-4)
    assert matching["randoms"] == pytest.approx(activity.mean(0)[ablation["randoms"]].tolist(), rel=1e-4, abs=1e-6)
    assert matching["active"] == int((activity.mean(0)[ablation["randoms"]] > 0).sum()) == 4
    mean = [sum(arm["kls"]["test"][row] for row in prompts) / len(prompts) for arm in ablation["arms"]]
    assert where["kl"] == pytest.approx(mean[0])
    alike = [kl for kl, one in zip(mean[4:], matching["randoms"], strict=True) if one >= matching["target"] / 2]
    assert (where["alike"], where["p"]) == (len(alike), (1 + sum(kl >= mean[0] for kl in alike)) / (1 + len(alike)))


def test_as_large_a_change_along_other_directions(model, sae, finished):
    """Hooks of PyTorch take a vector of the ablation's length away, prompt by prompt, at all tokens but the first."""
    ablation = finished[0].results["sections"]["ablation"]
    where, drawn = ablation["where_active"], ablation["directions"]
    candidates = [row["latent"] for row in finished[0].results["sections"]["candidates"]["candidates"]]
    assert set(drawn) == set(range(sae.width)) - {PLANTED, *candidates}  # there are fewer than 99
    assert len(where["along_kls"]) == len(drawn)
    prompts = [row for row, value in enumerate(ablation["active"]["test"]) if value]
    block = model.hf.get_submodule(f"model.layers.{sae.site.layer}")
    for latent in drawn[:3]:
        direction, kls = sae.tensors.W_dec[latent] / sae.tensors.W_dec[latent].norm(), []

        def hook(module, inputs, output, direction=direction):
            x = output[0] if isinstance(output, tuple) else output
            size = sae.encode(x[0]).dense()[:, PLANTED].abs() * sae.tensors.W_dec[PLANTED].norm()
            size[0] = 0
            changed = x - size[None, :, None] * direction
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        for prompt in (CONFIG["test"][row] for row in prompts):
            ids = model.tokens(prompt).ids
            with torch.no_grad():
                before = model.hf(ids).logits[0, -1].double().log_softmax(-1)
                handle = block.register_forward_hook(hook)
                after = model.hf(ids).logits[0, -1].double().log_softmax(-1)
                handle.remove()
            kls.append(float((before.exp() * (before - after)).sum()))
        assert where["along_kls"][drawn.index(latent)] == pytest.approx(sum(kls) / len(kls), rel=1e-3, abs=1e-7)
    assert where["p_along"] == (1 + sum(kl >= where["kl"] for kl in where["along_kls"])) / (1 + len(drawn))


def test_steering_is_in_units_of_the_latents_own_maximum(model, finished):
    result, _ = finished
    steering = result.results["sections"]["steering"]
    targets = [arm for arm in steering["arms"] if arm["kind"] == "target"]
    assert [arm["value"] for arm in targets] == pytest.approx([0.5 * steering["maximum"], steering["maximum"], 20.0])
    for arm in steering["arms"]:
        assert len(arm["rows"].get("test", [])) == (0 if arm["kind"] == "random" else 3)
        assert len(arm["rows"].get("control", [])) == (2 if arm["kind"] in ("target", "several", "direction") else 0)
    primary = [arm for arm in steering["arms"] if arm["kind"] == "random" and arm["dose"] == 1.0]
    assert len(primary) == 4
    assert sum(arm["continued"] == ["test"] for arm in primary) == 3
    runners_up = [arm["latent"] for arm in steering["arms"] if arm["kind"] == "candidate"]
    assert runners_up == result.results["sections"]["candidates"]["order"][1:4]
    shifts = {row["prompt"]: row["edited_concept"] - row["baseline_concept"] for row in targets[1]["rows"]["test"]}
    assert steering["alone"] == {"prompt": max(shifts, key=shifts.get), "same": True}


def test_the_example_of_the_commands_is_one_that_does_not_depend_on_the_batch(
    model, sae, tmp_path, monkeypatch, finished
):
    from monosem.studies.sections import steering

    real, told = steering.compare, finished[0].results["sections"]["steering"]["alone"]["prompt"]

    def otherwise(model, x, edits, **options):
        found = real(model, x, edits, **options)
        return replace(found, rows=[row | {"edited_text": "other"} if x == told else row for row in found.rows])

    monkeypatch.setattr(steering, "compare", otherwise)
    result = go(model, sae, tmp_path)
    another = result.results["sections"]["steering"]["alone"]
    assert another["same"]
    assert another["prompt"] != told
    assert another["prompt"] in result.commands[0][1]
    monkeypatch.setattr(steering, "TRIES", 1)
    assert "by itself its text comes out otherwise" in go(model, sae, tmp_path / "one").commands[0][0]


def test_a_latent_that_is_negative_is_studied_turned_around(model, sae, tmp_path):
    """Codes with signs: which of a latent's two directions is called positive is arbitrary."""
    made, turns = [], torch.where(torch.arange(sae.width) % 2 == 0, 1.0, -1.0)
    for name, sign in (("one", torch.ones(sae.width)), ("other", turns)):
        weights = sae.tensors
        turned = (weights.W_enc * sign, weights.b_enc * sign, weights.W_dec * sign[:, None], weights.b_dec)
        parts = DictionaryParts(DictionaryTensors(*turned), "abstopk", k=6, site=sae.site, model_name="tiny", name=name)
        made.append(go(model, Dictionary(parts), tmp_path / name, max_new_tokens=2, values=[0.0]).results["sections"])
    one, other = made
    assert one["candidates"]["order"] == other["candidates"]["order"]
    assert any(turns[latent] < 0 for latent in one["candidates"]["order"])
    assert one["target"]["held_out"]["auroc"] == pytest.approx(other["target"]["held_out"]["auroc"])
    for section in ("ablation", "steering"):
        for first, second in zip(one[section]["arms"], other[section]["arms"], strict=True):
            assert first["latent"] == second["latent"]
            assert first["test"]["kl"] == pytest.approx(second["test"]["kl"], rel=1e-2, abs=1e-5)


def test_a_judge_reads_the_continuations(model, sae, tmp_path):
    """Its labels are counted again by hand, from the texts in the report."""
    lines = []
    done = go(model, sae, tmp_path, lines, judge="language:en", max_new_tokens=12)
    section = done.results["sections"]["steering"]
    judged = section["judged"]
    arms = {arm["label"]: arm for arm in section["arms"] if arm["kind"] != "random"}
    for row in judged["rows"]:
        if row["kind"] == "random":
            continue
        texts = [line["edited_text"] for line in arms[row["label"]]["rows"]["test"]]
        said = [judges.judge("language:en")("", text).label for text in texts]
        assert row["labels"] == {label: said.count(label) for label in row["labels"]}
        assert (row["after"], row["n"]) == (said.count("en"), len(texts))
    randoms = [row for row in judged["rows"] if row["kind"] == "random"]
    assert {row["n"] for row in randoms} == {3 * 3}  # three random latents are continued, after three prompts
    assert any("language:en finds 'en'" in line for line in lines)
    assert "What a judge says" in done.html.read_text()
    with pytest.raises(UnknownName, match="no judge"):
        go(model, sae, tmp_path, judge="langage:en")


def test_dose_curves_begin_at_the_ablation_and_have_intervals_and_controls(finished):
    sections, figures = finished[0].results["sections"], finished[0].figures
    arms = [*sections["ablation"]["arms"], *sections["steering"]["arms"]]
    keys = {"kl": ("kl", "kl_low", "kl_high"), "changed": ("changed_rate", "changed_low", "changed_high")}
    for name, (key, low, high) in keys.items():
        for part in ("test", "control"):
            line = next(trace for trace in figures[f"dose_{name}"].data if trace.name == f"target, {part} prompts")
            numbers = {arm["dose"]: arm[part] for arm in arms if arm["kind"] == "target" and arm["dose"] is not None}
            assert list(line.x) == [0.0, 0.5, 1.0]
            assert list(line.y) == [numbers[dose][key] for dose in line.x]
            for dose, y, up, down in zip(line.x, line.y, line.error_y.array, line.error_y.arrayminus, strict=True):
                assert (y - down, y + up) == pytest.approx((numbers[dose][low], numbers[dose][high]))
            line = next(trace for trace in figures[f"dose_{name}"].data if trace.name == f"random, {part} prompts")
            assert list(line.x) == [0.0, 0.5, 1.0]
            assert list(line.customdata) == [4, 3, 4]  # latents at each dose


def test_findings_are_said_as_they_come(finished):
    _, lines = finished
    for section in SECTIONS:
        assert any(line.strip().startswith(f"{section.letter}. ") for line in lines)
    assert any(f"by the rule: latent {PLANTED}" in line for line in lines)
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
    for name in ("search", "held_out", "ablation", "dose_kl", "dose_changed", "dose_concept", "dose_perplexity"):
        assert f'id="plot-{name}"' in page


def test_prompts_cannot_break_the_report(model, sae, tmp_path):
    nasty = "the </script><b>cat</b> | `dog`\nsat {{ 1 }}"
    about = {"title": "<i>cats</i>", "description": "*all* <u>cats</u> | dogs"}
    result = go(model, sae, tmp_path, test=[nasty], max_new_tokens=2, **about)
    page = result.html.read_text()
    assert "<b>cat</b>" not in page
    written = (tmp_path / "report.md").read_text()
    table = [line for line in written.splitlines() if "cat</b>" in line and line.startswith("|")]
    assert table
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 9 for line in table)
    tokens = MarkdownIt("commonmark").enable("table").parse(written)
    inside = [child for token in tokens for child in token.children or []]
    assert not [token for token in [*tokens, *inside] if token.type.startswith("html")]
    assert any(token.type == "code_inline" and "<b>cat</b>" in token.content for token in inside)


def test_a_resumed_study_takes_what_is_done(model, sae, tmp_path, monkeypatch, finished):
    real, calls = SECTIONS[4].make, []
    cut = [*SECTIONS]

    def interrupted(context, earlier):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(context, earlier)

    cut[4] = replace(SECTIONS[4], make=interrupted)
    monkeypatch.setattr("monosem.studies.study.SECTIONS", tuple(cut))
    with pytest.raises(KeyboardInterrupt):
        go(model, sae, tmp_path)
    own = f"latent-{PLANTED}"
    first = {"A-dictionary.json", "B-candidates.json", f"{own}/B-target.json", f"{own}/C-ablation.json"}
    stamps = stamps_of(tmp_path)
    assert set(stamps) == first
    resumed = go(model, sae, tmp_path)
    assert stamps == {name: stamp for name, stamp in stamps_of(tmp_path).items() if name in first}
    for results in (resumed.results, whole := json.loads(json.dumps(finished[0].results))):
        for section in results["sections"].values():
            section.pop("seconds")
    assert resumed.results["sections"] == whole["sections"]


def stamps_of(folder):
    """When each section's file was written."""
    home = folder / "sections"
    return {str(path.relative_to(home)): path.stat().st_mtime_ns for path in home.rglob("*.json")}


def test_another_latent_of_the_same_study_takes_over_the_search(model, sae, tmp_path):
    first = go(model, sae, tmp_path, max_new_tokens=1)
    stamps, second = stamps_of(tmp_path), first.results["sections"]["candidates"]["order"][1]
    other = go(model, sae, tmp_path, max_new_tokens=1, latent=second)
    assert other.results["sections"]["ablation"]["target"] == second
    assert f"Latent {second} " in other.headline
    assert "comes 2 of 4" in other.results["sections"]["target"]["reason"]
    assert stamps == {name: stamp for name, stamp in stamps_of(tmp_path).items() if f"latent-{second}/" not in name}
    alone = go(model, sae, tmp_path / "alone", max_new_tokens=1, latent=second)
    for results in (first.results, other.results, alone.results):
        for section in results["sections"].values():
            section.pop("seconds")
    assert other.results["sections"] == alone.results["sections"]
    stamps = stamps_of(tmp_path)
    again = go(model, sae, tmp_path, max_new_tokens=1)
    assert stamps == stamps_of(tmp_path)
    assert again.headline == first.headline
    with pytest.raises(Mismatch, match="seed: 0, now 1"):
        go(model, sae, tmp_path, max_new_tokens=1, latent=second, seed=1)


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
    assert result.results["sections"]["ablation"]["target"] == 3
    assert "asked for" in result.results["sections"]["target"]["reason"]


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
    new = tmp_path / "runs" / "new"
    transcoder = Dictionary(replace(sae.parts, site="mlp_input.1", site_out="mlp_out.1", transcoder=True))
    with pytest.raises(Mismatch, match="is a transcoder"):
        go(model, transcoder, new)
    with pytest.raises(UnknownName, match="0 to 23"):
        go(model, sae, new, latent=24)
    with pytest.raises(UnknownName):
        studies.run(CONFIG | {"dictionary": "no/such"}, folder=new, say=None, model=model)
    assert not new.parent.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="choose another place"):
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
    silent = {"dead_fraction": 0.25, "tokens_read": 100, "silent": 0.125, "silent_tokens": 54321}
    numbers = {"l0": 6.0, "fve": 0.81, "ce_recovered": 0.97, "skipped": {}}
    held_out = {"wikitext2": numbers | silent, "other": numbers | {"dead_fraction": 0.5, "tokens_read": 98765}}
    sae.card = {"seed": 3, "training": {"lr": 0.001, "betas": [0.9, 0.999]}, "held_out": held_out}
    sae.save(tmp_path / "sae")
    sae.card = {}
    index = build_index(model, sae, store, tmp_path / "sae" / "index.sqlite", quiet=True)
    loaded = load_dictionary(str(tmp_path / "sae"))
    result = go(model, loaded, tmp_path / "study", dictionary=str(tmp_path / "sae"), max_new_tokens=1)
    sections = result.results["sections"]
    chosen = next(row for row in sections["candidates"]["candidates"] if row["latent"] == PLANTED)
    evidence = index.evidence(PLANTED)
    assert chosen["maximum"] == sections["steering"]["maximum"] == pytest.approx(evidence.maximum)
    assert [[word for word, _ in example] for example in chosen["examples"]] == [
        e.tokens for e in evidence.examples[:6]
    ]
    assert chosen["promoted"] == [token for token, _ in evidence.promoted[:8]]
    assert chosen["fires_on"] == [token for token, _, _ in evidence.tokens[:8]]
    assert sections["dictionary"]["statistics_tokens"] == index.meta["tokens"]
    assert sections["dictionary"]["quality"][0]["fve"] == 0.81
    assert sections["dictionary"]["card"]["training: lr"] == "0.001"
    for text in (result.html.read_text(), (result.folder / "report.md").read_text()):
        assert "wikitext2" in text
        assert "0.810" in text
        assert re.search(r"0\.125\D+54,321", text)  # as the card says it, over the tokens that the card says
        assert re.search(r"0\.500\D+98,765", text)
        assert f"{index.meta['tokens']:,} tokens" in text
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
