"""What a future lens foretold: a reading of one prompt, and scores over many texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import check_name
from ...models import Model, Site, TokenBatch
from ...plots import Figure, heatmap
from ...results import Result
from ..grid import CellIndex, Column, TokenGrid, short_label, token_label
from ..measures import Measure, View, agreement, kl, log_probability, rank
from ..states import Logits, read_out

TOPS = (1, 5, 10)  # precision@k
SQUARE = " squared"  # of columns in parts that are not yet joined


@dataclass(frozen=True, eq=False)
class FutureReading(Result):
    """Layers x offsets x tokens of some prompts; offset n is the token t + n + 1. Padding holds -1 and NaN.

    Attributes:
        top_ids, top_probabilities: `layer offset batch pos k`, likeliest first.
    """

    ranked_by: ClassVar[str | None] = "probability"

    model: Model = field(repr=False)
    sites: list[Site]
    offsets: list[int]
    tokens: TokenBatch = field(repr=False)
    top_ids: Int[Tensor, "layer offset batch pos k"] = field(repr=False)
    top_probabilities: Float[Tensor, "layer offset batch pos k"] = field(repr=False)

    @property
    def grid(self) -> TokenGrid:
        """The cells, as tables and heatmaps need them."""
        return TokenGrid.of(self.model, self.sites, self.tokens, self.top_ids[0, 0, ..., 0] >= 0)

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell and offset: the state's place, the token foretold, and what the text really has there."""
        parts = []
        for number, offset in enumerate(self.offsets):
            best = self.top_ids[:, number, ..., 0]
            values: dict[str, Column] = {
                "prediction": partial(self._word, best),
                "probability": self.top_probabilities[:, number, ..., 0],
                "text": partial(self._text, offset),
            }
            part = self.grid.table(values)
            part.insert(2, "offset", offset)
            parts.append(part)
        return pd.concat(parts).sort_values(["layer", "offset"], kind="stable", ignore_index=True)

    def _word(self, ids: Tensor, cell: CellIndex) -> str:
        return self.model.str_token(int(ids[cell]))

    def _text(self, offset: int, cell: CellIndex) -> str | None:
        """The token that the text has at an offset; None after its end."""
        _, row, column = cell
        ids, mask = self.tokens.ids[row], self.tokens.mask[row]
        ahead = column + offset + 1
        return self.model.str_token(int(ids[ahead])) if ahead < len(ids) and bool(mask[ahead]) else None

    def plot(self, row: int = 0) -> Figure:
        """Layers x tokens of one prompt: in each cell the tokens foretold, coloured by the mean of their probabilities;
        the alternatives under the mouse."""
        word = self.model.str_token

        def hover(cell: CellIndex) -> list[str]:
            layer, row, column = cell
            lines = []
            for number, offset in enumerate(self.offsets):
                ids, chances = (
                    each[layer, number, row, column].tolist() for each in (self.top_ids, self.top_probabilities)
                )
                told = ", ".join(f"{token_label(word(i))!r} {p:.2f}" for i, p in zip(ids, chances))
                lines.append(f"t+{offset + 1}: {told}")
            return lines

        def text(cell: CellIndex) -> str:
            layer, row, column = cell
            return "".join(short_label(word(i)) for i in self.top_ids[layer, :, row, column, 0].tolist())

        return self.grid.heatmap(
            self.top_probabilities[..., 0].mean(1),
            row,
            text=text,
            hover=hover,
            title=f"Tokens {', '.join(f't+{n + 1}' for n in self.offsets)} foretold by the state at t",
            unit="probability",
            limits=(0.0, 1.0),
        )


