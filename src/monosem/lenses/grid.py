"""Layers × tokens: the one table of cells and the one heatmap of everything that lenses see."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BadInput
from ..models import Model, Site, TokenBatch
from ..plots import Figure, heatmap, literal

MARKS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
CELL = 12  # characters of a token that fit into a cell

CellIndex = tuple[int, int, int]  # layer (an index into the sites), row, column
Column = Tensor | Callable[[CellIndex], Any]  # numbers `layer row column`, or a function of the cell


def visible(token: str) -> str:
    """A token as a label: white space can be seen, and so can characters that print nothing."""
    for blank, mark in MARKS.items():
        token = token.replace(blank, mark)
    token = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
    bare = token.strip(" ")
    spaces = "␣" * (len(token) if not bare else len(token) - len(token.rstrip(" ")))
    return (" " if bare and token.startswith(" ") else "") + bare + spaces


def token_label(token: str) -> str:
    """`visible` as HTML, for cells and what is under the mouse."""
    return literal(visible(token))


def short_label(token: str) -> str:
    """`token_label`, cut to what fits into a cell."""
    return token_label(token if len(token) <= CELL else token[: CELL - 1] + "…")


def layer_axis(sites: Sequence[Site]) -> tuple[list[str], str]:
    """Labels of the layers, and the title above them: the site's name once, if it is the same everywhere."""
    names = {site.name for site in sites}
    if len(names) == 1:
        return [str(site.layer) for site in sites], f"{names.pop()}, layer"
    return [str(site) for site in sites], ""


def likeliest(words: Iterable[str], probabilities: Iterable[float]) -> list[str]:
    """Lines for the mouse: tokens with their probabilities."""
    return [f"{chance:.3f}  {token_label(word)}" for word, chance in zip(words, probabilities)]


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """The cells of a reading: layers × the tokens of some prompts.

    Attributes:
        sites: the places read, one a layer.
        words: the token at each column, `row column`.
        positions: its index in its prompt, `row column`.
        chosen: which tokens were read, `row column`.
    """

    sites: Sequence[Site]
    words: list[list[str]]
    positions: Int[Tensor, "row column"]
    chosen: Bool[Tensor, "row column"]

    @classmethod
    def of(
        cls, model: Model, sites: Sequence[Site], tokens: TokenBatch, chosen: Bool[Tensor, "batch pos"]
    ) -> "TokenGrid":
        """The grid of some tokens of a batch."""
        words = [[model.str_token(token) for token in row] for row in tokens.ids.tolist()]
        return cls(sites, words, tokens.positions.cpu(), chosen.cpu())

    def columns(self, row: int) -> list[int]:
        """The columns of a prompt that were read. Raises `BadInput` when there is no such prompt."""
        if not -len(self.words) <= row < len(self.words):
            raise BadInput(f"there is no prompt {row}; the result holds {len(self.words)}")
        return self.chosen[row].nonzero().flatten().tolist()

    def table(self, values: Mapping[str, Column]) -> pd.DataFrame:
        """One row a cell: where it is, and what `values` hold there, by column."""
        index = self.chosen.expand(len(self.sites), -1, -1).nonzero(as_tuple=True)
        cells: list[CellIndex] = list(zip(*(axis.tolist() for axis in index)))
        data: dict[str, Any] = {
            "site": [str(self.sites[layer]) for layer, _, _ in cells],
            "layer": [self.sites[layer].layer for layer, _, _ in cells],
            "row": [row for _, row, _ in cells],
            "position": self.positions[index[1:]].tolist(),
            "token": [self.words[row][column] for _, row, column in cells],
        }
        for name, value in values.items():
            data[name] = value[index].tolist() if isinstance(value, Tensor) else [value(cell) for cell in cells]
        return pd.DataFrame(data)

    def heatmap(
        self,
        values: Float[Tensor, "layer row column"],
        row: int,
        *,
        layers: Sequence[int] | None = None,
        text: Callable[[CellIndex], str] | None = None,
        hover: Callable[[CellIndex], list[str]] | None = None,
        words: Callable[[int], str] | None = None,
        title: str = "",
        unit: str = "",
        limits: tuple[float, float] | None = None,
        from_zero: bool = True,
        diverging: bool = False,
        less_is_better: bool = False,
    ) -> Figure:
        """Layers on y, the tokens of one prompt on x.

        Args:
            layers: indices into `sites`, to show fewer.
            text: what is written in a cell (HTML).
            hover: lines of HTML under the mouse, below the line that says where the cell is.
            words: the label of a column; by default its token.
            limits: of the colours; by default from 0 (or a lesser number; with `from_zero=False` from the least) to the
                largest number.

        Raises:
            BadInput: there is no such prompt.
        """
        columns = self.columns(row)
        every = list(range(len(self.sites)))
        picked = every if layers is None else [every[layer] for layer in layers]
        numbers = values[picked, row][:, columns]
        cells = [[(layer, row, column) for column in columns] for layer in picked]
        labels, y_title = layer_axis([self.sites[layer] for layer in picked])
        return heatmap(
            numbers,
            [words(column) if words else visible(self.words[row][column]) for column in columns],
            labels,
            text=[[text(cell) for cell in line] for line in cells] if text else None,
            hover=[[self._under_mouse(cell, hover) for cell in line] for line in cells] if hover else None,
            x_title="input token",
            y_title=y_title,
            title=title,
            unit=unit,
            limits=limits or colour_limits(numbers, from_zero),
            diverging=diverging,
            less_is_better=less_is_better,
        )

    def _under_mouse(self, cell: CellIndex, hover: Callable[[CellIndex], list[str]]) -> str:
        layer, row, column = cell
        token, position = token_label(self.words[row][column]), int(self.positions[row, column])
        return "<br>".join([f"<b>{self.sites[layer]}</b>, position {position}, after “{token}”", *hover(cell)])


def colour_limits(numbers: Tensor, from_zero: bool = True) -> tuple[float, float]:
    """Ends of the colour scale: from 0 (or the least number) to the largest."""
    finite = numbers[numbers.isfinite()]
    if not finite.numel():
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    low = min(0.0, low) if from_zero else low
    return low, high if high > low else low + 1.0
