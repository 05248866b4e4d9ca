"""What a patchscope read: a grid of layers x prompts x positions."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput
from ...models import Model, Site
from ...plots import Figure
from ...results import Result
from ..grid import CellIndex, TokenGrid, likeliest, short_label, token_label, visible


@dataclass(frozen=True, eq=False)
class PatchscopeResult(Result):
    """What the target prompt made of every activation.

    Attributes:
        model: the model that read (the target's).
        sites: where the activations were taken, one a layer.
        positions: `prompt position`, source positions as token indices.
        words: source tokens at the positions, for each prompt.
        target: the target prompt as text.
        top_ids, top_probabilities: `layer prompt position k`, the likeliest next tokens.
        answers: `prompt position` token ids, or None where no answer was given.
        log_probability: `layer prompt position` of the answer, in nats.
        rank: `layer prompt position` of the answer, 1 is the likeliest token.
        texts: greedy continuations, `texts[layer][prompt][position]`, or None.
    """

    ranked_by: ClassVar[str | None] = "probability"

    model: Model = field(repr=False)
    sites: list[Site]
    positions: Int[Tensor, "prompt position"] = field(repr=False)
    words: list[list[str]] = field(repr=False)
    target: str
    top_ids: Int[Tensor, "layer prompt position k"] = field(repr=False)
    top_probabilities: Float[Tensor, "layer prompt position k"] = field(repr=False)
    answers: Int[Tensor, "prompt position"] | None = field(repr=False)
    log_probability: Float[Tensor, "layer prompt position"] | None = field(repr=False)
    rank: Int[Tensor, "layer prompt position"] | None = field(repr=False)
    texts: list[list[list[str]]] | None = field(repr=False)

    def __repr__(self) -> str:
        layers, prompts, positions = self.top_ids.shape[:3]
        return f"PatchscopeResult({prompts} prompts x {layers} layers x {positions} positions into {self.target!r})"

    @property
    def grid(self) -> TokenGrid:
        """The cells, as tables and heatmaps need them."""
        return TokenGrid(self.sites, self.words, self.positions, torch.ones_like(self.positions, dtype=torch.bool))

    @property
    def precision(self) -> pd.Series:
        """Precision@1 by layer: the share of prompts and positions at which the answer is the likeliest token.

        Raises `BadInput` when no answer was given.
        """
        if self.rank is None:
            raise BadInput("no answer was given to compare with; call patchscope(..., answer='final')")
        layers = pd.Index([site.layer for site in self.sites], name="layer")
        return pd.Series((self.rank == 1).double().mean((1, 2)).tolist(), layers)

    def top_tokens(self, layer: int, row: int, position: int) -> list[str]:
        """The likeliest tokens of one cell as text; all three are indices into the grid."""
        return [self.model.str_token(token) for token in self.top_ids[layer, row, position].tolist()]

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell: where the activation was taken, what was read, how likely, and how the answer fares."""
        columns: dict[str, Any] = {
            "prediction": lambda cell: self.model.str_token(int(self.top_ids[cell][0])),
            "probability": self.top_probabilities[..., 0],
        }
        if (answers := self.answers) is not None:
            columns["answer"] = lambda cell: self.model.str_token(int(answers[cell[1:]]))
            columns |= {"log_probability": self.log_probability, "rank": self.rank}
        if self.texts is not None:
            columns["text"] = self._text
        return self.grid.table(columns)

    def plot(self, row: int = 0) -> Figure:
        """Layers x positions of one prompt: the decoded token in the cell, coloured by its probability (or the
        probability of the answer); the likeliest tokens and the continuation under the mouse."""
        answered = self.log_probability is not None

        def hover(cell: CellIndex) -> list[str]:
            chances = likeliest(self.top_tokens(*cell), self.top_probabilities[cell].tolist())
            return chances if self.texts is None else [*chances, token_label(self._text(cell))]

        return self.grid.heatmap(
            self.log_probability.exp() if answered else self.top_probabilities[..., 0],  # type: ignore[union-attr]
            row,
            text=lambda cell: short_label(self.top_tokens(*cell)[0]),
            hover=hover,
            title=f"Patchscope into “{visible(_end(self.target))}”",
            unit="p(answer)" if answered else "probability",
            limits=(0.0, 1.0),
        )

    def _text(self, cell: CellIndex) -> str:
        layer, row, position = cell
        return "" if self.texts is None else self.texts[layer][row][position]


def _end(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"…{text[-limit:]}"
