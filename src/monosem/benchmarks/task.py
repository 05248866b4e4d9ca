"""What a benchmark is: a config, a function of a model and a dictionary, and scores with intervals and baselines.

A task is a row of `BENCHMARKS`. Its function measures the dictionary and its two baselines (`baselines.py`) alike and
returns `Scores`; the report shows every task with the same table and the same picture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import pandas as pd
from pydantic import Field

from .. import plots
from ..errors import BadFile, BadInput, require
from ..jobs.config import JobConfig, Seed
from ..results import Result
from ..statistics import PERCENTILES, Interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ..dictionaries import Dictionary
    from ..models import Model

DICTIONARY, RANDOM, RAW = "dictionary", "random dictionary", "raw dimensions"
WITHOUT = "no latents"  # of a transcoder: what its output is without them
ALL = "all"  # the data set that stands for the mean over all
COLORS = [color for color in plots.LINES if color != plots.GREY]  # of dictionaries; grey is the baselines'
SYMBOLS = ("circle", "square", "diamond", "cross", "star")  # of dictionaries, when the colours start again
BARS = "#a5adb8"  # of intervals on bars: seen on each of them, on a light page and on a dark one
DASHES = ("solid", "dash", "dot")  # of arms
COLUMNS = ("arm", "data", "measure", "n", "value", "low", "high")


class TaskConfig(JobConfig):
    """Settings of a task; `TaskConfig.parse` reads plain values."""

    job: ClassVar[str] = "benchmark"

    seed: Seed = Field(0, description="of everything random")
    batch_size: int = Field(32, ge=1, description="prompts a forward pass; decides no number beyond rounding")


class Score(NamedTuple):
    """One number of one arm.

    arm: whose (`DICTIONARY`, `RANDOM`, `RAW`, `WITHOUT`). data: the data set, or `ALL`. measure: what was measured.
    n: how many latents it used, or None.
    """

    arm: str
    data: str
    measure: str
    n: int | None
    interval: Interval

    def row(self) -> tuple[Any, ...]:
        return (*self[:4], *self.interval)


@dataclass(frozen=True)
class Scores(Result):
    """What a task says of a dictionary and of its baselines.

    `table` has a row a number: arm, data (a data set, or "all" for the mean over them), measure, n (latents used; NaN
    where that says nothing), value, low, high (95 %; `config["interval"]` says how). `headline` has the task's main
    number of each arm.

    Attributes:
        task: the row of `BENCHMARKS`. measure: of the headline. n: of the headline, or None.
        notes: what limits these numbers, as sentences.
    """

    task: str
    measure: str
    n: int | None
    rows: pd.DataFrame = field(repr=False)
    notes: Sequence[str] = ()
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        task: str,
        scores: Sequence[Score],
        measure: str,
        n: int | None = None,
        *,
        notes: Sequence[str] = (),
        **config: Any,
    ) -> "Scores":
        """Of single scores; `config`: what else belongs to the settings."""
        rows = pd.DataFrame([score.row() for score in scores], columns=list(COLUMNS))
        return cls(task, measure, n, rows.astype({"n": float}), notes, config)

    @property
    def table(self) -> pd.DataFrame:
        return self.rows

    @property
    def headline(self) -> dict[str, Interval]:
        """arm -> the task's main number over all data."""
        rows = self._of(self.measure)
        rows = rows[rows["n"].isna() if self.n is None else rows["n"] == self.n]
        numbers = rows[["value", "low", "high"]].to_numpy(float)
        return {str(arm): Interval(*map(float, three)) for arm, three in zip(rows["arm"], numbers)}

    def plot(self) -> "Figure":
        """The main number by how many latents it uses, or as bars where that says nothing; with its intervals."""
        return compared({"": self})

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` takes, NaN as None."""
        plain = self.rows.astype(object).where(self.rows.notna(), None)
        kept = {"task": self.task, "measure": self.measure, "n": self.n, "notes": list(self.notes)}
        return kept | {"rows": plain.to_dict("records"), "config": dict(self.config)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Scores":
        """What `to_dict` gave. Raises `BadFile` for something else."""
        try:
            rows = pd.DataFrame(values["rows"], columns=list(COLUMNS))
            numbers = dict.fromkeys(("n", "value", "low", "high"), float)
            return cls(**{**values, "rows": rows.astype(numbers)})
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile(f"not the scores of a benchmark: {error}") from error

    def _of(self, measure: str) -> pd.DataFrame:
        return self.rows[(self.rows["measure"] == measure) & (self.rows["data"] == ALL)]


def arms_of(tasks: Mapping[str, Scores]) -> list[str]:
    """The arms that have a main number, in the order of the first dictionary that has them."""
    return list(dict.fromkeys(arm for scores in tasks.values() for arm in scores.headline))


def compared(tasks: Mapping[str, Scores]) -> "Figure":
    """The main number of one task for one or several dictionaries (name -> scores).

    Where it depends on how many latents are used, lines: of one dictionary, a colour an arm; of several, a colour a
    dictionary and a dash an arm. Else groups of bars, a colour an arm.
    """
    go = require("plotly.graph_objects", "plots")
    first, figure = next(iter(tasks.values())), go.Figure()
    arms = arms_of(tasks)
    several = len(tasks) > 1
    for number, (called, scores) in enumerate(tasks.items()):
        for arm, rows in scores._of(first.measure).groupby("arm", sort=False):
            place = arms.index(str(arm))
            error: dict[str, Any] = {
                "array": rows["high"] - rows["value"],
                "arrayminus": rows["value"] - rows["low"],
                "thickness": 1,
            }
            look: dict[str, Any] = {"error_y": error, "y": rows["value"], "legendgroup": arm, "name": str(arm)}
            color = plots.LINES[place % len(plots.LINES)]
            if first.n is None:
                error["color"] = BARS
                bar = {"x": [called], "marker": {"color": color}, "offsetgroup": arm, "showlegend": number == 0}
                figure.add_bar(**look, **bar)
                continue
            if several:
                color, symbol = look_of(number)
                look |= {"legendgroup": called, "marker": {"symbol": symbol, "size": 6 if symbol == SYMBOLS[0] else 8}}
                look |= {"name": called if arm == DICTIONARY else f"{arm} ({called})", "showlegend": arm == DICTIONARY}
                if arm != DICTIONARY:  # many lines: these stay behind
                    look |= {"opacity": 0.35, "error_y": None}
            line = {"color": color, "width": 2, "dash": _dash(place)}
            figure.add_scatter(**look, x=[f"{n:.0f}" for n in rows["n"]], mode="lines+markers", line=line)
    if several and first.n is not None:  # what dashes mean, once
        for place, arm in enumerate(arms[1:], start=1):
            line = {"color": plots.GREY, "width": 2, "dash": _dash(place)}
            figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=arm)
    figure.update_xaxes(type="category")
    height = 336 + 24 * (1 if first.n is None else len(tasks))  # the legend has a row a dictionary
    return plots.style(figure, "" if first.n is None else "latents used", first.measure, height=height)


def look_of(number: int) -> tuple[str, str]:
    """The colour and the symbol of a dictionary in a figure, by its number among them."""
    return COLORS[number % len(COLORS)], SYMBOLS[number // len(COLORS) % len(SYMBOLS)]


def _dash(place: int) -> str:
    return DASHES[min(place, len(DASHES) - 1)]


class Run(Protocol):
    """`run(model, dictionary, config, quiet=...)`; the config is of the task's own class, None for its defaults."""

    def __call__(
        self, model: "Model", dictionary: "Dictionary", config: Any = None, *, quiet: bool = False
    ) -> Scores: ...


class RunEach(Protocol):
    """The same for several dictionaries at once (name -> dictionary), which share passes of the model."""

    def __call__(
        self, model: "Model", dictionaries: "Mapping[str, Dictionary]", config: Any = None, *, quiet: bool = False
    ) -> dict[str, Scores]: ...


class Check(Protocol):
    """Raises `BadInput` where a task is not defined for a dictionary with these settings, without a pass."""

    def __call__(self, dictionary: "Dictionary", config: Any) -> None: ...


def check_one_site(dictionary: "Dictionary", what: str) -> None:
    """Raises `BadInput` for a transcoder."""
    if dictionary.transcoder:
        raise BadInput(f"{what} needs a dictionary that reads and writes at one site, not a transcoder")


@dataclass(frozen=True)
class Task:
    """A row of `BENCHMARKS`.

    title: of its section in a report. meaning: what its main number says, in a sentence or two, and which way is good.
    config: the class of its settings. run: the function. minutes: of processor time for the shipped dictionary with the
        default settings, measured on one thread. check: refuses dictionaries that it is not defined for. each: the
        function for several dictionaries of one site, where they share passes. beside: other measures over all data
        that a report shows like the main one -> their words.
    """

    title: str
    meaning: str
    config: type[TaskConfig]
    run: Run
    minutes: float
    check: Check = lambda dictionary, config: None
    each: RunEach | None = None
    beside: Mapping[str, str] = field(default_factory=dict)


def mean_interval(values: Sequence[float], drawn: Sequence[np.ndarray]) -> Interval:
    """The mean over data sets, with the 95 % interval of the means of their bootstrap draws (`draws` numbers each)."""
    low, high = np.nanquantile(np.mean(np.stack(drawn), axis=0), PERCENTILES)
    return Interval(float(np.mean(values)), float(low), float(high))


def resampled(
    statistic: Callable[[np.ndarray], float], rows: int, *, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """A statistic of `rows` rows drawn again with replacement, `draws` times; it is given the rows' indices."""
    return np.array([statistic(rng.integers(0, rows, rows)) for _ in range(draws)])
