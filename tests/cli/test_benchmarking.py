"""`monosem benchmark`: what it prints is what the library measures, and it goes on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from monosem.benchmarks import CoreConfig, core
from monosem.dictionaries import load_dictionary
from monosem.models import load_model

LINE = "benchmark sae --tasks core --set core.tokens=1000 --set core.context=32"


def test_benchmark_prints_what_the_library_measures(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    done = run(f"{LINE} --json --out", tmp_path)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["scores"]["sae"]["core"]["rows"]
    sae = load_dictionary(home / "sae")
    expected = core(load_model(sae.model_name), sae, CoreConfig(tokens=1000, context=32), quiet=True).to_dict()["rows"]
    assert found == expected
    again = run(f"{LINE} --out", tmp_path)
    assert "random dictionary" in again.stdout
    assert "report: " in again.stderr
    assert "core: dictionary" not in again.stderr  # nothing was measured again
    assert run(f"{LINE} --quiet --out", tmp_path).stdout.strip() == str(tmp_path / "report.html")


def test_benchmark_says_what_is_wrong(run: Callable[..., Result], tmp_path: Path) -> None:
    for line, words in (
        ("benchmark sae --tasks cor", "did you mean 'core'"),
        ("benchmark sae --set tokens=5", "write TASK.FIELD=VALUE"),
        ("benchmark sae --tasks core --set core.tokens=5", "tokens: Input should be greater than or equal to 1000"),
        ("benchmark nothing", "nothing"),
    ):
        done = run(f"{line} --out", tmp_path / "out")
        assert done.exit_code == 2, line
        assert words in done.stderr.splitlines()[-1]


def test_list_benchmarks(run: Callable[..., Result]) -> None:
    rows = json.loads(run("list benchmarks --json").stdout)
    assert {"core", "sparse_probing"} <= {row["benchmark"] for row in rows}
