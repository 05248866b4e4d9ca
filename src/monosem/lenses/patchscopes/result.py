"""What a patchscope read: a grid of prompts x layers x positions."""

import html
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput
from ...files import write_result
from ...models import Model
from ...plots import heatmap

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class PatchscopeResult:
    """What the target prompt made of every activation.

    Attributes:
        model: the model that read (the target's).
        layers: source layers.
        positions: `prompt position`, source positions as token indices.
        tokens: source tokens at those positions, for each prompt.
        top_ids, top_probabilities: `prompt layer position k`, the most likely next tokens.
        answers: `prompt position` token ids, or None where no answer was given.
        log_probability: `prompt layer position` of the answer, in nats.
        rank: `prompt layer position` of the answer, 1 is the likeliest token.
        texts: greedy continuations, `texts[prompt * layers + layer][position]`, or None.
    """

    model: Model
    layers: list[int]
    positions: Int[Tensor, "prompt position"]
    tokens: list[list[str]]
    target: str
    target_layer: int | Literal["same"]
    site: str
    top_ids: Int[Tensor, "prompt layer position k"]
    top_probabilities: Float[Tensor, "prompt layer position k"]
    answers: Int[Tensor, "prompt position"] | None
    log_probability: Float[Tensor, "prompt layer position"] | None
    rank: Int[Tensor, "prompt layer position"] | None
    texts: list[list[str]] | None

    def __repr__(self) -> str:
        prompts, layers, positions = self.top_ids.shape[:3]
        return f"PatchscopeResult({prompts} prompts x {layers} layers x {positions} positions into {self.target!r})"

    @property
    def precision(self) -> pd.Series:
        """Precision@1 by layer: the share of prompts and positions at which the answer is the most likely token.

        Raises `BadInput` when no answer was given.
        """
        return pd.Series((self._rank == 1).double().mean((0, 2)).tolist(), pd.Index(self.layers, name="layer"))

    @property
    def _rank(self) -> Tensor:
        if self.rank is None:
            raise BadInput("no answer was given to compare with; call patchscope(..., answer='final')")
        return self.rank

    @property
    def table(self) -> pd.DataFrame:
        """One row for each prompt, layer and position: what was read, how likely, and the answer's share."""
        rows: list[dict[str, Any]] = []
        for prompt, names in enumerate(self.tokens):
            for i, layer in enumerate(self.layers):
                for j, token in enumerate(names):
                    place = (prompt, i, j)
                    row: dict[str, Any] = {
                        "prompt": prompt,
                        "layer": layer,
                        "position": int(self.positions[prompt, j]),
                        "token": token,
                        "prediction": self.model.str_token(int(self.top_ids[(*place, 0)])),
                        "probability": float(self.top_probabilities[(*place, 0)]),
                    }
                    if self.answers is not None and self.log_probability is not None and self.rank is not None:
                        row["answer"] = self.model.str_token(int(self.answers[prompt, j]))
                        row["log_probability"] = float(self.log_probability[place])
                        row["rank"] = int(self.rank[place])
                    if self.texts is not None:
                        row["text"] = self.texts[prompt * len(self.layers) + i][j]
                    rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, prompt: int = 0) -> "Figure":
        """Layers x positions of one prompt: the decoded token in the cell, coloured by its probability (or that of the
        answer); the most likely tokens and the continuation under the mouse."""
        if self.log_probability is None:
            values, unit = self.top_probabilities[prompt, ..., 0], "probability"
        else:
            values, unit = self.log_probability[prompt].exp(), "p(answer)"
        cells = [[self._cell(prompt, i, j) for j in range(len(self.tokens[prompt]))] for i in range(len(self.layers))]
        return heatmap(
            values,
            self.tokens[prompt],
            self.layers,
            text=[[text for text, _ in row] for row in cells],
            hover=[[hover for _, hover in row] for row in cells],
            x_title="source token",
            y_title="source layer",
            title=f"Patchscope into “{html.escape(_short(self.target))}”",
            unit=unit,
            diverging=False,
            limits=(0.0, 1.0),
        )

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """The picture (.html) or the table (.csv, .json, .parquet), by the file's ending; `BadInput` for another."""
        return write_result(path, self.table, lambda: self.plot(**plot))

    def _cell(self, prompt: int, i: int, j: int) -> tuple[str, str]:
        ids, ps = self.top_ids[prompt, i, j].tolist(), self.top_probabilities[prompt, i, j].tolist()
        names = [html.escape(self.model.str_token(token)) for token in ids]
        lines = [f"layer {self.layers[i]}, {html.escape(self.tokens[prompt][j])!r}"]
        lines += [f"{p:.3f} {name!r}" for p, name in zip(ps, names)]
        if self.texts is not None:
            lines.append(html.escape(self.texts[prompt * len(self.layers) + i][j]))
        return names[0], "<br>".join(lines)


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"…{text[-limit:]}"
