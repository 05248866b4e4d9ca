"""How far scores can be trusted here: several methods beside the exact scores of sampled edges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput, Mismatch, require
from ..models import Model
from ..patching.scoring import METRICS, MetricLike
from ..plots import FAINT, LINES, Figure, style
from ..results import Result, analysis
from ..statistics import pearson, spearman
from .exact import exact
from .graph import EVERYWHERE, Graph
from .scores import EdgeScores
from .selection import order


class Check(Result):
    """Some things measured exactly, and what each method says of them.

    A subclass gives `truth` and `given` (method -> values), `drawn` (which were drawn at random, not for their size),
    `rows` (a row a thing, with the column "exact"), what its `things` are called, the column of their `label`, and `of`
    what and whom the numbers are.
    """

    things: ClassVar[str]
    label: ClassVar[str]
    truth: Any
    given: Any
    drawn: Any
    of: Any

    ranked_by = "exact"
    either_way = True

    def rows(self) -> pd.DataFrame:
        """A row a thing, with the column "exact"."""
        raise NotImplementedError

    def __repr__(self) -> str:
        said = "; ".join(
            f"{row.method}: Pearson {row.pearson:.3f}, Spearman {row.spearman:.3f}"
            for row in self.summary[self.summary[self.things] == "all"].itertuples()
        )
        return f"{type(self).__name__}({len(self.truth)} {self.things} against exact scores; {said})"

    @property
    def table(self) -> pd.DataFrame:
        """A row a thing: exact score, and each method's."""
        frame = self.rows()
        for name, values in self.given.items():
            frame[name] = values.tolist()
        return frame.assign(drawn=self.drawn.tolist())

    @property
    def summary(self) -> pd.DataFrame:
        """A row a method and kind of thing ("all", "largest", "drawn"): correlations, slope, share of equal signs."""
        rows, truth = [], self.truth
        kinds = {"all": torch.ones_like(self.drawn), "largest": ~self.drawn, "drawn": self.drawn}
        for name, values in self.given.items():
            for kind, which in kinds.items():
                x, y = truth[which], values[which]
                if len(x) > 1:
                    signs = float((x.sign() == y.sign()).double().mean())
                    slope = float((x @ y) / (x @ x)) if bool(x.any()) else float("nan")
                    row = {"method": name, self.things: kind, "n": len(x), "slope": slope, "same_sign": signs}
                    rows.append(row | {"pearson": pearson(x, y), "spearman": spearman(x, y)})
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Each method's score against the exact one, a point a thing, with the diagonal."""
        go = require("plotly.graph_objects", "plots")
        table = self.table
        ends = [float(table["exact"].min()), float(table["exact"].max())]
        figure = go.Figure()
        figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": FAINT}, name="equal", hoverinfo="skip")
        for name, colour in zip(self.given, LINES * len(self.given)):
            figure.add_scatter(
                x=table["exact"].tolist(), y=table[name].tolist(), text=table[self.label].tolist(), mode="markers",
                name=name, marker={"color": colour, "size": 6},
                hovertemplate="%{text}<br>exact %{x:.4f}, here %{y:.4f}",
            )  # fmt: skip
        return style(figure, "exact Δ", "score", f"{len(table)} {self.things}: {self.of}")


@dataclass(frozen=True, eq=False, repr=False)
class EdgeCheck(Check):
    """Sampled edges: exact scores, and what each method says.

    Attributes:
        exact: of the sampled edges; NaN elsewhere. estimates: method -> scores of the whole graph.
        index: flat indices of the sampled edges. drawn: which of them were drawn at random, not for their size.
    """

    exact: EdgeScores
    estimates: Mapping[str, EdgeScores] = field(repr=False)
    index: Int[Tensor, "edges"] = field(repr=False)
    drawn: Tensor = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    things, label = "edges", "edge"

    @property
    def truth(self) -> Tensor:
        return self.exact.values.flatten()[self.index]

    @property
    def given(self) -> dict[str, Tensor]:
        return {name: scores.values.flatten()[self.index] for name, scores in self.estimates.items()}

    @property
    def of(self) -> str:
        return f"{self.exact.metric}, {self.exact.model}"

    def rows(self) -> pd.DataFrame:
        return self.exact.rows_of(self.index).rename(columns={"score": "exact"})


@analysis
def compare_scores(
    model: Model,
    pairs: TokenPairs,
    scores: EdgeScores | Sequence[EdgeScores],
    *,
    n: int = 200,
    metric: MetricLike | None = None,
    memory: str | int = "1GB",
    seed: int = 0,
    quiet: bool = False,
) -> EdgeCheck:
    """Measure n edges exactly and set methods beside that: half are the edges that a method ranks highest, the others
    are drawn from the rest.

        ms.circuits.compare_scores(model, pairs, [eap, eap_ig]).summary

    Args:
        scores: of the same graph, metric and pairs, each by another method.

    Raises:
        Mismatch: scores of different graphs. BadInput: fewer than 2 edges; scores by position.
    """
    given = [scores] if isinstance(scores, EdgeScores) else list(scores)
    if not given or n < 2:
        raise BadInput("compare_scores needs scores of one method at least, and n of 2 edges or more")
    named = {f"{one.method}" if _single(one, given) else f"{one.method} {i}": one for i, one in enumerate(given)}
    graph = given[0].graph
    if any(one.graph != graph for one in given) or graph != Graph.of(model, graph.places, units=graph.units):
        raise Mismatch(f"the scores are of different graphs, or of another model than {model.name}")
    if graph.places != EVERYWHERE:
        raise BadInput("edges told apart by position are not patched one by one; give scores without places")
    index, drawn = _sampled(graph, given, min(n, graph.n_edges), seed)
    metric = given[0].metric if metric is None and given[0].metric in METRICS else metric
    return EdgeCheck(
        exact(model, pairs, index, metric=metric, units=graph.units, memory=memory, quiet=quiet), named, index, drawn
    )


def _single(one: EdgeScores, given: Sequence[EdgeScores]) -> bool:
    return [other.method for other in given].count(one.method) == 1


def _sampled(graph: Graph, given: Sequence[EdgeScores], n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Edges taken in turn from the top of each method's ranking, then others at random."""
    rankings = torch.stack([order(graph, one.values, absolute=True) for one in given], 1).flatten()
    top = list(dict.fromkeys(rankings[: 4 * n * len(given)].tolist()))[: n // 2]
    rest = torch.tensor(sorted({*order(graph, given[0].values, absolute=True).tolist()} - {*top}), dtype=torch.long)
    draw = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[: n - len(top)]
    index = torch.cat([torch.tensor(top, dtype=torch.long), rest[draw]])
    return index, torch.arange(len(index)) >= len(top)
