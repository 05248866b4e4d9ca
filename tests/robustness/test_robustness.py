"""A planted behaviour: what takes its vector away breaks it, controls of the same size do not; reports resume."""

import json
import math
import random
from dataclasses import replace
from importlib import resources

import pytest
import torch
import yaml
from typer.testing import CliRunner

from monosem import robustness
from monosem.cli import app
from monosem.data import PromptPairs
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.jobs import module_fingerprint
from monosem.robustness import ATTACKS, RobustnessConfig, curves, span
from monosem.robustness.arms import Arm, is_loop, responses
from monosem.robustness.context import Context
from monosem.robustness.job import storable
from monosem.robustness.report import facts_of, write
from tiny_behaviour import SAID, SaysIt, behaviour, planted_model


@pytest.fixture(autouse=True, scope="module")
def lost_or_not():
    """A model with random weights never has a thread to lose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "LOST", math.inf)
        yield


@pytest.fixture(scope="module")
def planted():
    return planted_model()


@pytest.fixture(scope="module")
def safe(tmp_path_factory):
    path = tmp_path_factory.mktemp("safe") / "safe.txt"
    path.write_text("the cat sat on the mat\nthe moon is big\n\nshe was happy\n")
    return str(path)


@pytest.fixture(scope="module")
def done(planted, safe, tmp_path_factory):
    """A whole report, with the same model as its own defence."""
    model, _ = planted
    folder = tmp_path_factory.mktemp("report")
    before = module_fingerprint(model.hf)
    made = robustness.assess(
        behaviour(over_refusal=safe), folder=folder, model=model, defences=[model], judge=SaysIt(), say=None, quiet=True
    )
    assert module_fingerprint(model.hf) == before  # nothing is left changed
    assert not any(len(module._forward_hooks) for module in model.hf.modules())
    return made


def rows(done, attack, control=""):
    table = done.table
    return table[(table["model"] == "model") & (table["attack"] == attack) & (table["control"] == control)]


def test_the_planted_vector_is_found(done, planted):
    """By the fitted direction, whose ablation is the attack: it lies along the vector that was planted."""
    model, unit = planted
    config = RobustnessConfig.load(behaviour())
    vectors = Context(config, model, print, SaysIt()).vectors
    assert float(vectors.units[""] @ unit) > 0.95
    assert abs(float(vectors.units["random 1"] @ unit)) < 0.6
    for basis in vectors.bases.values():
        assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-5)
    assert float((vectors.bases[""] @ unit).norm()) > 0.95


def test_more_controls_are_the_unrelated_axis_and_what_is_orthogonal(planted):
    model, _ = planted
    config = RobustnessConfig.load(behaviour(more_controls=["first axis", "rest of shuffled"], attacks=["one_layer"]))
    context = Context(config, model, print, SaysIt())
    vectors = context.vectors
    assert abs(float(vectors.units["rest of shuffled"] @ vectors.units[""])) < 1e-5
    fit, _ = PromptPairs(config.of("behaviour_train"), config.of("unrelated_train"), paired=False).split(
        0.25, seed=config.seed
    )
    states = torch.stack([model.run(text, capture=[vectors.site])[vectors.site][0, -1] for text in fit.negative])
    axis = torch.linalg.svd(states.double() - states.double().mean(0))[2][0].float()
    assert abs(float(vectors.units["first axis"] @ axis)) == pytest.approx(1, abs=1e-3)
    arms = list(ATTACKS["one_layer"].arms(context))
    assert [arm.control for arm in arms] == ["", "random 1", "shuffled labels", "first axis", "rest of shuffled"]
    assert len(arms) == ATTACKS["one_layer"].count(context)


def test_ablation_at_all_sites_takes_it_away_and_random_ones_do_not(done):
    assert rows(done, "none")["shown"].item() == 1.0
    whole = rows(done, "ablation").set_index("strength")
    assert whole["shown"][1.0] == 0.0
    assert whole["success"][1.0] == 1.0
    # in 32 dimensions shuffled labels find a part of the vector, which is most of what the prompts differ in
    for control, left in (("random 1", 0.9), ("shuffled labels", 0.5)):
        assert rows(done, "ablation", control).set_index("strength")["shown"][1.0] >= left
    verdicts = done.verdicts[done.verdicts["model"] == "model"].set_index("attack")
    assert verdicts["breaks"]["ablation"]
    assert verdicts["words"]["ablation"].startswith("breaks it: at most")
    # other first words, or steps on unrelated answers, do not touch the vector
    assert not verdicts["breaks"]["prefill"]
    assert set(verdicts.index) == {*ATTACKS} - {"none"}


def test_arms_are_what_a_user_would_do(done, planted):
    """The rate under ablation, by the model's own words without the report's code."""
    from monosem import edits

    model, _ = planted
    config = RobustnessConfig.load(behaviour())
    vector = Context(config, model, print, SaysIt()).vectors.units[""]
    made = model.generate(config.of("behaviour_test"), edits=edits.ablate_writes(model, vector), max_new_tokens=3)
    shown = sum(SaysIt()("", text).label == "shown" for text in made.texts)
    assert rows(done, "ablation").set_index("strength")["shown"][1.0] * 16 == shown


def test_costs_are_of_unrelated_prompts(done, planted):
    """KL of the first token under subtraction, from the model's logits by hand."""
    from monosem import edits

    model, _ = planted
    config = RobustnessConfig.load(behaviour())
    vectors = Context(config, model, print, SaysIt()).vectors
    change = edits.add((vectors.site, vectors.units[""]), -1.0 * vectors.gap)
    prompts = config.of("unrelated_test")[:16]
    p, q = (model.run(prompts, edits=e, logits="last").logits.double().log_softmax(-1) for e in ((), change))
    wanted = float((p.exp() * (p - q)).sum(-1).mean())
    found = rows(done, "subtraction").set_index("strength")
    assert found["kl_first"][1.0] == pytest.approx(wanted, rel=1e-3)
    assert list(found["kl_token"]) == sorted(found["kl_token"])


