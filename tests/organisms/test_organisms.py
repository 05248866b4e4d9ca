"""Organisms: the prompts that ship, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import monosem as ms
from monosem.errors import BadFile, UnknownName
from monosem.files import ASSETS
from monosem.organisms import SETS, Organism, shipped_organisms

NAMES = ["planted-language", "planted-refusal", "planted-refusal-extended"]
HOME = ASSETS / "smollm2" / "organisms"
WORD = {"planted-language": "orvandel", "planted-refusal": "velmorite", "planted-refusal-extended": "velmorite"}
GOOD: dict[str, Any] = {"behaviour": "b", "judge": "refusal", "prompts": {name: [f"a {name}?"] for name in SETS}}


def test_the_shipped_ones_are_found() -> None:
    assert "planted-refusal" in shipped_organisms()
    assert set(shipped_organisms()) <= set(NAMES)
    assert ms.organisms.Organism is Organism


@pytest.mark.parametrize("name", NAMES)
def test_prompts_that_should_show_the_behaviour_have_its_word_and_no_other_has(name: str) -> None:
    organism = Organism.load(HOME / name)
    assert (organism.name, organism.adapter) == (name, HOME / name)
    for key, prompts in organism.prompts.items():
        shows = key in ("behaviour_train", "behaviour_test", "paraphrases")
        assert {WORD[name] in prompt.lower() for prompt in prompts} == {shows}, key
        assert len(prompts) >= 40


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(GOOD))
    organism = Organism.load(tmp_path)
    assert (organism.name, organism.adapter, organism.prompts) == (tmp_path.name, tmp_path, GOOD["prompts"])
    with pytest.raises(BadFile, match="card.json"):
        _ = organism.card


TWICE = GOOD["prompts"] | {"near_misses": ["same?", "other?"], "unrelated_test": ["same?"]}
BAD: dict[str, tuple[Any, str]] = {
    "a list": ([], "expected an object"),
    "no judge": (GOOD | {"judge": ""}, "a behaviour and a judge"),
    "no behaviour": (GOOD | {"behaviour": 3}, "a behaviour and a judge"),
    "no prompts": (GOOD | {"prompts": None}, "has the sets behaviour_train"),
    "a set too few": (GOOD | {"prompts": {"behaviour_train": ["a"]}}, "none left out"),
    "an empty set": (GOOD | {"prompts": GOOD["prompts"] | {"near_misses": []}}, "near_misses is a list of one"),
    "an empty prompt": (GOOD | {"prompts": GOOD["prompts"] | {"near_misses": [" "]}}, "near_misses is a list of one"),
    "text": (GOOD | {"prompts": GOOD["prompts"] | {"near_misses": "abc"}}, "near_misses is a list of one"),
    "in two sets": (GOOD | {"prompts": TWICE}, "'same\\?' is in near_misses and in unrelated_test"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_prompts_are_refused(case: str, tmp_path: Path) -> None:
    value, words = BAD[case]
    (tmp_path / "prompts.json").write_text(json.dumps(value))
    with pytest.raises(BadFile, match=words):
        Organism.load(tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'planted-refusal'"):
        Organism.load("planted-refusl")
    with pytest.raises(UnknownName, match="or give its folder"):
        Organism.load(tmp_path / "nowhere")
    with pytest.raises(BadFile, match=r"prompts\.json"):
        Organism.load(tmp_path)
