"""`monosem direction` as a user drives it, against the library's own results."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from monosem.cli import app
from monosem.data import PromptPairs
from monosem.directions import Direction, Directions
from monosem.models import Site, load_model
from tiny import tiny_hf, tiny_tokenizer
from tiny_latents import NEGATIVE, POSITIVE


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("direction")
    tiny_hf("llama").save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    (folder / "up.txt").write_text("\n".join(POSITIVE))
    (folder / "down.txt").write_text("\n".join(NEGATIVE))
    return folder


def monosem(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["direction", *map(str, arguments)])


def sides(place: Path) -> list[object]:
    return ["--positive", place / "up.txt", "--negative", place / "down.txt", "--paired"]


def test_fit_show_compare_convert_and_read(place: Path) -> None:
    model = load_model(place / "tiny", quiet=True)
    want = Directions.fit(model, PromptPairs(POSITIVE, NEGATIVE), at=["mean"])
    kept = place / "found.safetensors"
    done = monosem("fit", place / "tiny", *sides(place), "--at", "mean", "--save", kept, "--json", "-q")
    given = json.loads(done.stdout)
    assert [row["stability"] for row in given["directions"]] == pytest.approx(
        want.table["stability"].to_list(), abs=1e-5
    )
    assert given["doubts"] == want.doubts
    shown = monosem(
        "fit", place / "tiny", *sides(place), "--at", "mean", "--layers", "1,2", "--out", place / "t.csv", "-q"
    )
    assert want.doubts[0][:30] in shown.stdout
    assert pd.read_csv(place / "t.csv")["site"].tolist() == ["resid_post.1", "resid_post.2"]
    for one, other in zip(Directions.load(kept), want, strict=True):
        torch.testing.assert_close(one.vector, other.vector)

    assert "method: dim" in monosem("show", kept).stdout
    assert json.loads(monosem("show", kept, "--json").stdout)[1]["site"] == "resid_post.1"

    Directions(list(want)[1:]).save(place / "some.safetensors")
    assert monosem("convert", place / "some.safetensors", place / "some.gguf").exit_code == 0
    rows = json.loads(monosem("compare", kept, place / "some.gguf", "--json").stdout)
    assert [(row["site"], round(row["cosine"], 5)) for row in rows] == [("resid_post.1", 1.0), ("resid_post.2", 1.0)]

    line = ["read", place / "tiny", "the cat sat", "--directions", kept, "--out", place / "scores.html"]
    rows = json.loads(monosem(*line, "--json").stdout)
    assert {row["token"] for row in rows} == {" the", " cat", " sat"}
    assert (place / "scores.html").stat().st_size > 100_000
    assert "positive ones" in monosem(*line).stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["fit", "TINY"], "give --concept NAME"),
        (["fit", "TINY", "--positive", "UP"], "--negative FILE"),
        (["fit", "TINY", "SIDES", "--method", "pca_diff"], "use 'pca_pairs'"),
        (["fit", "TINY", "SIDES", "--method", "dimm"], "did you mean 'dim'"),
        (["fit", "TINY", "SIDES", "--at", "template"], "no chat template"),
        (["fit", "TINY", "SIDES", "--k", "3"], "k=3"),
        (["show", "NONE"], "no direction file"),
        (["compare", "FIRST"], "two files"),
        (["convert", "FIRST", "x.gguf"], "block 0 has none"),
        (["convert", "FIRST", "x.onnx"], "cannot tell"),
    ],
)
def test_what_the_user_can_fix_is_one_line(place: Path, line: list[str], message: str) -> None:
    Direction(torch.ones(32), Site("resid_post", 0)).save(place / "first.safetensors")
    words = {
        "TINY": [place / "tiny", "-q"],
        "SIDES": sides(place),
        "UP": [place / "up.txt"],
        "NONE": [place / "none.gguf"],
        "FIRST": [place / "first.safetensors"],
    }
    done = monosem(*(one for word in line for one in words.get(word, [word])))
    assert (done.exit_code, message in done.stderr) == (2, True), done.output
    assert len(done.stderr.strip().splitlines()) == 1
