"""What all results share: rows by rank, files by their ending, and the settings that made them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from monosem.errors import BadInput, UnknownName
from monosem.results import Result, analysis


@dataclass(frozen=True)
class Marks(Result):
    values: list[float]
    ranked_by = "mark"

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"name": list("abc"), "mark": self.values, "size": [1, 2, 3]})


class Namer:
    name = "tiny"


@analysis
def mark(model: Any, texts: list[str], *, scale: float = 2.0, seed: int = 0) -> Marks:
    return Marks([scale * len(text) for text in texts])


def test_top_and_best_go_by_rank() -> None:
    found = Marks([1.0, 3.0, 2.0])
    assert list(found.top(2)["name"]) == ["b", "c"]
    assert list(found.top(1, by="size")["name"]) == ["c"]
    assert found.best["name"] == "b"
    with pytest.raises(UnknownName, match="did you mean 'mark'"):
        found.top(by="marks")
    with pytest.raises(BadInput, match="n counts rows: a whole number, 1 or more, not 0"):
        found.top(0)


def test_the_config_says_what_made_a_result() -> None:
    found = mark(Namer(), ["x", "yy"], seed=3)
    assert found.config == {
        "analysis": "test_results.mark", "model": "tiny", "texts": ["x", "yy"], "scale": 2.0, "seed": 3,
    }  # fmt: skip
    assert mark(Namer(), ["x"] * 50).config["texts"] == "50 list items"
    assert Marks([1.0, 2.0, 3.0]).config == {}


def test_what_an_analysis_says_of_its_input_stays_in_the_config() -> None:
    @analysis
    def measure(model: Namer, texts: list[str]) -> Marks:
        made = Marks([1.0])
        object.__setattr__(made, "config", {"windows": 3, "texts": "read"})
        return made

    assert measure(Namer(), ["x"]).config == {
        "analysis": "test_results.measure", "model": "tiny", "texts": "read", "windows": 3,
    }  # fmt: skip


def test_saving_goes_by_the_ending(tmp_path: Path) -> None:
    found = Marks([1.0, 3.0, 2.0])
    assert pd.read_csv(found.save(tmp_path / "m.csv")).equals(found.table)
    small = Marks([1.23456789012345e-12, float("nan"), -2.5e-300])
    held = pd.read_json(small.save(tmp_path / "m.json"), precise_float=True)
    assert held["mark"].tolist()[::2] == small.values[::2]
    assert json.loads((tmp_path / "m.json").read_text())[1] == {"name": "b", "mark": None, "size": 2}
    with pytest.raises(BadInput, match="no picture"):
        found.save(tmp_path / "m.html")
    assert not (tmp_path / "m.html").exists()
    with pytest.raises(BadInput, match=r"\.csv"):
        found.save(tmp_path / "m.txt")
