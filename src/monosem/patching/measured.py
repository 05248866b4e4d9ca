"""What an experiment found: a number for every variant, pair and metric, with scores, errors, a table and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput, check_name, require
from ..plots import BLUE, Figure, lines, style
from ..results import Result, largest
from ..statistics import standard_error
from .moments import Moments
from .scoring import normalised

# what tells variants apart: name -> an entry for each variant; arrays, so that there may be a hundred thousand
Columns = Mapping[str, Sequence[Any] | Tensor | np.ndarray]
SHOWN_BARS = 30


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured(Result):
    """The numbers of an experiment.

    Attributes:
        numbers: metric -> its value in every patched run, `variants pairs` (float64); or only the `Moments` over
            pairs, where there are too many to keep.
        clean, corrupted: metric -> its value in the unpatched runs, `pairs`.
        direction: "denoising": clean values written into the corrupted run; "noising": the other way round.
        columns: what tells the variants apart; the first columns of the table.
        method: how the values came about. model: the model's name. corruption: what the other side was.
        config: as in every `Result`; here `method` is what computed, which may not be what was asked for.
    """

    numbers: Mapping[str, Float[Tensor, "variants pairs"] | Moments]
    clean: Mapping[str, Float[Tensor, "pairs"]]
    corrupted: Mapping[str, Float[Tensor, "pairs"]]
    direction: str
    columns: Columns = field(default_factory=dict)
    method: str = ""
    model: str = ""
    corruption: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, measured: "Measured", **more: Any) -> Self:
        """A kind of result that says more about the same numbers; `more`: its own fields, or others for these."""
        return cls(**{one.name: getattr(measured, one.name) for one in fields(Measured)} | more)

    def __len__(self) -> int:
        first = next(iter(self.numbers.values()))
        return len(first.mean if isinstance(first, Moments) else first)

    def __repr__(self) -> str:
        pairs = len(next(iter(self.clean.values())))
        what = f"{len(self)} variants over {', '.join(self.columns)}, {pairs} pairs, {', '.join(self.numbers)}"
        return f"{type(self).__name__}({self.direction} in {self.model or 'a model'}: {what})"

    @property
    def metrics(self) -> list[str]:
        return list(self.numbers)

    @property
    def base(self) -> Mapping[str, Float[Tensor, "pairs"]]:
        """The run that was patched: corrupted when denoising, clean when noising."""
        return self.corrupted if self.direction == "denoising" else self.clean

    def gap(self, metric: str | None = None) -> Float[Tensor, "pairs"]:
        """Clean minus corrupted, of every pair."""
        name = self.metric_of(metric)
        return self.clean[name] - self.corrupted[name]

    def take(self, which: Sequence[int] | Tensor) -> Self:
        """Some of the variants."""
        index = torch.as_tensor(which, dtype=torch.long)
        numbers = {
            name: held.take(index) if isinstance(held, Moments) else held[index] for name, held in self.numbers.items()
        }
        return replace(self, numbers=numbers, columns=columns_at(self.columns, index))

    # ------------------------------------------------------------------ numbers
    @property
    def values(self) -> dict[str, Float[Tensor, "variants pairs"]]:
        """Metric -> its value in every patched run.

        Raises:
            BadInput: only means and spreads over pairs were kept.
        """
        kept = {name: held for name, held in self.numbers.items() if not isinstance(held, Moments)}
        if len(kept) < len(self.numbers):
            raise BadInput("only means and spreads over pairs were kept: use mean(), effect(), or run with keep=True")
        return kept

    def mean(self, metric: str | None = None) -> Float[Tensor, "variants"]:
        """Mean over the pairs."""
        held = self.numbers[self.metric_of(metric)]
        return held.mean if isinstance(held, Moments) else held.mean(1)

    def value_se(self, metric: str | None = None) -> Float[Tensor, "variants"]:
        """Standard error of the mean over pairs; NaN for a single pair."""
        return self._standard_error(metric)

    def effects(self, metric: str | None = None) -> Float[Tensor, "variants pairs"]:
        """Patched minus unpatched run, of every pair, in the metric's own unit; errors as `values`."""
        name = self.metric_of(metric)
        return self.values[name] - self.base[name]

    def effect(self, metric: str | None = None) -> Float[Tensor, "variants"]:
        """Mean effect over the pairs."""
        name = self.metric_of(metric)
        held = self.numbers[name]
        return held.mean - self.base[name].mean() if isinstance(held, Moments) else self.effects(name).mean(1)

    def effect_se(self, metric: str | None = None) -> Float[Tensor, "variants"]:
        """Standard error of the mean effect: what the pairs differ in without a patch is not in it."""
        return self._standard_error(metric, **{"corrupted" if self.direction == "denoising" else "clean": 1.0})

    def scores(self, metric: str | None = None) -> Float[Tensor, "variants"]:
        """(patched - corrupted) / (clean - corrupted) of means over pairs: 0 as corrupted, 1 as clean."""
        name = self.metric_of(metric)
        return normalised(self.mean(name), self.clean[name].mean(), self.corrupted[name].mean())

    def score_se(self, metric: str | None = None) -> Float[Tensor, "variants"]:
        """Standard error of `scores`, a ratio of two means over the same pairs (linearised: delta method)."""
        scores = self.scores(metric)
        return self._standard_error(metric, scores, 1 - scores) / self.gap(metric).mean().abs()

    def _standard_error(self, metric: str | None, clean: Any = 0.0, corrupted: Any = 0.0) -> Float[Tensor, "variants"]:
        """Standard error of the mean of value - clean · (clean run) - corrupted · (corrupted run)."""
        name = self.metric_of(metric)
        held = self.numbers[name]
        if isinstance(held, Moments):
            return held.standard_error(clean, corrupted)
        weights = [torch.as_tensor(weight, dtype=held.dtype).reshape(-1, 1) for weight in (clean, corrupted)]
        return standard_error(held - weights[0] * self.clean[name] - weights[1] * self.corrupted[name])

    # ------------------------------------------------------------------ tables
    def rows(self, metric: str | None = None) -> pd.DataFrame:
        """A row a variant: its columns, then value, effect and score by one metric, each with its standard error."""
        name = self.metric_of(metric)
        frame = pd.DataFrame(columns_at(self.columns))
        columns: dict[str, Any] = {
            "metric": name, "value": self.mean(name), "value_se": self.value_se(name), "effect": self.effect(name),
            "effect_se": self.effect_se(name), "score": self.scores(name), "score_se": self.score_se(name),
        }  # fmt: skip
        return frame.assign(**{key: one.numpy() if isinstance(one, Tensor) else one for key, one in columns.items()})

    @property
    def table(self) -> pd.DataFrame:
        """`rows` of every metric, one below the other."""
        return pd.concat([self.rows(name) for name in self.metrics], ignore_index=True)

    def top(self, n: int = 10, by: str | None = None, *, metric: str | None = None) -> pd.DataFrame:
        """The n rows with the largest numbers, either way; by default the variants that move the metric furthest.

        Args:
            by: "effect" (default), "score", "value", or another column of numbers. metric: default: the first one.

        Raises:
            BadInput: n below 1. UnknownName: no such column or metric.
        """
        return largest(self.rows(metric), by or "effect", n, either_way=True)

    def furthest(self, metric: str | None = None) -> int:
        """The number of the variant with the largest mean effect, either way."""
        return int(self.effect(metric).abs().nan_to_num(-1).argmax())

    def grid_over(
        self, axes: Sequence[str], numbers: Float[Tensor, "variants"] | None = None
    ) -> tuple[Tensor, list[list[Any]]]:
        """One number a variant (default: the scores) as a dense tensor over columns, and the entries along each."""
        return dense(columns_at(self.columns), axes, self.scores() if numbers is None else numbers)

    # ------------------------------------------------------------------ pictures and files
    def plot(self, metric: str | None = None) -> Figure:
        """The scores along the one column, if it holds numbers; else bars of the largest effects. Both with errors."""
        name = self.metric_of(metric)
        rows = self.rows(name)
        columns = list(self.columns)
        if len(columns) == 1 and pd.api.types.is_numeric_dtype(rows[columns[0]]):
            kind, unit = shown_in(rows)
            curves = {name: (rows[kind], rows[f"{kind}_se"])}
            title = f"{self.direction}, {name}"
            return lines(curves, rows[columns[0]].tolist(), x_title=columns[0], y_title=unit, title=title)
        if len(rows) > SHOWN_BARS:
            rows = self.top(SHOWN_BARS, metric=name)
        go = require("plotly.graph_objects", "plots")
        labels = rows[columns].astype(str).agg(" · ".join, axis=1)
        bars = {"array": rows.effect_se.fillna(0.0).tolist()}
        figure = go.Figure(go.Bar(x=labels.tolist(), y=rows.effect.tolist(), error_y=bars, marker={"color": BLUE}))
        return style(figure, "", f"Δ {name}", f"{self.direction}, {name}")

    def metric_of(self, name: str | None) -> str:
        """The metric of that name, or the first one. Raises `UnknownName` where there is no such metric."""
        chosen = name or self.metrics[0]
        check_name("metric", chosen, self.numbers)
        return chosen


