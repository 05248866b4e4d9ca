"""`monosem components` as a user drives it, against the library's own results."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from monosem import components
from monosem.cli import app
from monosem.models import load_model
from tiny import tiny_hf, tiny_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("components") / "tiny"
    tiny_hf("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def monosem(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["components", *map(str, arguments)])


def test_heads_are_scored_and_sorted(tiny: Path, tmp_path: Path) -> None:
    model = load_model(tiny, quiet=True)
    want = components.head_scores(model, n=6, rows=2, seed=3)
    line = ["heads", tiny, "--n", 6, "--rows", 2, "--seed", 3]
    rows = json.loads(monosem(*line, "--json").stdout)
    assert [row["induction"] for row in rows] == pytest.approx(want.table.induction.to_list(), abs=1e-6)
    done = monosem(*line, "--score", "previous", "--top", 1, "--out", tmp_path / "heads.html")
    assert want.top(1, by="previous")["head"][0] in done.stdout
    assert (tmp_path / "heads.html").stat().st_size > 100_000


def test_a_logit_is_taken_apart(tiny: Path, tmp_path: Path) -> None:
    model = load_model(tiny, quiet=True)
    for by in ("layer", "head"):
        want = components.direct_attribution(model, ["the cat sat"], " dog", " cat", by=by)  # type: ignore[arg-type]
        line = ["direct", tiny, "the cat sat", "--token", " dog", "--wrong", " cat", "--by", by]
        rows = json.loads(monosem(*line, "--json", "--out", tmp_path / "parts.csv").stdout)
        assert [row["contribution"] for row in rows] == pytest.approx(want.table.contribution.to_list(), abs=1e-5)
        assert len(pd.read_csv(tmp_path / "parts.csv")) == len(rows)
        assert want.top(1)["part"][0] in monosem(*line, "--top", 1).stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["heads", "--score", "inductive"], "did you mean 'induction'"),
        (["heads", "--n", 500], "n must be from 2"),
        (["direct", "the cat", "--token", " xylophone"], "one is needed"),
        (["direct", "the cat"], "--token"),
        (["direct", "the cat", "--token", " dog", "--by", "word"], "'layer', 'head' or 'neuron'"),
        (["head"], "did you mean 'heads'"),
    ],
)
def test_what_the_user_can_fix_is_one_line(tiny: Path, line: list[object], message: str) -> None:
    done = monosem(line[0], tiny, *line[1:], "-q")
    assert (done.exit_code, message in done.stderr) == (2, True), done.output
    assert len(done.stderr.strip().splitlines()) == 1
