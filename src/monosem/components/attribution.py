"""The result of a direct attribution: a value for every part, row and position."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadInput
from ..models import TokenBatch
from ..plots import Figure, heatmap
from ..results import Result
from ..statistics import standard_error

UNITS = ("head", "neuron")


@dataclass(frozen=True)
class Part:
    """One column of the result, or `n` of them (heads or neurons of a layer)."""

    kind: str  # "embed", "pos_embed", "bias", a branch ("attn", "ssm"), its units ("head", "ssm head") or "attn bias"
    layer: int | None = None
    n: int | None = None
    index: int | None = None

    def split(self) -> "list[Part]":
        return [self] if self.n is None else [Part(self.kind, self.layer, None, i) for i in range(self.n)]

    def __str__(self) -> str:
        if self.kind in UNITS:
            return f"L{self.layer}{self.kind[0].upper()}{self.index}"
        if self.index is not None:
            return f"L{self.layer} {self.kind} {self.index}"
        return self.kind if self.layer is None else f"L{self.layer} {self.kind}"


@dataclass(frozen=True, eq=False)
class DirectAttribution(Result):
    """What each part contributes.

    Attributes:
        values: in logits (or units of activation along a direction).
        parts: what the columns are.
        total: the read-out itself, before the soft cap (after it, with `capped`); `values` sum to it, not if `capped`.
        target: what was read out. model: name. tokens: the batch. columns: of the read tokens, `batch pos`.
    """

    values: Float[Tensor, "batch pos part"]
    parts: list[Part]
    total: Float[Tensor, "batch pos"]
    target: str
    model: str
    tokens: TokenBatch
    columns: Int[Tensor, "batch pos"]
    n_heads: int
    capped: bool = False

    def __repr__(self) -> str:
        rows, positions, parts = self.values.shape
        return f"DirectAttribution({self.target} in {self.model}: {parts} parts, {rows} rows, {positions} positions)"

    @property
    def error(self) -> float:
        """Largest difference between the sum of the parts and the read-out, relative to the largest read-out."""
        if self.capped:
            raise BadInput("with capped=True the parts are first-order shares of a curve: they do not add up to it")
        return float((self.values.sum(-1) - self.total).abs().max() / self.total.abs().max().clamp(min=1e-12))

    @property
    def mean(self) -> Float[Tensor, "part"]:
        """Over rows and positions."""
        return self.values.flatten(0, 1).mean(0)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each part, in the order of the model: kind, layer, index, mean contribution, standard error of the
        mean over rows (NaN for one row)."""
        return pd.DataFrame(
            {
                "part": [str(p) for p in self.parts],
                "kind": [p.kind for p in self.parts],
                "layer": pd.array([p.layer for p in self.parts], dtype="Int64"),
                "index": pd.array([p.index for p in self.parts], dtype="Int64"),
                "contribution": self.mean.numpy(),
                "contribution_se": standard_error(self.values.mean(1).T).numpy(),
            }
        )

    def top(self, n: int = 10, by: str | None = None) -> pd.DataFrame:
        """The n parts that contribute most, of either sign; or those with the largest values of a column."""
        if by is not None or n < 1:
            return super().top(n, by)
        table = self.table
        return table.iloc[np.argsort(-table.contribution.abs().to_numpy())[:n]].reset_index(drop=True)

    def heads(self) -> Float[Tensor, "layer head"]:
        """Mean contribution of each attention head; NaN in layers without attention. Raises `BadInput` for an
        attribution by layer."""
        chosen = [(i, part) for i, part in enumerate(self.parts) if part.kind == "head"]
        if not chosen:
            raise BadInput("this attribution is by layer; make it with by='head'")
        layers = 1 + max(part.layer for part in self.parts if part.layer is not None)
        grid = torch.full((layers, self.n_heads), torch.nan)
        for i, part in chosen:
            grid[part.layer, part.index] = self.mean[i]
        return grid

    def plot(self, title: str = "") -> Figure:
        """Layers x (heads, attention, MLP, biases): mean contributions; what belongs to no layer is in the last row."""
        kinds = list(dict.fromkeys(_column(p) for p in self.parts if p.layer is not None and p.kind not in UNITS))
        neurons = any(p.kind == "neuron" for p in self.parts)
        columns = [f"H{h}" for h in range(self.n_heads)] if any(p.kind == "head" for p in self.parts) else []
        columns += [*kinds, *(["neurons"] if neurons else []), "embed", "pos_embed", "bias"]
        layers = 1 + max((p.layer for p in self.parts if p.layer is not None), default=-1)
        grid = torch.full((layers + 1, len(columns)), torch.nan)
        for part, value in zip(self.parts, self.mean.tolist()):
            name = {"head": f"H{part.index}", "neuron": "neurons"}.get(part.kind, _column(part))
            row, column = layers if part.layer is None else part.layer, columns.index(name)
            grid[row, column] = grid[row, column].nan_to_num() + value  # neurons of a layer are added up
        kept = [i for i in range(len(columns)) if not bool(grid[:, i].isnan().all())]
        labels = [*map(str, range(layers)), "none"]
        unit = "logits" if self.target.startswith("logit") else "activation"
        names = [columns[i] for i in kept]
        return heatmap(
            grid[:, kept], names, labels, x_title="part", y_title="layer", title=title or self.target, unit=unit
        )


def _column(part: Part) -> str:
    """Heads of linear attention and state spaces are added up: "ssm heads"."""
    return part.kind if part.index is None else f"{part.kind}s"