def usual_norms(model):
    """Median norm of each layer's output over the tokens of the shipped text, from Hugging Face's hidden states."""
    found = []
    for piece in (resources.files("monosem") / "assets" / "usual_text.txt").read_text(encoding="utf-8").split("\n\n"):
        ids = model.tokenizer(piece.strip(), truncation=True, max_length=48).input_ids
        states = model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        keep = [i for i, one in enumerate(ids) if i and one not in model.special_ids]
        found.append(torch.stack([state[0, keep].norm(dim=-1) for state in states[1:]]))
    return torch.cat(found, 1).median(1).values.tolist()


def test_layer_by_layer_is_what_a_user_would_do(done, planted):
    """At the layer that is not the direction's own, by hand; at its own the attacks were measured before."""
    from monosem import edits

    model, _ = planted
    config = RobustnessConfig.load(behaviour())
    vectors = Context(config, model, print, SaysIt()).vectors
    part = done.results["parts"]["model"]["layers"]
    own, (other,) = part["own"], {0, 1} - {part["own"]}
    assert own == vectors.site.layer
    site = replace(vectors.site, layer=other)
    table = done.layers[done.layers["model"] == "model"].set_index(["attack", "control", "layer"])
    change = edits.add((site, vectors.units[""]), -table["gaps"]["subtraction", "", other] * vectors.gap)
    made = model.generate(config.of("behaviour_test"), edits=change, max_new_tokens=3)
    shown = sum(SaysIt()("", text).label == "shown" for text in made.texts)
    assert table["shown"]["subtraction", "", other] * 16 == shown
    for attack, strength in part["scales"].items():
        mine = rows(done, attack)
        wanted = mine[mine["strength"].isna() if strength is None else mine["strength"] == strength]
        assert table["shown"][attack, "", own] == wanted["shown"].item()
        assert table["kl_token"][attack, "", own] == wanted["kl_token"].item()
    assert ("one_layer", "random 1", own) not in table.index
    for page in ("report.html", "report.md"):
        assert "subtraction of random 1" in (done.folder / page).read_text()
        assert "of the same share at every other layer" in (done.folder / page).read_text()


