"""Faithfulness against size, and the two numbers that MIB makes of it.

MIB (Mueller et al. 2025, arXiv:2504.13151) takes circuits of ten sizes and integrates over the share of edges by
trapezoids, on a linear axis and without a point at 0:

- CPR, the integral of f: how early a circuit does what the model does. Circuits are chosen by signed score, and f may
  be above 1. Of the whole, the last trapezoid alone (0.5 to 1) is about 1/4 for a circuit that fails until then.
- CMD, the integral of |f - 1|: how far circuits are from the model, either way. Chosen by absolute score. 0 is best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput, require
from ..models import Model
from ..patching.corruptions import Corruption
from ..patching.scoring import METRICS, MetricLike, one_metric, refuse_joint
from ..plots import BLUE, GREY, ORANGE, Figure, style
from ..results import Result, analysis
from .circuit import Circuit
from .faithfulness import Faithfulness, measure
from .scores import EdgeScores
from .selection import sizes_of

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def area(shares: Sequence[float], values: Sequence[float] | Float[Tensor, "sizes"]) -> float:
    """The integral over shares of edges by trapezoids, from the smallest share on."""
    x, y = torch.as_tensor(shares, dtype=torch.float64), torch.as_tensor(values, dtype=torch.float64)
    if len(x) != len(y) or len(x) < 2:
        raise BadInput(f"an area needs one value a share, two at least: {len(x)} shares, {len(y)} values")
    return float(torch.trapezoid(y, x))


def cpr(shares: Sequence[float], faithfulness: Sequence[float] | Float[Tensor, "sizes"]) -> float:
    """MIB's circuit performance ratio: the integral of f."""
    return area(shares, faithfulness)


def cmd(shares: Sequence[float], faithfulness: Sequence[float] | Float[Tensor, "sizes"]) -> float:
    """MIB's circuit-model distance: the integral of |f - 1|."""
    return area(shares, (torch.as_tensor(faithfulness, dtype=torch.float64) - 1).abs())


@dataclass(frozen=True, eq=False)
class Curve(Result):
    """Circuits of growing size, chosen by signed and by absolute score.

    Attributes:
        shares: of all edges, as asked for. signed, absolute: the circuits run, one a share.
    """

    shares: Sequence[float]
    signed: Faithfulness = field(repr=False)
    absolute: Faithfulness = field(repr=False)
    method: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def cpr(self) -> float:
        return cpr(self.shares, self.signed.shares())

    @property
    def cmd(self) -> float:
        return cmd(self.shares, self.absolute.shares())

    def __repr__(self) -> str:
        return f"Curve({self.method}: CPR {self.cpr:.3f}, CMD {self.cmd:.3f} over {len(self.shares)} sizes)"

    @property
    def table(self) -> pd.DataFrame:
        """A row a size and way of choosing: edges kept, faithfulness, KL."""
        parts = []
        for name, run in (("signed", self.signed), ("absolute", self.absolute)):
            rows = run.rows()
            parts.append(pd.DataFrame({
                "chosen_by": name, "share": list(self.shares), "edges": rows["edges"], "value": rows["value"],
                "faithfulness": rows["score"], "faithfulness_se": rows["score_se"], "kl": run.kl().tolist(),
            }))  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    def plot(self) -> Figure:
        """Faithfulness by share of edges, on a logarithmic axis; the model is the line at 1."""
        title = f"{self.method}: CPR {self.cpr:.3f}, CMD {self.cmd:.3f}"
        return curve_figure(self.table, self.signed.metrics[0], title)


@analysis
def curve(
    model: Model,
    pairs: TokenPairs,
    scores: EdgeScores,
    *,
    how: Literal["top_n", "greedy"] = "top_n",
    shares: Sequence[float] = SHARES,
    metric: MetricLike | None = None,
    corruption: Corruption | None = None,
    batch_size: int = 8,
    quiet: bool = False,
) -> Curve:
    """Faithfulness of the circuits that some scores make, at growing sizes, with CPR and CMD.

    Use other pairs than the ones that the scores are of.

    Args:
        how: which edges of a size make the circuit; "greedy" for scores without a sign, such as routes of information.
        shares: of all edges, growing; MIB's ten.

    Raises:
        BadInput: shares that do not grow from above 0 to at most 1.
    """
    if list(shares) != sorted({*shares}) or not 0 < shares[0] < shares[-1] <= 1 or how not in ("top_n", "greedy"):
        raise BadInput("shares of edges grow from above 0 to at most 1, and how= is 'top_n' or 'greedy'")
    refuse_joint(pairs, "curve")
    name, function = one_metric(metric, pairs)
    sizes = sizes_of(scores.graph, tuple(shares))
    circuits: dict[str, Circuit] = {}
    for absolute in (False, True):
        for share, size in zip(shares, sizes):
            full = size == scores.graph.n_edges
            circuit = Circuit.full(scores.graph) if full else getattr(scores, how)(size, absolute=absolute)
            circuits[f"{'absolute' if absolute else 'signed'} {share:.1%}"] = circuit
    metrics = {name: function, "negative_kl": METRICS["negative_kl"]}
    run = measure(model, pairs, circuits, metrics, corruption, batch_size, quiet)
    half = len(sizes)
    return Curve(tuple(shares), run.take(range(half)), run.take(range(half, 2 * half)), scores.method)


def curve_figure(table: pd.DataFrame, metric: str, title: str = "") -> Figure:
    """The picture of a curve's table, with 95 % intervals."""
    go = require("plotly.graph_objects", "plots")
    figure = go.Figure()
    for (name, rows), colour in zip(table.groupby("chosen_by", sort=False), (BLUE, ORANGE)):
        errors = {"array": (1.96 * rows["faithfulness_se"].fillna(0)).tolist(), "visible": True}
        figure.add_scatter(
            x=rows["share"].tolist(), y=rows["faithfulness"].tolist(), error_y=errors, mode="lines+markers",
            name=f"by {name} score", line={"color": colour}, text=[f"{n:,} edges" for n in rows["edges"]],
        )  # fmt: skip
    figure.add_hline(y=1, line={"color": GREY, "dash": "dot"})
    figure.update_xaxes(type="log", tickformat=".1%")
    return style(figure, "share of edges", f"faithfulness ({metric})", title)
