"""What a lens saw: for every layer and token the likeliest tokens and some numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UnknownName, check_name
from ..models import Model, Site, TokenBatch
from ..plots import Figure
from ..results import Result
from .grid import CellIndex, Column, TokenGrid, likeliest, short_label, visible
from .measures import LESS_IS_BETTER, UNITS

ALWAYS = ("next", "final")  # targets that every result follows


@dataclass(frozen=True, eq=False)
class LensResult(Result):
    """Layers × tokens, seen through a lens. Cells without a token (padding, positions not asked for) hold NaN or -1.

    Attributes:
        lens: the name of the lens; `sites`: the places read, one a layer.
        measures: name -> `layer batch pos`, in nats where they are entropies (`monosem.lenses.MEASURES`).
        top_ids, top_probabilities: the likeliest tokens, `layer batch pos k`.
        targets: name -> the token that is followed, `batch pos`: "next" (the one that really follows), "final" (the
            model's own choice), and the tokens that were asked for.
        log_probabilities, ranks: of each target, name -> `layer batch pos`; rank 1 is the likeliest token.
    """

    ranked_by: ClassVar[str | None] = "probability"

    model: Model = field(repr=False)
    lens: str
    sites: list[Site]
    tokens: TokenBatch = field(repr=False)
    measures: dict[str, Float[Tensor, "layer batch pos"]] = field(repr=False)
    top_ids: Int[Tensor, "layer batch pos k"] = field(repr=False)
    top_probabilities: Float[Tensor, "layer batch pos k"] = field(repr=False)
    targets: dict[str, Int[Tensor, "batch pos"]] = field(repr=False)
    log_probabilities: dict[str, Float[Tensor, "layer batch pos"]] = field(repr=False)
    ranks: dict[str, Float[Tensor, "layer batch pos"]] = field(repr=False)

    def __getitem__(self, value: str) -> Float[Tensor, "layer batch pos"]:
        """As `values`, without a target: `result["kl"]`."""
        return self.values(value)

    def values(self, value: str, target: str | None = None) -> Float[Tensor, "layer batch pos"]:
        """Numbers by name: a measure, "probability" (of the likeliest token, or of a target), or "log_probability" and
        "rank" of a target ("next" unless another is named).

        Raises:
            UnknownName: no such value or target; the message lists them.
        """
        if value == "probability" and target is None:
            return self.top_probabilities[..., 0]
        if value in ("probability", "log_probability", "rank"):
            name = target or "next"
            if name not in self.targets:
                raise UnknownName(
                    f"no target {name!r}; followed: {', '.join(map(repr, self.targets))}; name it in "
                    "targets=[...] of the call"
                )
            held = self.ranks if value == "rank" else self.log_probabilities
            return held[name].exp() if value == "probability" else held[name]
        check_name("value", value, [*self.measures, "probability", "log_probability", "rank"])
        return self.measures[value]

    @property
    def chosen(self) -> Tensor:
        """Which tokens have a cell, `batch pos`."""
        return self.top_ids[0, ..., 0] >= 0

    @property
    def grid(self) -> TokenGrid:
        """The cells, as tables and heatmaps need them."""
        return TokenGrid.of(self.model, self.sites, self.tokens, self.chosen)

    def top_tokens(self, layer: int, row: int, position: int) -> list[str]:
        """The likeliest tokens of one cell as text; `layer` is an index into `sites`."""
        return [self.model.str_token(int(i)) for i in self.top_ids[layer, row, position] if i >= 0]

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell: where it is, the likeliest token and its probability, every measure, and of every target
        its log-probability and rank. `top` holds all of the likeliest tokens."""
        columns: dict[str, Column] = {
            "prediction": lambda cell: self.model.str_token(int(self.top_ids[cell][0])),
            "probability": self.top_probabilities[..., 0],
            **self.measures,
        }
        for name in self.targets:
            columns[f"log_probability of {name}"] = self.log_probabilities[name]
            columns[f"rank of {name}"] = self.ranks[name]
        return self.grid.table(columns | {"top": lambda cell: self.top_tokens(*cell)})

    def plot(
        self, value: str = "probability", row: int = 0, target: str | None = None, layers: Sequence[int] | None = None
    ) -> Figure:
        """Layers on y, tokens on x; each cell shows the likeliest token and is coloured by `value` (see `values`), a
        rank by its logarithm.

        Args:
            row: which prompt. target: whose probability or rank. layers: indices into `sites`, to show fewer.

        Raises:
            UnknownName: no such value or target. BadInput: no such prompt.
        """
        numbers = self.values(value, target)

        def hover(cell: CellIndex) -> list[str]:
            chances = likeliest(self.top_tokens(*cell), self.top_probabilities[cell].tolist())
            return [f"{value}: {float(numbers[cell]):.4g}", *chances]

        name = f"{value}{_subject(value, target)}"
        unit = f" ({UNITS[value]})" if UNITS.get(value) else ""
        title = f"{self.lens} of {self.model.name}: {'log10 ' if value == 'rank' else ''}{name}{unit}"
        return self.grid.heatmap(
            numbers.log10() if value == "rank" else numbers,
            row,
            layers=layers,
            text=lambda cell: short_label(self.top_tokens(*cell)[0]),
            hover=hover,
            title=title,
            limits=(0.0, 1.0) if value in ("probability", "tv") else None,
            from_zero=value != "logsumexp",
            less_is_better=value in LESS_IS_BETTER,
        )


def _subject(value: str, target: str | None) -> str:
    if target is None and value == "probability":
        return " of the likeliest token"
    return f" of {visible(target or 'next')!r}" if target or value in ("rank", "log_probability") else ""


def followed(model: Model, targets: Sequence[str | int] | str | int | None) -> dict[str, int]:
    """Tokens to follow at every cell, by name: texts of exactly one token, or ids. A second token of one name gets its
    id added to the name.

    Raises:
        BadInput: a text that is not one token, an id outside the vocabulary.
    """
    items = [] if targets is None else [targets] if isinstance(targets, str | int) else list(targets)
    tokens: dict[str, int] = {}
    for item in items:
        token = model.to_single_token(item)
        name = item if isinstance(item, str) else model.str_token(token)
        if name in ALWAYS or tokens.get(name, token) != token:
            name = f"{name} ({token})"
        tokens[name] = token
    return tokens
