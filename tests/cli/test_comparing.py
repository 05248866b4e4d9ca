"""`monosem compare-methods`: what it prints is what the library measures, and what it says to wrong input."""

import json
from collections.abc import Callable
from pathlib import Path

import yaml
from click.testing import Result

from monosem.methods import compare_methods
from monosem.models import load_model
from tiny_concept import SETTINGS, values

METHODS = ("dim", "bag_of_words", "random")
GIVEN = SETTINGS | {"budgets": (0.05, 0.2), "budget": 0.2}
SMALL = " ".join(f"--set {name}={json.dumps(value).replace(' ', '')}" for name, value in GIVEN.items())


def test_compare_methods_prints_what_the_library_measures(
    run: Callable[..., Result], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(values()))
    line = f"compare-methods {tmp_path / 'mood.yaml'} --model tiny --methods {','.join(METHODS)} {SMALL}"
    done = run(f"{line} --json --out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    settings = GIVEN | {"methods": METHODS}
    again = compare_methods(load_model("tiny"), values(), folder=tmp_path / "b", settings=settings, quiet=True)
    ours, theirs = json.loads(done.stdout), again.results
    assert ours["summary"] == json.loads(json.dumps(theirs["summary"]))
    shown = run(f"{line} --out", tmp_path / "out")
    assert "bag_of_words" in shown.stdout
    assert "means over 1 concept\n" in shown.stdout
    assert again.blind_judges == {}
    again.results["concepts"]["mood"]["steering"]["facts"]["judge"] |= {"auroc": 0.6, "low": 0.4}
    assert again.blind_judges["mood"]["auroc"] == 0.6
    assert "report: " in shown.stderr
    assert run(f"{line} --quiet --out", tmp_path / "out").stdout.strip() == str(tmp_path / "out" / "report.html")


def test_compare_methods_says_what_is_wrong(run: Callable[..., Result], tmp_path: Path) -> None:
    for line, words in (
        ("compare-methods nothing --model tiny", "no concept file nothing"),
        ("compare-methods french --model tiny --methods dmi", "did you mean"),
        ("compare-methods french --model tiny --set fit=x", "fit"),
        ("compare-methods french --model tiny --layers 9", "--layers 9"),
    ):
        done = run(f"{line} --out", tmp_path / "out")
        assert done.exit_code == 2, line
        assert words in done.stderr.splitlines()[-1], done.stderr
        assert not (tmp_path / "out").exists()


def test_a_concept_is_checked_before_a_model_is_loaded(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(values() | {"negative": []}))
    done = run(f"compare-methods {tmp_path / 'mood.yaml'} --model nothing-there --out", tmp_path / "out")
    assert done.exit_code == 2
    assert "no negative texts" in done.stderr
    assert len(done.stderr.splitlines()) == 1
