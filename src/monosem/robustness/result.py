"""A finished report: the table of arms, the verdicts, the figures."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import pandas as pd

from ..errors import BadFile, cause, check_name
from ..files import writable_folder
from ..plots import Figure
from ..reading import read_object
from ..results import Result
from . import over_refusal, report, span
from .config import MODEL, RobustnessConfig

# what a file that was changed was seen to bring about; `BadInput` and `UnknownName` are among them
_DAMAGE = (ValueError, TypeError, AttributeError, ArithmeticError, LookupError, StopIteration, jinja2.TemplateError)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a damaged file brings about is one error, which names the file."""
    try:
        yield
    except _DAMAGE as error:
        raise BadFile(f"{path} is damaged or no robustness report's ({cause(error)}); run the report again") from error


@dataclass(frozen=True)
class Robustness(Result):
    """`results` is what `results.json` holds, `folder` is where the report is; `table` has a row an arm.

    All that is computed raises `BadFile` where `results.json` is damaged.
    """

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
        with reading(path):
            for where in [MODEL, *results["parts"]]:
                results["parts"][where]["none"]["arms"][0]
            return cls(results, RobustnessConfig.parse(results["config"]), Path(folder))

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return reading(self.folder / "results.json")

    @property
    def table(self) -> pd.DataFrame:
        """Columns: model ("model", "control", "defence", ...), attack, control ("" of the attack itself), strength, n;
        the behaviour's rate `shown` and the attack's `success` with their intervals; KL of the first token and a token;
        perplexity of the model's own answers, of the fixed text, and of the responses, of controls as of attacks; how
        many responses are loops, or cut off."""
        with self._reading():
            return report.arms_table(self.results)

    @property
    def verdicts(self) -> pd.DataFrame:
        """One row an attack, at the strength that the budget allows: rates, p against no attack and controls, words."""
        with self._reading():
            return pd.DataFrame(report.verdicts_of(self.results))

    @property
    def over_refusal(self) -> pd.DataFrame:
        """One row a model and attack, where the behaviour is a refusal: the share of the safe prompts that are declined
        wholly ("refusal"), in part ("partial") and not at all ("answer"), or get nothing ("empty"), with intervals."""
        with self._reading():
            return over_refusal.degrees_table(self.results)

    @property
    def layers(self) -> pd.DataFrame:
        """One row a model and layer: what is left where the direction, or a random one of its length (`control`), is
        taken away at this layer alone, by ablation ("one_layer") or subtraction, with KL a token. `gaps`: the length
        that is subtracted, which is the same share of the stream's usual norm at every layer."""
        with self._reading():
            return span.layers_table(self.results)

    @property
    def findings(self) -> list[str]:
        """The verdicts, one line each."""
        with self._reading():
            return report.findings(self.results)

    @property
    def html(self) -> Path:
        return self.folder / "report.html"

    @property
    def figures(self) -> dict[str, Figure]:
        with self._reading():
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
        writable_folder(Path(path))
        with self._reading():
            report.write(self.results, Path(path))
        return Path(path)
