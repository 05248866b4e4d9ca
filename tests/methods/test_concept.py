"""Concept files and their parts: what is refused, and that nothing is in two parts."""

import pytest
import yaml

from monosem.errors import BadFile, BadInput, UnknownName
from monosem.methods import Concept
from monosem.methods.concept import concepts_of
from monosem.methods.parts import PARTS, Material
from monosem.studies import StudyConfig
from tiny import model_of
from tiny_concept import concept, texts, values

SIZES = (20, 10, 15)
SIDES = ("positive", "negative")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negative": []}, "no negative texts: give texts with the concept, and texts without it"),
        ({"negative": None}, "negative"),
        ({"positive": texts(("good",), 12, 3)}, "12 positive texts; 16 at least"),
        ({"paired": True, "negative": texts(("bad",), 60, 3)}, "70 positive and 60 negative texts"),
        ({"paired": 3}, "paired"),
        ({"scorer": "wrods"}, "scorer 'wrods' is not one of words, letters, nor a judge"),
        ({"scorer": "language:xx"}, "language:xx"),
        ({"scorer": "model"}, "needs the options url and model"),
        ({"openings": texts(("happy", "good"), 1, 1)}, "an opening must not be one of the texts"),
        ({"openings": ["so", "so"]}, "an opening stands twice"),
        ({"openings": [" "]}, "empty prompt"),
        ({"openings": ["so", "and", "but"]}, "3 openings to continue; steering needs 4"),
        ({"positive": ["twice"] * 20}, "'twice' stands twice"),
        ({"positive": [{"a": 1}] * 20}, "is not text"),
        ({"positive": [float("nan")] * 20}, "nan is not text"),
        ({"negative": ["a class of one"]}, "1 negative texts; 16 at least"),
        ({"name": "../up"}, "cannot name"),
        ({"sorcer": "x"}, "sorcer: no such field; did you mean"),
        ({"styles": {}}, "give styles, or positive and negative"),
    ],
)
def test_a_file_that_is_wrong_says_so(changes, message):
    with pytest.raises(BadInput, match=message) as caught:
        Concept.load(values() | changes)
    assert "\n" not in str(caught.value)


def test_a_text_of_both_sides_is_refused():
    same = values()
    with pytest.raises(BadInput, match="stands twice"):
        Concept.load(same | {"negative": [same["positive"][0], *same["negative"]]})


def test_a_text_in_two_styles_is_refused():
    given = values()
    first, second = ({side: given[side][part] for side in SIDES} for part in (slice(0, 31), slice(30, 60)))
    styles = {"styles": {"one": first, "two": second}}
    with pytest.raises(BadInput, match="stands twice"):
        Concept.load({name: value for name, value in given.items() if name not in SIDES} | styles)


def test_files_folders_and_shipped_names(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values()))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(values(name="other")))
    assert [one.name for one in concepts_of(str(tmp_path))] == ["mood", "other"]
    study = StudyConfig.load("french")
    french = Concept.load("french")
    assert french.side("positive") == study.positive
    assert french.openings == [*study.test, *study.control]
    assert list(french.styles) == list(study.styles)
    path = tmp_path / "study.yaml"
    study.write(path)
    assert Concept.load(str(path)) == french
    with pytest.raises(BadInput, match="two concepts are called 'mood'"):
        concepts_of([values(), str(tmp_path / "a.yaml")])
    with pytest.raises(UnknownName, match="no concept file"):
        Concept.load("frnech")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no .yaml file"):
        concepts_of(str(tmp_path / "empty"))
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(BadFile, match="not a concept file"):
        Concept.load(str(tmp_path / "list.yaml"))
    with pytest.raises(BadInput, match="at least one"):
        concepts_of([])


# ---------------------------------------------------------------------- parts
def styled():
    """Twelve styles of six pairs."""
    up, down = texts(("good",), 72, 1), texts(("bad",), 72, 2)
    styles = {f"s{i}": {"positive": up[i::12], "negative": down[i::12]} for i in range(12)}
    return Concept.load({"name": "styled", "styles": styles}), {
        text: name for name, style in styles.items() for side in style.values() for text in side
    }


@pytest.mark.parametrize("seed", range(4))
def test_parts_share_no_style_and_no_text(seed):
    one, style = styled()
    found = Material.of(model_of(), one, SIZES, 48, seed)
    seen = [{style[found.texts[i]] for i in found.rows(part)} for part in PARTS]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 12
    groups = [set(found.groups[found.rows(part)].tolist()) for part in PARTS]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for part, most in zip(PARTS[1:], SIZES):
        assert 0 < len(found.side(part, True)) == len(found.side(part, False)) <= most


def test_pairs_stay_together_and_in_line():
    up, down = texts(("good",), 60, 1), texts(("bad",), 60, 2)
    partner = dict(zip(up, down))
    found = Material.of(model_of(), Concept.load({"name": "pairs", "positive": up, "negative": down}), SIZES, 48, 0)
    for part in PARTS:
        sides = [[found.texts[i] for i in found.side(part, side)] for side in (True, False)]
        assert sides[0]
        assert [partner[text] for text in sides[0]] == sides[1]
    assert len(found.side("judge", True)) == 15


def test_the_seed_draws_and_clipping_cuts():
    model, one = model_of(), concept()
    first, again, other = (Material.of(model, one, SIZES, 48, seed) for seed in (0, 0, 1))
    assert first.texts == again.texts != other.texts
    short = Material.of(model, one, SIZES, 7, 0)
    assert max(len(model.bare(text)) for text in short.texts) == 7
    with pytest.raises(BadInput, match="begins with the same 3 tokens"):
        Material.of(model, one, SIZES, 3, 0)


def test_too_few_groups():
    up, down = texts(("good",), 20, 1), texts(("bad",), 20, 2)
    same = [f"{'the same beginning of every text, word for word, always'} {text}" for text in up]
    given = {"name": "few", "paired": False, "positive": same, "negative": down}
    with pytest.raises(BadInput, match="few: the positive rows are of one group"):
        Material.of(model_of(), Concept.load(given), SIZES, 48, 0)
