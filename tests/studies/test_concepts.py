"""Concept files: styles, what is held out, errors in words, and that surface features do not give the sides away."""

import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from monosem import studies
from monosem.cli import app
from monosem.errors import BadInput
from monosem.latents import contrast
from monosem.studies.prompts import split
from tiny_latents import MODEL, SAE

SHIPPED = ["french", "sentiment", "deception"]


def style(kind, n=4):
    return {side: [f"{kind} {side} number {i}" for i in range(n)] for side in ("positive", "negative")}


CONCEPT = {
    "name": "test",
    "styles": {"statement": style("statement", 6), "question": style("question", 5), "headline": style("headline", 4)},
    "test": ["an opening"],
    "control": ["another opening"],
}


# ------------------------------------------------------------------ held out
@pytest.mark.parametrize("seed", range(5))
def test_whole_styles_are_held_out(seed):
    parts = split(studies.StudyConfig.parse(CONCEPT).pairs, seed)
    searched, held_out, known = (set(part.groups) for part in (parts.search, parts.held_out, parts.known))
    assert searched
    assert held_out
    assert known <= searched
    assert not searched & held_out
    assert held_out | searched == {"statement", "question", "headline"}
    counts = [len(part.positive) for part in (parts.search, parts.held_out, parts.known)]
    assert sum(counts) == 15
    assert counts[1] in (6, 9)  # as near to 7.5 as whole styles come
    for part in (parts.search, parts.held_out, parts.known):
        for (up, down), group in zip(part, part.groups, strict=True):
            assert up.replace("positive", "negative") == down  # partners stay together
            assert up.split()[0] == group
    everything = [prompt for part in (parts.search, parts.held_out, parts.known) for prompt in part.positive]
    assert len(set(everything)) == 15


def test_the_seed_draws_other_styles():
    pairs = studies.StudyConfig.parse(CONCEPT).pairs
    assert split(pairs, 3) == split(pairs, 3)
    assert len({frozenset(split(pairs, seed).held_out.groups) for seed in range(10)}) > 1


def test_with_one_style_half_of_the_pairs_is_held_out():
    flat = {name: value for name, value in CONCEPT.items() if name != "styles"} | style("only", 10)
    config = studies.StudyConfig.parse(flat)
    assert config.positive == style("only", 10)["positive"]
    parts = split(config.pairs, 0)
    assert (len(parts.search.positive), len(parts.held_out.positive), parts.known) == (5, 5, None)


def test_a_contrast_takes_held_out_pairs_of_another_kind():
    pairs = studies.StudyConfig.parse(
        CONCEPT | {"styles": {name: {"positive": [f"{a} good {b}" for a, b in product(name, "efgh")],
                                     "negative": [f"{a} bad {b}" for a, b in product(name, "efgh")]}
                              for name in ("abc", "dog")}}
    ).pairs  # fmt: skip
    parts = split(pairs, 0)
    found = contrast(MODEL, SAE, *_sides(parts.search), held_out=parts.held_out, permutations=10)
    alone = contrast(MODEL, SAE, *_sides(parts.held_out), held_out=parts.search, permutations=10)
    both = found.table.merge(alone.table, on="latent")
    assert len(both) > 5
    assert both["held_out_auroc_x"].tolist() == both["auroc_y"].tolist()
    assert both["auroc_x"].tolist() == both["held_out_auroc_y"].tolist()
    loose = type(pairs)(pairs.positive, pairs.negative, paired=False)
    with pytest.raises(BadInput, match="held_out has paired=False"):
        contrast(MODEL, SAE, *_sides(parts.search), held_out=loose)


def _sides(pairs):
    return pairs.positive, pairs.negative


# ------------------------------------------------------------------ errors
def changed(**changes):
    return yaml.safe_dump(CONCEPT | changes, sort_keys=False)


