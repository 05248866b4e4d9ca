"""What a lens saw: for every layer and token the likeliest tokens and some numbers, as table, picture and file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UnknownName, did_you_mean
from ..files import write_result
from ..models import Model, Site, TokenBatch

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ALWAYS = ("next", "final")  # targets that every result follows


@dataclass(frozen=True, eq=False)
class LensResult:
    """Layers × tokens, seen through a lens. Cells without a token (padding, positions not asked for) hold NaN or -1.

    Attributes:
        lens: what it is called; `sites`: the places read, one a layer.
        measures: name -> `layer batch pos`, in nats where they are entropies (`monosem.lenses.MEASURES`).
        top_ids, top_probabilities: the likeliest tokens, `layer batch pos k`.
        targets: name -> the token that is followed, `batch pos`: "next" (the one that really follows), "final" (the
            model's own choice), and those that were asked for.
        log_probabilities, ranks: of each target, name -> `layer batch pos`; rank 1 is the likeliest token.
    """

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
        if value not in self.measures:
            known = [*self.measures, "probability", "log_probability", "rank"]
            near = did_you_mean(value, known) or f"; there are {', '.join(known)}"
            raise UnknownName(f"no value {value!r} in this result{near}")
        return self.measures[value]

    @property
    def chosen(self) -> Tensor:
        """Which tokens have a cell, `batch pos`."""
        return self.top_ids[0, ..., 0] >= 0

    def top_tokens(self, layer: int, row: int, position: int) -> list[str]:
        """The likeliest tokens of one cell as text; `layer` is an index into `sites`."""
        return [self.model.str_token(int(i)) for i in self.top_ids[layer, row, position] if i >= 0]

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell: where it is, the likeliest token and its probability, every measure, and of every target
        its log-probability and rank. `top` holds all of the likeliest tokens."""
        layers, rows, columns = self.chosen.expand(len(self.sites), -1, -1).nonzero(as_tuple=True)
        ids, positions = self.tokens.ids.cpu(), self.tokens.positions.cpu()
        tops = [self.top_tokens(*map(int, cell)) for cell in zip(layers, rows, columns)]
        data: dict[str, Any] = {
            "site": [str(self.sites[i]) for i in layers],
            "layer": [self.sites[i].layer for i in layers],
            "row": rows.tolist(),
            "position": positions[rows, columns].tolist(),
            "token": [self.model.str_token(int(i)) for i in ids[rows, columns]],
            "prediction": [tokens[0] for tokens in tops],
            "probability": self.top_probabilities[layers, rows, columns, 0].tolist(),
        }
        data |= {name: value[layers, rows, columns].tolist() for name, value in self.measures.items()}
        for name in self.targets:
            data[f"log_probability of {name}"] = self.log_probabilities[name][layers, rows, columns].tolist()
            data[f"rank of {name}"] = self.ranks[name][layers, rows, columns].tolist()
        return pd.DataFrame(data | {"top": tops})

    def plot(
        self, value: str = "probability", row: int = 0, target: str | None = None, layers: Sequence[int] | None = None
    ) -> "Figure":
        """Layers on y, tokens on x; each cell shows the likeliest token and is coloured by `value` (see `values`).

        Args:
            row: which prompt. target: whose probability or rank. layers: indices into `sites`, to show fewer.
        """
        from .figures import lens_figure

        return lens_figure(self, value, row, target, layers)

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """The picture (.html; `plot` arguments go along) or the table (.csv, .json, .parquet), by the file's ending.

        Raises:
            BadInput: another ending.
        """
        return write_result(path, self.table, lambda: self.plot(**plot))


def followed(model: Model, given: Sequence[str | int] | str | int | None) -> dict[str, int]:
    """Tokens to follow at every cell, by name: texts of exactly one token, or ids. A name that is taken gets its id.

    Raises:
        BadInput: a text that is not one token, an id outside the vocabulary.
    """
    items = [] if given is None else [given] if isinstance(given, str | int) else list(given)
    found: dict[str, int] = {}
    for item in items:
        token = model.to_single_token(item)
        name = item if isinstance(item, str) else model.str_token(token)
        if name in ALWAYS or found.get(name, token) != token:
            name = f"{name} ({token})"
        found[name] = token
    return found
