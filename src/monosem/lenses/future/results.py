"""What a future lens foretold: a reading of one prompt, and scores over many texts."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import UnknownName
from ...files import write_result
from ...models import Model, TokenBatch
from ...plots import heatmap
from ..states import Logits, Measure, Pair, agreement, kl, log_probability, rank, stream

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TOPS = (1, 5, 10)  # precision@k


@dataclass(frozen=True, eq=False)
class FutureReading:
    """Layers x offsets x tokens of some prompts; offset n is the token t + n + 1. Padding holds -1 and NaN.

    Attributes:
        top_ids, top_probabilities: `layer offset batch pos k`, likeliest first.
    """

    model: Model = field(repr=False)
    layers: list[int]
    offsets: list[int]
    tokens: TokenBatch = field(repr=False)
    top_ids: Int[Tensor, "layer offset batch pos k"] = field(repr=False)
    top_probabilities: Float[Tensor, "layer offset batch pos k"] = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell: the state's place, the token foretold for each offset, and what the text really has there."""
        ids, lengths = self.tokens.ids.cpu(), self.tokens.lengths.cpu()
        first = self.tokens.mask.cpu().long().argmax(1)
        rows: list[dict[str, Any]] = []
        for i, j, row, column in (self.top_ids[..., 0] >= 0).nonzero().tolist():
            ahead = column + self.offsets[j] + 1
            best = int(self.top_ids[i, j, row, column, 0])
            there = ahead < int(first[row] + lengths[row])
            rows.append(
                {
                    "row": row,
                    "layer": self.layers[i],
                    "offset": self.offsets[j],
                    "position": column - int(first[row]),
                    "token": self.model.str_token(int(ids[row, column])),
                    "prediction": self.model.str_token(best),
                    "probability": float(self.top_probabilities[i, j, row, column, 0]),
                    "text": self.model.str_token(int(ids[row, ahead])) if there else None,
                }
            )
        return pd.DataFrame(rows)

    def plot(self, row: int = 0) -> "Figure":
        """Layers x tokens of one prompt: in each cell the tokens foretold, coloured by the mean of their probabilities;
        the alternatives under the mouse."""
        columns = self.tokens.mask[row].cpu().nonzero()[:, 0].tolist()
        columns = [c for c in columns if int(self.top_ids[0, 0, row, c, 0]) >= 0]
        text, hover = [], []
        for i in range(len(self.layers)):
            cells = [self._cell(i, row, column) for column in columns]
            text.append(["".join(names) for names, _ in cells])
            hover.append([lines for _, lines in cells])
        return heatmap(
            self.top_probabilities[:, :, row, columns, 0].mean(1),
            [self.model.str_token(int(self.tokens.ids[row, c])) for c in columns],
            self.layers,
            text=text,
            hover=hover,
            x_title="token",
            y_title="layer",
            title=f"Tokens {', '.join(f't+{n + 1}' for n in self.offsets)} foretold by the state at t",
            unit="probability",
            diverging=False,
            limits=(0.0, 1.0),
        )

    def _cell(self, layer: int, row: int, column: int) -> tuple[list[str], str]:
        best, lines = [], [f"layer {self.layers[layer]}"]
        for j, offset in enumerate(self.offsets):
            ids = self.top_ids[layer, j, row, column].tolist()
            ps = self.top_probabilities[layer, j, row, column].tolist()
            names = [html.escape(self.model.str_token(i)) for i in ids]
            best.append(names[0])
            lines.append(f"t+{offset + 1}: " + ", ".join(f"{name!r} {p:.2f}" for name, p in zip(names, ps)))
        return best, "<br>".join(lines)

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """The picture (.html) or the table (.csv, .json, .parquet), by the file's ending; `BadInput` for another."""
        return write_result(path, self.table, lambda: self.plot(**plot))