def shown_in(rows: pd.DataFrame) -> tuple[str, str]:
    """The column that a picture of one metric shows, and its unit: the score, or the effect where there is no score."""
    return ("score", "score") if rows["score"].notna().any() else ("effect", f"Δ {rows['metric'].iloc[0]}")


def columns_at(columns: Columns, which: Tensor | None = None) -> dict[str, Any]:
    """The entries of some variants (None: of all), as pandas takes them."""
    taken: dict[str, Any] = {}
    for name, column in columns.items():
        entries = column.numpy() if isinstance(column, Tensor) else column
        if which is not None:
            entries = (
                entries[which.numpy()] if isinstance(entries, np.ndarray) else [entries[i] for i in which.tolist()]
            )
        taken[name] = entries
    return taken


def dense(
    columns: Columns, axes: Sequence[str], numbers: Float[Tensor, "variants"]
) -> tuple[Float[Tensor, "..."], list[list[Any]]]:
    """One number a variant as a tensor over columns, and the entries along each. NaN: there is no such variant."""
    held = [columns[axis] for axis in axes]
    codes, ticks = zip(
        *(pd.factorize(c if isinstance(c, np.ndarray) else pd.Series(c), use_na_sentinel=False) for c in held)
    )
    grid = torch.full([len(axis) for axis in ticks], torch.nan, dtype=torch.float64)
    grid[tuple(torch.from_numpy(code) for code in codes)] = numbers.double()
    return grid, [axis.tolist() for axis in ticks]
