"""`monosem latents map, splits, cycle, meta, writes, absorbers` as a user runs them, against the library."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import Result

import monosem
from monosem.dictionaries import load_dictionary
from tiny_dictionaries import with_rows
from tiny_home import SITE


@pytest.fixture(scope="module")
def narrow(home: Path) -> str:
    sae = load_dictionary(home / "sae")
    rows = sae.W_dec[:8] + 0.02
    with_rows(rows, "narrow", site=SITE, model_name=sae.model_name).save(home / "narrow")
    return "narrow"


def test_a_map_is_written_and_printed(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run("latents map sae --smallest 3 --out", tmp_path / "map.csv")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "map.csv")
    expected = monosem.latents.decoder_map(load_dictionary("sae"), names=["sae"], smallest=3).table
    assert table["x"].tolist() == pytest.approx(expected["x"].tolist(), rel=1e-4)
    assert table["cluster"].tolist() == expected["cluster"].tolist()
    assert "no method 'tsne'" in run("latents map sae --method tsne").stderr


def test_splits_and_a_family(run: Callable[..., Result], narrow: str) -> None:
    rows = json.loads(run(f"latents splits sae {narrow} --threshold 0.9 --json").stdout)
    assert [row["parent"] for row in rows[:8]] == list(range(8))
    assert all(row["child"] for row in rows[:8])
    tree = json.loads(run(f"latents splits sae {narrow} --threshold 0.9 --family sae:3 --json").stdout)
    assert (tree["dictionary"], tree["latent"]) == ("narrow", 3)
    shown = run(f"latents splits sae {narrow} --threshold 0.9 --family sae:3").stdout.splitlines()
    assert shown[0].startswith("narrow 3")
    assert shown[1].startswith("   sae 3  0.9")
    assert shown[1].endswith("<")
    assert "null_share" in run(f"latents splits sae {narrow}").stdout
    assert "DICTIONARY:LATENT" in run(f"latents splits sae {narrow} --family 3").stderr
    assert "two dictionaries or more" in run("latents splits sae").stderr


def test_what_all_latents_write(run: Callable[..., Result]) -> None:
    (row,) = json.loads(run("latents writes sae --latents 5 --json").stdout)
    sae = load_dictionary("sae")
    expected = monosem.latents.written(monosem.load_model("tiny"), sae, [5]).table.iloc[0]
    assert row["promotes"] == expected["promotes"]
    assert row["kurtosis"] == pytest.approx(expected["kurtosis"], rel=1e-4)
    assert "3,17" in run("latents writes sae --latents 5;6").stderr


def test_meta_latents_of_a_dictionary(run: Callable[..., Result]) -> None:
    rows = json.loads(run("latents meta sae sae --latents 3,4 --json").stdout)
    assert {row["latent"] for row in rows} == {3, 4}
    assert next(row for row in rows if row["latent"] == 3)["meta"] == 3  # its own rows: each codes itself first


def test_a_circle_of_weekdays(run: Callable[..., Result]) -> None:
    rows = json.loads(run("latents cycle sae --json").stdout)
    assert {row["seen"] for row in rows} >= {"stream"}
    assert [row["space"] for row in rows][:2] == ["all", "1-2"]
    assert "weekdays" in run("latents cycle sae --names days").stderr


def test_a_model_that_cannot_spell_is_said(run: Callable[..., Result]) -> None:
    done = run("latents absorbers sae --set words_per_letter=8 --quiet")
    assert done.exit_code == 2
    assert "words" in done.stderr.strip().splitlines()[-1]