@dataclass(frozen=True, eq=False)
class FutureScores:
    """How well futures were foretold; one row of `table` for each lens, layer and offset, means over tokens.

    | column | what it is |
    |---|---|
    | `precision@k` | the token that the text really has is among the k likeliest |
    | `agreement` | the likeliest token is the model's own likeliest one at t + n |
    | `surprisal` | -log p of its likeliest token under the model that read up to t + n; nats (as in the paper) |
    | `kl` | KL(model at t + n ‖ lens), nats |
    | `cross_entropy` | -log q of the text's token, nats |
    | `tokens` | how many |

    The baseline's rows (`lens` is "bigram", no layer) have no `kl` and `cross_entropy`.
    """

    model_name: str
    table: pd.DataFrame

    @classmethod
    def joined(cls, model_name: str, parts: "Sequence[pd.DataFrame]") -> "FutureScores":
        """Means of parts, weighted by their tokens."""
        every = pd.concat(parts, ignore_index=True)
        keys = ["lens", "layer", "offset"]
        numbers = [name for name in every.columns if name not in (*keys, "tokens")]
        weighted = every[numbers].mul(every["tokens"], axis=0).join(every[[*keys, "tokens"]])
        total = weighted.groupby(keys, dropna=False, sort=False).sum(min_count=1)
        total[numbers] = total[numbers].div(total["tokens"], axis=0)
        return cls(model_name, total.reset_index().sort_values(["lens", "layer", "offset"], ignore_index=True))

    def plot(self, value: str = "precision@1") -> "Figure":
        """Layers x offsets, and the baseline's number for each offset on the axis. Raises `UnknownName`: no column."""
        if value not in self.table.columns:
            raise UnknownName(f"no column {value!r}; there are {', '.join(self.table.columns)}")
        own = self.table[self.table["lens"] != "bigram"]
        grid = own.pivot_table(index="layer", columns="offset", values=value)
        base = self.table[self.table["lens"] == "bigram"].set_index("offset")[value]
        labels = [
            f"t+{n + 1}" + (f"<br>bigram {base[n]:.2f}" if n in base and pd.notna(base[n]) else "")
            for n in map(int, grid.columns)
        ]
        return heatmap(
            grid.to_numpy(),
            labels,
            [int(layer) for layer in grid.index],
            text=[[f"{v:.2f}" for v in row] for row in grid.to_numpy()],
            x_title="token foretold",
            y_title="layer",
            title=f"Future lens of {self.model_name}",
            unit=value,
            diverging=False,
        )

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """The picture (.html) or the table (.csv, .json, .parquet), by the file's ending; `BadInput` for another."""
        return write_result(path, self.table, lambda: self.plot(**plot))


def surprisal(pair: Pair) -> Tensor:
    """-log p of the lens's likeliest token under the model, in nats."""
    return -pair.reference.log.gather(-1, pair.lens.logits.argmax(-1, keepdim=True))[:, 0]


def score(
    model: Model,
    lens: str,
    layers: Sequence[int],
    offset: int,
    logits: Sequence[Logits],
    reference: Logits,
    target: Int[Tensor, "n"],
    guesses: Int[Tensor, "n k"] | None = None,
) -> pd.DataFrame:
    """One row a layer for one offset, and one of the baseline when its guesses are given.

    Args:
        logits: of the lens, for each layer. reference: of the model at t + n. target: the text's tokens at t + n + 1.
    """
    vocab, n = model.cfg.d_vocab, len(target)
    measures: dict[str, Measure] = {
        "agreement": agreement,
        "surprisal": surprisal,
        "kl": kl,
        "log_probability": log_probability(target),
        "rank": rank(target),
    }
    seen = stream(logits, reference, n, vocab, measures).measures
    rows: list[dict[str, Any]] = []
    for at, layer in enumerate(layers):
        row: dict[str, Any] = {"lens": lens, "layer": layer, "offset": offset}
        row |= {f"precision@{k}": float((seen["rank"][at] <= k).double().mean()) for k in TOPS}
        row |= {name: float(seen[name][at].double().mean()) for name in ("agreement", "surprisal", "kl")}
        rows.append(row | {"cross_entropy": -float(seen["log_probability"][at].double().mean()), "tokens": n})
    if guesses is not None:
        rows.append(_baseline(offset, reference, target, guesses, vocab))
    return pd.DataFrame(rows)


def _baseline(offset: int, reference: Logits, target: Tensor, guesses: Tensor, vocab: int) -> dict[str, Any]:
    best = guesses[:, 0]
    seen = stream([reference], reference, len(target), vocab, {"p": log_probability(best), "rank": rank(best)}).measures
    hits = guesses == target[:, None]
    row: dict[str, Any] = {"lens": "bigram", "layer": float("nan"), "offset": offset}
    row |= {f"precision@{k}": float(hits[:, :k].any(1).double().mean()) for k in TOPS}
    row |= {
        "agreement": float((seen["rank"][0] == 1).double().mean()),
        "surprisal": -float(seen["p"][0].double().mean()),
    }
    return row | {"kl": float("nan"), "cross_entropy": float("nan"), "tokens": len(target)}
