"""A finished report: the table of arms, the verdicts, the figures."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from ..errors import BadFile, check_name
from ..plots import Figure
from ..reading import read_object
from ..results import Result
from . import over_refusal, report, span
from .config import RobustnessConfig


@dataclass(frozen=True)
class Robustness(Result):
    """`results` is what `results.json` holds, `folder` is where the report is; `table` has a row an arm."""

    ranked_by: ClassVar[str | None] = "success"

    results: dict[str, Any] = field(repr=False)
    settings: RobustnessConfig
    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", {"analysis": "robustness.assess", **self.results["config"]})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Robustness":
        """A report that was finished before. Raises `BadFile` when the folder holds none."""
        path = Path(folder) / "results.json"
        results = read_object(path)
        if not isinstance(config := results.get("config"), dict) or not isinstance(results.get("parts"), dict):
            raise BadFile(f"{path} is damaged or no robustness report's; run the report again")
        return cls(results, RobustnessConfig.parse(config), Path(folder))

    @property
    def table(self) -> pd.DataFrame:
        """Columns: model ("model", "control", "defence", ...), attack, control ("" of the attack itself), strength, n;
        the behaviour's rate `shown` and the attack's `success` with their intervals; KL of the first token and a token;
        perplexity of the model's own answers, of the fixed text, and of the responses."""
        return report.arms_table(self.results)

    @property
    def verdicts(self) -> pd.DataFrame:
        """One row an attack, at the strength that the budget allows: rates, p against no attack and controls, words."""
        return pd.DataFrame(report.verdicts_of(self.results))

    @property
    def over_refusal(self) -> pd.DataFrame:
        """One row a model and attack, where the behaviour is a refusal: the share of the safe prompts that are declined
        wholly ("refusal"), in part ("partial") and not at all ("answer"), or get nothing ("empty"), with intervals."""
        return over_refusal.degrees_table(self.results)

    @property
    def layers(self) -> pd.DataFrame:
        """One row a model and layer: what is left where the direction, or a random one of its length (`control`), is
        taken away at this layer alone, by ablation ("one_layer") or subtraction, with KL a token."""
        return span.layers_table(self.results)

    @property
    def findings(self) -> list[str]:
        """The verdicts, one line each."""
        return report.findings(self.results)

    @property
    def html(self) -> Path:
        return self.folder / "report.html"

    @property
    def figures(self) -> dict[str, Figure]:
        return report.figures_of(self.results)

    def plot(self, name: str = "success") -> Figure:
        """One figure of the report. Raises `UnknownName` for another name; `figures` has all."""
        figures = self.figures
        check_name("figure", name, figures)
        return figures[name]

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """As any result; a path without an ending is a folder, which gets the whole report once more."""
        if Path(path).suffix:
            return super().save(path, **plot)
        report.write(self.results, Path(path))
        return Path(path)
