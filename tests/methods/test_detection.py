"""Detection: the planted direction is found, controls find nothing, and the test part chooses nothing."""

from dataclasses import replace

import pytest
import torch

from monosem.directions import Directions
from monosem.directions.sample import Sample
from monosem.errors import BadInput, UnknownName
from monosem.methods import ENTRANTS, MethodsConfig, asking
from monosem.methods.detection import Scene, detect
from monosem.methods.parts import Material
from tiny import model_of, tiny_model
from tiny_concept import SETTINGS, concept, planted_model
from tiny_dictionaries import random_tensors, tiny_dictionary

MODEL, U = planted_model()
SIZES = (24, 12, 16)


def scene(config=None, material=None, dictionary=None, **changes):
    one = concept(**changes)
    chosen = config or MethodsConfig.parse(SETTINGS)
    return Scene(MODEL, one, chosen, material or Material.of(MODEL, one, SIZES, 48, 0), dictionary)


@pytest.fixture(scope="module")
def found():
    return detect(scene())


def row(found, name):
    return next(row for row in found.rows if row["method"] == name)


def test_the_planted_direction_is_found_and_controls_find_nothing(found):
    for name in ("dim", "median", "projected", "lda", "logistic", "bag_of_words"):
        assert row(found, name)["auroc"] > 0.95, name
    assert row(found, "mean_centred")["auroc"] > 0.85
    first = found.directions["dim"]["resid_post.0"]
    assert float(first.unit @ U) > 0.8
    assert abs(float(found.directions["random"]["resid_post.0"].unit @ U)) < 0.5
    for name in ("random", "shuffled"):
        assert row(found, name)["auroc_low"] < row(found, "dim")["auroc_low"]
    assert row(found, "latent")["left_out"] == "no dictionary was given"


def test_a_direction_is_what_the_room_of_directions_makes_of_the_fit_part(found):
    material = scene().material
    sides = []
    for side in (True, False):
        runs = [MODEL.run([material.texts[i]], capture="resid_post.1") for i in material.side("fit", side)]
        sides.append(torch.stack([run["resid_post.1"][0, -1] for run in runs]))
    delta = Sample.of(*sides).delta
    places = {one["place"]: one for one in row(found, "dim")["places"]}
    test = torch.stack(
        [MODEL.run([material.texts[i]], capture="resid_post.1")["resid_post.1"][0, -1] for i in material.rows("choose")]
    )
    f, y = test.double() @ delta, material.y[material.rows("choose")]
    pairs = f[y][:, None] - f[~y][None]
    expected = float((pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean())
    assert places["resid_post.1@last"]["choose_auroc"] == pytest.approx(expected, abs=1e-6)


def test_nothing_of_the_test_part_is_used_in_choosing(found):
    """With other test labels, all that was chosen is the same; only the test numbers change."""
    before = scene()
    y, rows = before.material.y.clone(), before.material.rows("test")
    y[rows] = ~y[rows]
    after = detect(scene(material=replace(before.material, y=y)))
    for one, other in zip(found.rows, after.rows):
        kept = {key: value for key, value in one.items() if key not in ("auroc", "auroc_low", "auroc_high")}
        assert repr(kept) == repr({key: other[key] for key in kept})  # NaN where nothing is chosen
        if not one["left_out"]:
            assert other["auroc"] == pytest.approx(1 - one["auroc"], abs=1e-6)
    for name, sites in found.directions.items():
        for site, one in sites.items():
            torch.testing.assert_close(one.vector, after.directions[name][site].vector)


def test_labels_of_the_fit_part_decide(found):
    before = scene()
    y, rows = before.material.y.clone(), before.material.rows("fit")
    y[rows] = ~y[rows]
    turned = detect(scene(MethodsConfig.parse(SETTINGS | {"methods": ("dim",)}), replace(before.material, y=y)))
    ours, theirs = (
        next(one["choose_auroc"] for one in row(some, "dim")["places"] if one["place"] == "resid_post.0@mean")
        for some in (found, turned)
    )
    assert theirs == pytest.approx(1 - ours, abs=1e-6)


def test_a_dictionary_takes_part_with_its_best_latent():
    tensors = random_tensors(32, 24, 0, (1 / 6, 1 / 4))
    first = detect(scene()).directions["dim"]["resid_post.1"].unit
    tensors.W_enc[:, 7] = first
    dictionary = tiny_dictionary("relu", tensors, model_name="planted", name="tiny", site="resid_post.1")
    made = detect(scene(MethodsConfig.parse(SETTINGS | {"methods": ("latent",)}), dictionary=dictionary))
    assert "resid_post.1" in row(made, "latent")["place"]
    assert made.directions["latent"]["resid_post.1"].provenance["latent"] == int(
        row(made, "latent")["place"].split()[1]
    )


def test_asking_is_the_difference_of_log_probabilities(monkeypatch):
    model = model_of()
    monkeypatch.setattr(asking, "YES", ("cat", "dog"))
    monkeypatch.setattr(asking, "NO", ("man",))
    texts = ["the sun", "a house at night in rome", "one two"]
    found = asking.says_yes(model, texts, "is it?", batch_size=2)
    ids = {word: model.bare(f" {word}")[0] for word in ("cat", "dog", "man")}
    for text, value in zip(texts, found):
        prompt = f'Text: "{text}"\n\nQuestion: is it? Answer yes or no.\nAnswer:'
        p = model.run([prompt]).logits[0, -1].double().softmax(-1)
        expected = (p[ids["cat"]] + p[ids["dog"]]).log() - p[ids["man"]].log()
        assert float(value) == pytest.approx(float(expected), abs=1e-4)
    monkeypatch.setattr(asking, "NO", ("cat", "dog"))
    with pytest.raises(BadInput, match="same token"):
        asking.says_yes(model, texts, "is it?")


def test_a_chat_model_is_asked_in_its_template():
    model = tiny_model("llama", name="chat")
    assert asking.told(model, "the man", "write of the sea") == "write of the sea\n\nthe man"
    model.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert asking.told(model, "the man", "write of the sea") == "[user]write of the sea[assistant]the man"
    assert asking.asked(model, "the sun", "is it?", True) == (
        '[user]Text: "the sun"\n\nis it? Answer yes or no.[assistant]'
    )


def test_settings_that_are_wrong():
    for changes, message in (
        ({"methods": ("pca_diff",)}, "centring takes out"),
        ({"methods": ("dmi",)}, "dmi"),
        ({"methods": ()}, "at least one method"),
        ({"budgets": (0.0, 1.0)}, "budgets are different numbers"),
        ({"budget": 0.7}, "not one of budgets"),
        ({"positions": ("last", "last")}, "twice"),
        ({"positions": ("first",)}, "positions"),
        ({"fit": 1}, "fit"),
    ):
        with pytest.raises(BadInput, match=message):
            MethodsConfig.parse(changes)
    with pytest.raises(UnknownName, match="layer"):
        MethodsConfig.parse({"layers": (7,)}).layers_of(MODEL)
    assert MethodsConfig.parse({"layers": (-1, 0)}).layers_of(MODEL) == [2, 0]
    assert set(MethodsConfig.parse({}).methods) == set(ENTRANTS)


def test_directions_are_files_that_the_room_of_directions_reads(found, tmp_path):
    from monosem.directions.direction import write_directions

    write_directions(tmp_path / "dim.safetensors", list(found.directions["dim"].values()))
    assert {str(one.site) for one in Directions.load(tmp_path / "dim.safetensors")} == set(found.directions["dim"])
