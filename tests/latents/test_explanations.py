"""Explanations: labels of latents with held-out scores, in a file beside a dictionary."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monosem.dictionaries import load_dictionary
from monosem.errors import BadFile
from monosem.latents import IndexConfig, build_index, explanations_of, index_of
from tiny_latents import MODEL, STORE, TOPK, WIDTH

HELD: dict[str, Any] = {
    "method": "read by hand",
    "latents": {
        "3": {"label": "words of <trade>", "top": [3, 3], "middle": [1, 3], "silent": [3, 3], "near": [0, 3]},
        "0": {"label": "never tried", "top": [0, 0], "middle": [0, 0], "silent": [2, 2], "near": [0, 0]},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TOPK.save(tmp_path)
    (tmp_path / "explanations.json").write_text(json.dumps(HELD))
    return tmp_path


def test_scores_are_the_mean_of_both_shares(folder):
    found = explanations_of(load_dictionary(folder))
    table = found.table.set_index("latent")
    assert table.loc[3, "fires"] == pytest.approx(4 / 6)
    assert table.loc[3, "quiet"] == pytest.approx(3 / 6)
    assert table.loc[3, "score"] == pytest.approx((4 / 6 + 3 / 6) / 2)
    assert table.loc[3, "middle"] == "1 of 3"
    # Wilson's interval of 4 of 6 by its formula: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96
    assert table.loc[3, "fires_low"] == pytest.approx(0.3000, abs=1e-3)
    assert table.loc[3, "fires_high"] == pytest.approx(0.9032, abs=1e-3)
    assert str(found.all[3]) == "words of <trade> (held-out score 0.58)"
    assert "nan" not in str(found.all[0])
    assert found.method == "read by hand"


def test_evidence_shows_them(folder):
    sae = load_dictionary(folder)
    build_index(MODEL, sae, STORE, folder / "index.sqlite", IndexConfig(examples=2), quiet=True)
    index = index_of(sae)
    assert "explained  words of <trade>" in str(index.evidence(3).as_text())
    assert index.evidence(3).parts()["explanation"]["label"] == "words of <trade>"
    assert "explained" not in str(index.evidence(1).as_text())


def test_dictionaries_without_them_have_none(tmp_path):
    TOPK.save(tmp_path)
    assert explanations_of(load_dictionary(tmp_path)) is None
    assert explanations_of(TOPK) is None


def test_the_command_prints_them(folder):
    done = subprocess.run(
        [sys.executable, "-m", "monosem", "latents", "explanations", str(folder), "--json"],
        capture_output=True,
        text=True,
    )
    assert [row["latent"] for row in json.loads(done.stdout)] == [3, 0]
    (folder / "explanations.json").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "monosem", "latents", "explanations", str(folder)], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "comes without explanations" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.pop("method"),
        lambda held: held.update(latents=[]),
        lambda held: held["latents"].update({str(WIDTH): held["latents"]["3"]}),
        lambda held: held["latents"].update({"x": held["latents"]["3"]}),
        lambda held: held["latents"].update({"1" * 5000: held["latents"]["3"]}),
        lambda held: held["latents"]["3"].pop("label"),
        lambda held: held["latents"]["3"].update(top=[4, 3]),
        lambda held: held["latents"]["3"].update(top=[True, 3]),
        lambda held: held["latents"]["3"].update(near=None),
        lambda held: held["latents"].update({"3": "label"}),
    ],
)
def test_damaged_files_are_named(folder, change):
    held = json.loads(json.dumps(HELD))
    change(held)
    (folder / "explanations.json").write_text(json.dumps(held))
    with pytest.raises(BadFile, match=r"explanations\.json"):
        explanations_of(load_dictionary(folder))