def test_subtraction_is_the_same_share_of_the_stream_at_every_layer():
    """In a model whose stream grows tenfold from one layer to the next, by hand."""
    from monosem import edits

    model, _ = planted_model("growing")
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight.mul_(2000.0)
    norms = usual_norms(model)
    context = Context(RobustnessConfig.load(behaviour()), model, print, SaysIt())
    vectors, own = context.vectors, context.vectors.site.layer
    part = span.measure(context, {"subtraction": {"strength": 1.0, "arms": []}})
    assert part["share"] == pytest.approx(vectors.gap / norms[own], rel=1e-4)
    gaps = norms[1 - own] / norms[own]
    assert max(gaps, 1 / gaps) > 5
    change = edits.add((replace(vectors.site, layer=1 - own), vectors.units[""]), -gaps * vectors.gap)
    prompts = context.config.of("unrelated_test")[:16]
    p, q = (model.run(prompts, edits=e, logits="last").logits.double().log_softmax(-1) for e in ((), change))
    wanted = float((p.exp() * (p - q)).sum(-1).mean())
    assert [arm["gaps"] for arm in part["arms"]] == pytest.approx([gaps, gaps], rel=1e-4)
    assert part["arms"][0]["kl_first"]["value"] == pytest.approx(wanted, rel=1e-3)