BAD = {
    "a side that is short": (
        changed(styles=CONCEPT["styles"] | {"note": {"positive": ["a", "b"], "negative": ["c"]}}),
        "styles.note: unpaired prompts: 2 positive and 1 negative; line i of one must be the partner",
    ),
    "a misspelt side": (
        changed(styles={"note": {"postive": ["a"], "negative": ["b"]}}),
        "styles.note.postive: no such field; did you mean 'positive'",
    ),
    "a colon without quotes": (
        changed().replace("- statement positive number 2", "- Anna: statement positive number 2"),
        "styles.statement.positive.2: {'Anna': 'statement positive number 2'} is not text; put quotes around a prompt "
        "with a colon",
    ),
    "a word that YAML takes for something else": (
        changed().replace("- statement positive number 2", "- yes"),
        "styles.statement.positive.2: True is not text; put quotes around it",
    ),
    "no prompts": (changed(styles={}), "styles"),
    "too few": (changed(styles={"all": style("few", 3)}), "3 pairs of prompts; a study needs 4 at least"),
    "both shapes": (changed(positive=["a"] * 4), "give styles, or positive and negative, not both"),
    "one prompt in two styles": (
        changed(styles=CONCEPT["styles"] | {"note": CONCEPT["styles"]["question"]}),
        "the prompt 'question positive number 0' stands twice, in styles.question.positive and styles.note.positive",
    ),
    "one prompt on both sides": (
        changed(styles={"note": {"positive": list("abcd"), "negative": list("efga")}}),
        "the prompt 'a' stands twice, in styles.note.positive and styles.note.negative",
    ),
    "a name with a blank": (
        changed(name="white lies"),
        "name: 'white lies' cannot name the study's folder; use at most 80 letters, digits, - and _, such as "
        "'white-lies' (title takes any text)",
    ),
    "a name that is a path": (changed(name="../up"), "name: '../up' cannot name the study's folder"),
    "a name that is a number": (changed(name=7), "name: 7 cannot name the study's folder"),
    "a name that no folder takes": (changed(name="x" * 300), "cannot name the study's folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_to_write(tmp_path, name):
    text, words = BAD[name]
    (tmp_path / "concept.yaml").write_text(text)
    with pytest.raises(BadInput, match=re.escape(words)) as caught:
        studies.StudyConfig.load(tmp_path / "concept.yaml")
    assert "\n" not in str(caught.value)
    result = CliRunner().invoke(app, ["study", str(tmp_path / "concept.yaml")])
    assert result.exit_code == 2
    assert re.sub(r"\s", "", words) in re.sub(r"\s", "", result.stderr)


def test_the_page_about_concept_files_is_right():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    section = page.partition("### The concept file")[2]
    example = yaml.safe_load(section.partition("```yaml\n")[2].partition("```")[0])
    config = studies.StudyConfig.parse(example)
    assert len(config.positive) == 6
    assert all(field in section for field in studies.StudyConfig.model_fields)
    assert all(field in section for field in example)


def test_blanks_in_paths_and_titles_are_fine(tmp_path):
    path = tmp_path / "my concept.yaml"
    path.write_text(changed(title="White lies, and others"))
    assert studies.StudyConfig.load(path).title == "White lies, and others"


# ------------------------------------------------------------------ shipped
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_concepts_have_many_pairs_in_several_styles(name):
    config = studies.StudyConfig.load(name)
    assert config.name == name
    assert len(config.styles) >= 5
    assert all(len(style.positive) >= 8 for style in config.styles.values())
    assert len(config.positive) == len(config.negative) >= 40
    assert min(len(config.test), len(config.control)) >= 10


SURFACE = {
    "words": lambda text: len(text.split()),
    "characters": len,
    "letters a word": lambda text: len(text) / len(text.split()),
    "commas": lambda text: text.count(","),
    "capitals": lambda text: sum(letter.isupper() for letter in text),
    "quotes and brackets": lambda text: len(re.findall(r"[\"'()\[\]]", text)),
    "other marks": lambda text: len(re.findall(r"[:;!?-]", text)),
    "the last letter": lambda text: ord(text[-1]),
}
SMALL = "the a an and but or so if that this it is was to of in on at for with not no i he she we they you my"
LENGTHS = {"words", "characters", "letters a word"}  # French says the same in fewer words; its tokens are as many


def area(up, down):
    """AUROC by its meaning: the share of all (positive, negative) pairs in which the positive one is above."""
    return sum((a > b) + 0.5 * (a == b) for a in up for b in down) / (len(up) * len(down))


@pytest.mark.parametrize(
    ("name", "feature"), [both for both in product(SHIPPED, SURFACE) if both[0] != "french" or both[1] not in LENGTHS]
)
def test_surface_features_do_not_separate_the_sides(name, feature):
    config, measure = studies.StudyConfig.load(name), SURFACE[feature]
    assert 0.4 <= area([*map(measure, config.positive)], [*map(measure, config.negative)]) <= 0.6


@pytest.mark.parametrize("name", ["sentiment", "deception"])
def test_no_small_word_belongs_to_one_side(name):
    config = studies.StudyConfig.load(name)
    small = set(SMALL.split())
    up, down = (
        Counter(word for text in side for word in set(re.findall(r"\w+", text.lower())))
        for side in (config.positive, config.negative)
    )
    assert max(abs(up[word] - down[word]) for word in small) <= 3
    assert sum(a.split()[0] == b.split()[0] for a, b in zip(config.positive, config.negative)) >= 50


@pytest.mark.smollm2
@pytest.mark.parametrize("name", SHIPPED)
def test_the_sides_have_as_many_tokens(name):
    from monosem import load_model

    model, config = load_model("smollm2", quiet=True), studies.StudyConfig.load(name)
    up, down = (model.tokens(side).lengths.tolist() for side in (config.positive, config.negative))
    assert 0.4 <= area(up, down) <= 0.6
