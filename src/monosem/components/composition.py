"""How much one head reads what an earlier one writes, from the weights alone.

    score = ‖W_write W_read‖ / (‖W_write‖ ‖W_read‖)        Frobenius norms (Elhage et al. 2021)

W_write is the earlier head's OV; W_read is the later head's QK (query composition), QKᵀ (key composition) or OV (value
composition). Two matrices that have nothing to do with each other score 1/√d_model in the root mean square over random
rotations between them, whatever their spectra: E‖A R B‖² = ‖A‖² ‖B‖² / d_model for a random rotation R.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..models import Model
from ..plots import Figure, heatmap
from ..progress import Meter
from ..results import Result, analysis
from .factored import OV, QK, FactoredMatrix

Kind = Literal["Q", "K", "V"]


@dataclass(frozen=True, eq=False)
class Composition(Result):
    """Scores of all pairs of heads.

    Attributes:
        scores: NaN where the second head is not in a later layer.
        baseline: what unrelated matrices score, 1/√d_model.
    """

    ranked_by: ClassVar[str] = "score"

    scores: Float[Tensor, "layer head later_layer later_head"]
    baseline: float
    kind: str
    model: str

    def __repr__(self) -> str:
        layers, heads = self.scores.shape[:2]
        return f"Composition({self.kind} of {layers} x {heads} heads of {self.model}, baseline {self.baseline:.4f})"

    @property
    def table(self) -> pd.DataFrame:
        """Every pair, strongest first: writer, reader, score, and how many times the baseline."""
        later = (~self.scores.isnan()).nonzero()
        values = self.scores[tuple(later.T)]
        order = values.argsort(descending=True)
        rows, strengths = later[order].tolist(), values[order].tolist()
        return pd.DataFrame(
            {
                "writer": [f"L{a}H{b}" for a, b, _, _ in rows],
                "reader": [f"L{c}H{d}" for _, _, c, d in rows],
                "score": strengths,
                "times_baseline": [v / self.baseline for v in strengths],
            }
        )

    def plot(self) -> Figure:
        """Writers x readers; the colours begin at the baseline."""
        names = [f"L{layer}H{head}" for layer in range(self.scores.shape[0]) for head in range(self.scores.shape[1])]
        grid = self.scores.flatten(2).flatten(0, 1) - self.baseline
        title = f"{self.kind} composition in {self.model}, above the score of unrelated heads"
        return heatmap(grid, names, names, x_title="reader", y_title="writer", title=title, unit="score")


@analysis
def composition_scores(model: Model, kind: Kind = "Q", *, folded: bool = True) -> Composition:
    """Composition scores of every head with every head of a later layer.

    Args:
        kind: what of the later head reads: its query ("Q"), key ("K") or value ("V").
        folded: gains of the norms on the way belong to the weights (ln1 of the reader, a post-norm of the writer);
            with False the bare weights are compared.
    """
    if kind not in ("Q", "K", "V"):
        raise BadInput(f"kind is 'Q', 'K' or 'V', not {kind!r}")
    c = model.cfg
    model.written_before(f"resid_post.{c.n_layers - 1}")  # refuses streams that are no sums
    scores = torch.full((c.n_layers, c.n_heads, c.n_layers, c.n_heads), torch.nan)
    layers = model.layers_with("v")  # blocks may have no attention; their pairs stay NaN
    written = {layer: _rows(OV(model, layer, folded=folded)) for layer in layers}
    with Meter(f"{kind} composition", len(layers) * (len(layers) - 1) / 2, "layer pairs") as meter:
        for place, later in enumerate(layers):
            reader = OV(model, later, folded=folded) if kind == "V" else QK(model, later, folded=folded)
            columns = _rows(reader.T if kind != "K" else reader)  # ‖W X‖ = ‖Xᵀ Wᵀ‖
            for layer in layers[:place]:
                scores[layer, :, later] = _cosines(written[layer], columns).cpu()
                meter.advance()
    return Composition(scores, c.d_model**-0.5, kind, model.name)


def _rows(matrix: FactoredMatrix) -> Float[Tensor, "head r d_model"]:
    """r rows with the product's row-space geometry, ‖rows X‖ = ‖A B X‖ for every X, scaled to norm 1."""
    rows = torch.linalg.qr(matrix.A, mode="r").R @ matrix.B
    return rows / rows.norm(dim=(-2, -1), keepdim=True)


def _cosines(
    rows: Float[Tensor, "head r d_model"], columns: Float[Tensor, "later r d_model"]
) -> Float[Tensor, "head later"]:
    product = rows.flatten(0, 1) @ columns.flatten(0, 1).T
    blocks = product.unflatten(0, (rows.shape[0], -1)).unflatten(-1, (columns.shape[0], -1))
    return blocks.square().sum((1, 3)).sqrt()