@dataclass(frozen=True, eq=False)
class FutureScores(Result):
    """How well futures were foretold; one row of `table` for each lens, layer and offset, means over tokens.

    | column | what it is |
    |---|---|
    | `precision@k` | the token that the text really has is among the k likeliest |
    | `agreement` | the likeliest token is the model's own likeliest one at t + n |
    | `surprisal` | -log p of its likeliest token under the model that read up to t + n; nats (as in the paper) |
    | `kl` | KL(model at t + n ‖ lens), nats |
    | `cross_entropy` | -log q of the text's token, nats |
    | `tokens` | how many |

    Each has its standard error `<column>_se` over tokens, as if these were independent.
    The baseline's rows (`lens` is "bigram", no layer) have no `kl` and `cross_entropy`.
    """

    ranked_by: ClassVar[str | None] = "precision@1"

    model_name: str
    means: pd.DataFrame = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        return self.means

    @classmethod
    def joined(cls, model_name: str, parts: Sequence[pd.DataFrame]) -> "FutureScores":
        """Means of parts, weighted by their tokens."""
        every = pd.concat(parts, ignore_index=True)
        keys = ["lens", "layer", "offset"]
        numbers = [name for name in every.columns if name not in (*keys, "tokens")]
        weighted = every[numbers].mul(every["tokens"], axis=0).join(every[[*keys, "tokens"]])
        total = weighted.groupby(keys, dropna=False, sort=False).sum(min_count=1)
        total[numbers] = total[numbers].div(total["tokens"], axis=0)
        for name in [name for name in numbers if not name.endswith(SQUARE)]:
            variance = (total.pop(f"{name}{SQUARE}") - total[name] ** 2).clip(lower=0.0)
            total[f"{name}_se"] = (variance / (total["tokens"] - 1)) ** 0.5
        return cls(model_name, total.reset_index().sort_values(["lens", "layer", "offset"], ignore_index=True))

    def plot(self, value: str = "precision@1") -> Figure:
        """Layers x offsets, and the baseline's number for each offset on the axis. Raises `UnknownName`: no column."""
        check_name("column", value, self.table.columns)
        lens = self.table[self.table["lens"] != "bigram"]
        grid = lens.pivot_table(index="layer", columns="offset", values=value)
        base = self.table[self.table["lens"] == "bigram"].set_index("offset")[value]
        labels = [
            f"t+{n + 1}" + (f"\nbigram {base[n]:.2f}" if n in base and pd.notna(base[n]) else "")
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
            less_is_better=value in ("surprisal", "kl", "cross_entropy"),
        )


def surprisal(view: View) -> Tensor:
    """-log p of the lens's likeliest token under the model, in nats."""
    return -view.reference.log.gather(-1, view.lens.logits.argmax(-1, keepdim=True))[:, 0]


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
    """One row a layer for one offset, and one row of the baseline where there are guesses.

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
    seen = read_out(logits, reference, n, vocab, measures).measures
    rows: list[dict[str, Any]] = []
    for at, layer in enumerate(layers):
        values = {f"precision@{k}": seen["rank"][at] <= k for k in TOPS}
        values |= {name: seen[name][at] for name in ("agreement", "surprisal", "kl")}
        values["cross_entropy"] = -seen["log_probability"][at]
        rows.append({"lens": lens, "layer": layer, "offset": offset} | _moments(values) | {"tokens": n})
    if guesses is not None:
        rows.append(_baseline(offset, reference, target, guesses, vocab))
    return pd.DataFrame(rows)


def _baseline(offset: int, reference: Logits, target: Tensor, guesses: Tensor, vocab: int) -> dict[str, Any]:
    best = guesses[:, 0]
    seen = read_out(
        [reference], reference, len(target), vocab, {"p": log_probability(best), "rank": rank(best)}
    ).measures
    hits = guesses == target[:, None]
    values = {f"precision@{k}": hits[:, :k].any(1) for k in TOPS}
    values |= {"agreement": seen["rank"][0] == 1, "surprisal": -seen["p"][0]}
    missing = torch.full((len(target),), torch.nan)
    values |= {"kl": missing, "cross_entropy": missing}
    row: dict[str, Any] = {"lens": "bigram", "layer": float("nan"), "offset": offset}
    return row | _moments(values) | {"tokens": len(target)}


def _moments(values: dict[str, Tensor]) -> dict[str, float]:
    """The means of some numbers, and of their squares."""
    means = {name: float(each.double().mean()) for name, each in values.items()}
    return means | {f"{name}{SQUARE}": float(each.double().square().mean()) for name, each in values.items()}