def test_controls_have_the_perplexities_of_attacks(done, planted, tmp_path):
    """Of the random direction's subtraction, from Hugging Face's losses and one hook: the unchanged model's answers and
    the fixed text under it, and what is said under it in the unchanged model."""
    model, _ = planted
    config = RobustnessConfig.load(behaviour())
    vectors = Context(config, model, print, SaysIt()).vectors
    layer, shift = model.hf.model.layers[vectors.site.layer], -vectors.gap * vectors.units["random 1"]

    def answers(prompts):
        for prompt in prompts:
            ids = model.encoded(prompt)
            said = model.hf.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=length, pad_token_id=0)
            yield len(ids), said

    def perplexity(ids, start=1):
        logits = model.hf(input_ids=ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        return math.exp(-float(logits.gather(1, ids[0, start:, None]).mean()))

    def hooked():
        def add(module, args, output):
            return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

        return layer.register_forward_hook(add)

    text = (resources.files("monosem") / "assets" / "usual_text.txt").read_text(encoding="utf-8")
    with torch.no_grad():
        length = 16
        own = [(start, ids) for start, ids in answers(config.of("unrelated_test")[:16])]
        before = math.exp(sum(math.log(perplexity(ids, start)) for start, ids in own) / len(own))
        handle, length = hooked(), 3
        found = math.exp(sum(math.log(perplexity(ids, start)) for start, ids in own) / len(own))
        fixed = perplexity(torch.tensor([model.encoded(text)[: min(512, model.cfg.n_ctx)]]))
        said = list(answers(config.of("behaviour_test")))
        handle.remove()
        spoken = sorted(perplexity(ids, start) for start, ids in said)[len(said) // 2]
    row = rows(done, "subtraction", "random 1").set_index("strength").loc[1.0]
    assert rows(done, "none")["own_perplexity"].item() == pytest.approx(before, rel=1e-3)
    assert row["own_perplexity"] == pytest.approx(found, rel=1e-3)
    assert row["text_perplexity"] == pytest.approx(fixed, rel=1e-3)
    assert row["perplexity"] == pytest.approx(spoken, rel=1e-3)
    priced = done.table[done.table["kl_token"].notna()]
    assert priced[["own_perplexity", "text_perplexity", "perplexity"]].notna().all(None)
    lines = {one["title"]: one for one in facts_of(done.results)["models"][0]["costs"]}
    verdict = done.verdicts[done.verdicts["model"] == "model"].set_index("attack").loc["subtraction"]
    at = verdict["controls"]["random 1"]["strength"]
    title, other = (
        f"– random 1 at {at:g} (gaps of the class means)",
        rows(done, "subtraction", "random 1").set_index("strength").loc[at],
    )
    assert (lines[title]["own"], lines[title]["text"]) == (
        f"{other.own_perplexity:.2f}",
        f"{other.text_perplexity:.1f}",
    )
    assert verdict["controls"]["random 1"]["perplexity"] == other.perplexity
    assert f"| {title} |" in (done.folder / "report.md").read_text()


def test_the_direction_follows_the_behaviour(done):
    part = done.results["parts"]["model"]["faithfulness"]
    assert part["auroc"]["value"] == 1.0
    assert part["roles"]["behaviour_test"]["projection"] > part["roles"]["unrelated_test"]["projection"]
    scale = [row for row in done.results["parts"]["model"]["scale"]["arms"] if row["control"] == ""]
    assert [row["shown"]["value"] for row in scale] == sorted(row["shown"]["value"] for row in scale)
    assert scale[-1]["shown"]["value"] > 0.5  # the direction added brings it about
    noise = [row for row in done.results["parts"]["model"]["scale"]["arms"] if row["control"] == "random 1"]
    assert noise[-1]["shown"]["value"] < 0.2


def test_the_guard_opens_where_the_behaviour_is(done):
    part = done.results["parts"]["model"]["guard"]
    assert part["fired"]["behaviour_test"]["value"] == 1.0
    assert part["fired"]["unrelated_test"]["value"] <= 0.3
    assert part["calibrated_on"] == 10


def test_the_guard_stands_behind_the_attack(done, planted):
    """Each attack is tried against it. What takes the vector away before the gate keeps it shut; where nothing does,
    it opens and the behaviour shows as before."""
    from monosem import edits

    part = done.results["parts"]["model"]["guard"]
    with_guard = {arm["attack"]: arm["shown"]["value"] for arm in part["arms"]}
    assert list(with_guard) == list(ATTACKS)
    assert with_guard["none"] == with_guard["prefill"] == 1.0
    assert with_guard["ablation"] == 0.0
    model, _ = planted
    config = RobustnessConfig.load(behaviour())
    vectors = Context(config, model, print, SaysIt()).vectors
    arm = next(one for one in part["arms"] if one["attack"] == "subtraction")
    unit, behind = vectors.units[""], f"resid_pre.{vectors.site.layer + 1}"
    gate = edits.condition((behind, unit), above=part["threshold"])
    attack = edits.add((vectors.site, unit), -arm["strength"] * vectors.gap)
    prompts = config.of("behaviour_test")
    made = model.generate(prompts, edits=[attack, edits.add((behind, unit), vectors.gap).when(gate)], max_new_tokens=3)
    assert not any(decision.open for decision in gate.log)
    assert sum(SaysIt()("", text).label == "shown" for text in made.texts) == arm["shown"]["count"] < len(prompts)


def test_a_control_and_two_defences_stand_side_by_side(planted, safe, tmp_path):
    """Of a model without the vector no number is above chance, and each defended model has its name."""
    model, _ = planted
    bare, _ = planted_model("bare")
    with torch.no_grad():
        bare.hf.get_output_embeddings().weight[:, [5, 11]] = 0.0  # nothing reads the vector any more
    few = behaviour(attacks=["ablation", "one_layer"], amounts=[1.0], capabilities=[], over_refusal=safe)
    given = {"control": bare, "defences": [bare, model]}
    made = robustness.assess(few, folder=tmp_path, model=model, judge=SaysIt(), say=None, quiet=True, **given)
    places = ["model", "control", "defence", "defence_2"]
    assert list(made.results["parts"]) == places
    shown = made.table.set_index(["model", "attack", "control"])["shown"]
    assert [shown[place, "none", ""] for place in places] == [1.0, 0.0, 0.0, 1.0]
    assert facts_of(made.results)["against"]["models"] == [
        "The model",
        "The control",
        "The defended model (bare)",
        "The defended model (planted)",
    ]
    lines = (tmp_path / "report.md").read_text().split("## Side by side")[1].splitlines()
    none = next(line for line in lines if line.startswith("| No attack"))
    cells = [cell.strip() for cell in none.strip("|").split("|")]
    assert [cell.split(" [")[0] for cell in cells[1:]] == ["16/16", "0/16", "0/16", "16/16"]
    assert cells[2].endswith("p <0.0001")
    assert cells[4].endswith("p = 1.0000")
    alone = next(line for line in lines if line.startswith("| Ablation at one layer alone"))
    assert [cell.split(" of ")[-1] for cell in alone.strip("|").split("|")[2:4]] == [" nothing to break "] * 2
    for name in ("model", "control", "defence", "defence_2"):
        assert f'id="{name}"' in made.html.read_text()
    config = RobustnessConfig.load(few, control="a", defences=["b", "c"])
    assert config.models == {"model": "smollm2", "control": "a", "defence": "b", "defence_2": "c"}


def test_the_guards_threshold_has_all_unrelated_prompts(planted, safe, tmp_path):
    """However few prompts are answered: of 8 a threshold of this rate could not be had."""
    few = {"most_prompts": 8, "attacks": ["prefill"], "capabilities": [], "over_refusal": safe}
    made = robustness.assess(behaviour(**few), folder=tmp_path, model=planted[0], judge=SaysIt(), say=None, quiet=True)
    part = made.results["parts"]["model"]["guard"]
    assert (part["calibrated_on"], part["fired"]["unrelated_test"]["of"], part["arms"][0]["n"]) == (10, 10, 8)


def test_a_defence_is_set_beside(done):
    """The same model as its own defence: the same numbers, and no difference."""
    table = done.table.drop(columns="model")
    mine, other = (table[done.table["model"] == where].reset_index(drop=True) for where in ("model", "defence"))
    assert mine.equals(other)
    assert "## Side by side" in (done.folder / "report.md").read_text()


@pytest.mark.parametrize(("table", "attack"), [("k_to_break", "subspace"), ("to_halve", "subtraction")])
def test_what_breaks_it_has_its_price(done, table, attack):
    """Enough directions, or a long enough one, break any model, so what the least costs stands beside it."""
    found = facts_of(done.results)["models"][0][table]
    arms = done.results["parts"]["model"][attack]["arms"]
    for name, seen, _, price in found:
        mine = [arm for arm in arms if (arm["control"] or "fitted") == name and f"{arm['strength']:g}" == seen]
        nats = mine[0]["kl_token"]["value"] if mine else 0.0
        assert price.startswith("–" if not mine else "<0.01" if nats < 0.01 else f"{nats:.2f}")
        assert price.endswith("over the budget") == (nats > 1.0)
    assert found[0][:2] == ("fitted", "1")


def test_the_report_is_whole_and_holds_no_responses(done):
    page = done.html.read_text()
    assert "<script src" not in page
    assert "http" not in page.split("<main>")[1].split("<script")[0]
    for word in ("Ablation at all sites", "Success for the price", "Directions to break it", "What this is for"):
        assert word in page
    held = json.loads((done.folder / "results.json").read_text())
    assert "text" not in held["parts"]["model"]["none"]["arms"][0]["rows"][0]
    assert not any(done.folder.rglob("*.safetensors"))
    assert {"success", "scale", "k", "faithfulness", "defence_success"} <= set(done.figures)
    again = robustness.Robustness.load(done.folder)
    assert again.table.equals(done.table)
    with pytest.raises(UnknownName, match="figure"):
        done.plot("nonsense")
    with pytest.raises(BadFile):
        robustness.Robustness.load(done.folder / "parts")


def test_a_damaged_report_is_one_line(done, tmp_path):
    """Of mutated results each table is computed or refused as a damaged file."""
    whole, draw, refused = json.dumps(done.results), random.Random(0), list[str]()
    for _ in range(30):
        results = json.loads(whole)
        held, key = results, draw.choice(["config", *["parts"] * 5, "provenance", "judge"])
        while isinstance(held[key], dict | list) and held[key] and draw.random() < 0.8:
            held = held[key]
            key = draw.choice(list(held) if isinstance(held, dict) else range(len(held)))
        held[key] = draw.choice([None, "x", [], {}, -1])
        (tmp_path / "results.json").write_text(json.dumps(results))
        try:
            one = robustness.Robustness.load(tmp_path)
            assert [one.table, one.verdicts, one.over_refusal, one.layers, one.findings]
        except BadFile as error:
            refused.append(str(error))
    assert 5 < len(refused) < 30
    for said in refused:
        assert "results.json is damaged or no robustness report's (" in said
        assert said.endswith("run the report again")
        assert "\n" not in said
    results = json.loads(whole)
    results["parts"]["model"]["faithfulness"] |= {"roles": "x", "points": "x"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    for name in ("again", "again.html"):
        with pytest.raises(BadFile, match="damaged"):
            robustness.Robustness.load(tmp_path).save(tmp_path / name)
    assert not (tmp_path / "again" / "results.json").exists()


def test_subspaces_are_as_large_as_the_prompts_allow(planted):
    """Eight training prompts, of which two choose the layer."""
    model, _ = planted
    few = {role: prompts[:8] for role, prompts in behaviour()["prompts"].items()}
    values = {name: value for name, value in behaviour(prompts=few).items() if name != "ks"}
    config = RobustnessConfig.load(values)
    assert config.subspaces == [1, 2, 4]
    context = Context(config, model, print, SaysIt())
    assert {arm.strength for arm in ATTACKS["subspace"].arms(context)} == {1, 2, 4}
    assert any(doubt.startswith("ks = 8 was left out") for doubt in context.vectors.facts["doubts"])
    assert RobustnessConfig.load(values | {"ks": [6, 3]}).subspaces == [3, 6]
    with pytest.raises(BadInput, match="ks: it goes to 7, and 6 pairs .* 6 directions at most"):
        RobustnessConfig.load(values | {"ks": [1, 7]})
    others = RobustnessConfig.load(values | {"ks": [1, 7], "attacks": ["one_layer"]})
    assert others.subspaces == []
    context = Context(others, model, print, SaysIt())
    assert context.vectors.bases == {}
    assert len(context.vectors.units) == 3
    assert RobustnessConfig.load(behaviour(ks=None)).subspaces == [1, 2, 4, 8]


def test_doubts_about_the_layer_stand_beside_the_verdicts(done, planted, tmp_path):
    """Which layers COSMIC cannot judge, by class means of the prompts that choose, made by hand."""
    model, _ = planted
    config = RobustnessConfig.load(behaviour(layers=[0, 1, 2]))
    facts = Context(config, model, print, SaysIt()).vectors.facts
    sides = config.of("behaviour_train"), config.of("unrelated_train")
    choose = PromptPairs(*sides, paired=False).split(0.25, seed=config.seed)[1]
    cosines = []
    for layer in range(3):
        site = f"resid_post.{layer}"
        up, down = (
            torch.stack([model.run(prompt, capture=site)[site][0, -1] for prompt in side]).mean(0)
            for side in (choose.positive, choose.negative)
        )
        cosines.append(float(up @ down / up.norm() / down.norm()))
    behind = 2 - cosines.index(min(cosines))
    assert behind == 1
    assert facts["doubts"][0].startswith(f"{behind} of 3 candidates lie behind what COSMIC compares")
    held = json.loads(json.dumps(done.results))
    held["parts"]["model"]["direction"]["doubts"] = facts["doubts"]
    write(held, tmp_path)
    for page in ("report.html", "report.md"):
        text = (tmp_path / page).read_text()
        assert text.count("1 of 3 candidates lie behind") == 1
        assert text.index("what the numbers say") < text.index("1 of 3 candidates") < text.index("area under success")
    kept = json.loads((tmp_path / "results.json").read_text())["parts"]["model"]["direction"]
    assert kept["doubts"] == facts["doubts"]
    assert done.results["parts"]["model"]["direction"]["doubts"] == []


def test_a_prefilter_that_leaves_nothing_is_not_used(planted):
    """As in a model without the behaviour: it gets the direction of all prompts, and a doubt."""
    model, _ = planted
    plain, asked = (
        Context(RobustnessConfig.load(behaviour(ks=[1], prefilter=tokens)), model, print, SaysIt()).vectors
        for tokens in ([], [" good"])
    )
    assert torch.equal(plain.units[""], asked.units[""])
    assert "prefilter" not in asked.facts
    assert asked.facts["doubts"][0].startswith("the prefilter was not used (0 of 24 positive and 24 of 24 negative")
    with pytest.raises(BadInput, match="token"):
        robustness.assess(behaviour(prefilter=["the cat"]), model=model, judge=SaysIt(), say=None, quiet=True)


def test_a_report_goes_on_where_it_stopped(planted, safe, tmp_path, monkeypatch):
    model, _ = planted
    few = behaviour(over_refusal=safe, attacks=["ablation", "prefill"], amounts=[1.0])
    options = {"model": model, "judge": SaysIt(), "say": None, "quiet": True, "folder": tmp_path / "run"}
    stop = ATTACKS["prefill"]

    def fail(context):
        raise KeyboardInterrupt

    monkeypatch.setitem(ATTACKS, "prefill", replace(stop, arms=fail))
    with pytest.raises(KeyboardInterrupt):
        robustness.assess(few, **options)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("parts/model/*.json")}
    assert {path.stem for path in kept} == {"direction", "none", "ablation"}
    monkeypatch.setitem(ATTACKS, "prefill", stop)
    resumed = robustness.assess(few, **options)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = robustness.assess(few, **(options | {"folder": tmp_path / "other"}))
    assert resumed.table.equals(whole.table)
    with pytest.raises(Mismatch, match="seed"):
        robustness.assess({**few, "seed": 1}, **options)


def test_responses_say_what_happened(planted):
    model, _ = planted
    context = Context(RobustnessConfig.load(behaviour(keep_texts=True)), model, print, SaysIt())
    row = responses(context, Arm("none"), ["the moon", "the cat"], coherence=True)
    assert [line["shown"] for line in row["rows"]] == [True, False]
    assert row["rows"][0]["text"].startswith(" sad")
    assert row["perplexity"] > 0
    assert is_loop("a b " * 6)
    assert not is_loop("one two three four five six seven eight")


BAD = {
    "one side alone": ({"prompts": {"behaviour_train": ["a"] * 9}}, "behaviour_train: 1 prompts, and 8 different"),
    "an empty set": ({"behaviour_test": []}, "behaviour_test: 0 prompts"),
    "a blank prompt": ({"unrelated_test": ["a", " ", "c", "d"]}, "prompt 2 is blank"),
    "no such role": ({"harmful": ["a"]}, "no such role"),
    "test in train": ({"behaviour_test": None}, "is in behaviour_train and in behaviour_test; a prompt has one role"),
    "both sides": ({"unrelated_train": None}, "is in behaviour_train and in unrelated_train; a prompt has one role"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_behaviours_are_one_line(case, tmp_path):
    change, message = BAD[case]
    values = behaviour()
    if "prompts" in change:
        values |= change
    else:
        held = {role: values["prompts"]["behaviour_train"] if some is None else some for role, some in change.items()}
        values["prompts"] = values["prompts"] | held
    path = tmp_path / "behaviour.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(BadInput, match=message) as error:
        RobustnessConfig.load(path)
    assert "\n" not in str(error.value)
    told = CliRunner().invoke(app, ["robustness", str(path), "--out", str(tmp_path / "out")])
    assert told.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_an_organism_is_a_behaviour(tmp_path):
    config = RobustnessConfig.load("planted-refusal", most_prompts=5)
    assert (config.judge, config.model, len(config.of("behaviour_test"))) == ("refusal", "planted-refusal", 5)
    own = tmp_path / "mine"
    own.mkdir()
    (own / "prompts.json").write_text(json.dumps({"behaviour": "b", "judge": "language:fr", "prompts": config.prompts}))
    mine = RobustnessConfig.load(own)
    assert (mine.name, mine.judge, mine.model, mine.prompts) == ("mine", "language:fr", str(own), config.prompts)
    assert RobustnessConfig.load("planted-refusal", model="smollm2").model == "smollm2"


def test_bad_settings_are_one_line(planted, safe, tmp_path):
    with pytest.raises(UnknownName, match="no judge 'refusel'"):
        RobustnessConfig.load(behaviour(judge="refusel"))
    with pytest.raises(UnknownName, match="no behaviour file 'nowhere.yaml'"):
        RobustnessConfig.load("nowhere.yaml")
    with pytest.raises(BadInput, match="scales.0"):
        RobustnessConfig.load(behaviour(scales=[-1.0]))
    with pytest.raises(BadInput, match="rate"):
        RobustnessConfig.load(behaviour(rate=float("nan")))
    model, _ = planted
    options = {"model": model, "judge": SaysIt(), "say": None, "quiet": True, "folder": tmp_path / "run"}
    with pytest.raises(UnknownName, match="no attack 'ablatoin'"):
        robustness.assess(behaviour(attacks=["ablatoin"]), **options)
    with pytest.raises(BadInput, match="span_layers: model: planted has layers 0 to 2, and no 7"):
        robustness.assess(behaviour(span_layers=[1, 7]), **options)
    with pytest.raises(BadInput, match="span_layers: true is not a value"):
        RobustnessConfig.load(behaviour(span_layers=[True]))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(BadInput, match="no prompts"):
        robustness.assess(behaviour(over_refusal=str(tmp_path / "empty.txt"), attacks=["none"]), **options)
    assert storable({"a": (1, float("nan"))}) == {"a": [1, None]}


def test_the_command(planted, safe, tmp_path):
    """A model that never refuses, judged for refusals: there is nothing to break, and that is what it says."""
    model, _ = planted
    model.hf.save_pretrained(tmp_path / "tiny")
    model.tokenizer.save_pretrained(tmp_path / "tiny")
    path = tmp_path / "behaviour.yaml"
    values = behaviour(amounts=[1.0])
    values["prompts"]["behaviour_train"] += ["the cat and the tree", "the dog and the sea", "the man and the night"]
    path.write_text(yaml.safe_dump(values))
    words = ["robustness", str(path), "--model", str(tmp_path / "tiny"), "--attack", "ablation", "--over-refusal", safe]
    words += ["--out", str(tmp_path / "out"), "--set", "max_new_tokens=2", "--prefilter", f" {SAID}"]
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == 0, told.output
    held = json.loads(told.stdout)
    assert [row["attack"] for row in held["verdicts"]] == ["ablation"]
    assert held["verdicts"][0]["words"].startswith("the behaviour shows too seldom")
    assert held["config"]["model"] == str(tmp_path / "tiny")
    found = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]["model"]["direction"]
    assert found["prefilter"]["dropped"] == {"positive": 3, "negative": 0}  # those three
    assert found["prompts"]["fit"]["behaviour"] + found["prompts"]["choose"]["behaviour"] == 24
    assert "prefilter" in (tmp_path / "out" / "report.html").read_text()
    again = CliRunner().invoke(app, [*words, "--quiet"])
    assert again.stdout.strip() == str(tmp_path / "out" / "report.html")
    assert "a language model" not in again.stdout
    other = CliRunner().invoke(app, [*words, "--judge", "language:fr", "--quiet"])
    assert other.exit_code == 2  # the folder holds a report by another judge
