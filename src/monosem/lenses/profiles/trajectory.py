"""Two runs side by side: where in layers and tokens their predictions and their states part."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput, UnknownName, did_you_mean
from ...files import write_result
from ...models import Model, Positions, Site, TokenBatch
from ...models.running.moment import EditLike
from ...plots import heatmap
from ..figures import axis, short, shown
from ..states import Measure, capture, js, kl, sites_at, stream, tv
from ..tuned.lens import LensLike, translate_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class Trajectory:
    """How far the second run is from the first, `layer batch pos`; NaN where nothing was read.

    Attributes:
        values: "kl" (first‖second) and "js" in nats, "tv", "cosine" of the states, "distance" of the states as a share
            of the first one's norm, "agree" (1 where both have the same likeliest token).
        first_ids, second_ids: the likeliest tokens, `layer batch pos`.
    """

    model: Model = field(repr=False)
    sites: list[Site]
    tokens: TokenBatch = field(repr=False)
    other: TokenBatch = field(repr=False)
    values: dict[str, Float[Tensor, "layer batch pos"]] = field(repr=False)
    first_ids: Int[Tensor, "layer batch pos"] = field(repr=False)
    second_ids: Int[Tensor, "layer batch pos"] = field(repr=False)

    def __getitem__(self, value: str) -> Float[Tensor, "layer batch pos"]:
        if value not in self.values:
            near = did_you_mean(value, self.values) or f"; there are {', '.join(self.values)}"
            raise UnknownName(f"no value {value!r} in a trajectory{near}")
        return self.values[value]

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell."""
        layers, rows, columns = (self.first_ids >= 0).nonzero(as_tuple=True)
        word = self.model.str_token
        data: dict[str, Any] = {
            "site": [str(self.sites[i]) for i in layers],
            "layer": [self.sites[i].layer for i in layers],
            "row": rows.tolist(),
            "position": self.tokens.positions.cpu()[rows, columns].tolist(),
            "token": [word(int(i)) for i in self.tokens.ids.cpu()[rows, columns]],
            "other_token": [word(int(i)) for i in self.other.ids.cpu()[rows, columns]],
            "first": [word(int(i)) for i in self.first_ids[layers, rows, columns]],
            "second": [word(int(i)) for i in self.second_ids[layers, rows, columns]],
        }
        return pd.DataFrame(data | {name: v[layers, rows, columns].tolist() for name, v in self.values.items()})

    def plot(self, value: str = "js", row: int = 0) -> "Figure":
        """Layers on y, tokens on x, coloured by `value`; a cell shows both likeliest tokens where they differ."""
        grid = self[value]
        columns = (self.first_ids[0, row] >= 0).nonzero().flatten().tolist()
        word = self.model.str_token
        text, hover = [], []
        for layer, site in enumerate(self.sites):
            pairs = [
                (word(int(self.first_ids[layer, row, c])), word(int(self.second_ids[layer, row, c]))) for c in columns
            ]
            text.append([short(a) if a == b else f"{short(a)} → {short(b)}" for a, b in pairs])
            hover.append([
                f"<b>{site}</b><br>first: {shown(a)}<br>second: {shown(b)}<br>"
                + "<br>".join(f"{name}: {float(v[layer, row, c]):.4g}" for name, v in self.values.items())
                for (a, b), c in zip(pairs, columns)
            ])  # fmt: skip
        labels, y_title = axis(self.sites)
        names = []
        for c in columns:
            a, b = (shown(word(int(batch.ids[row, c]))) for batch in (self.tokens, self.other))
            names.append(a if a == b else f"{a} /{b}")
        shown_grid = grid[:, row][:, columns]
        return heatmap(
            shown_grid, names, labels, text=text, hover=hover, x_title="input token", y_title=y_title,
            title=f"two runs of {self.model.name}: {value}", diverging=value == "cosine",
            limits=(-1.0, 1.0) if value == "cosine" else (0.0, max(float(shown_grid.max()), 1e-9)),
        )  # fmt: skip

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """The picture (.html; `plot` arguments go along) or the table (.csv, .json, .parquet)."""
        return write_result(path, self.table, lambda: self.plot(**plot))


def trajectory(
    model: Model,
    first: Any,
    second: Any = None,
    *,
    first_edits: EditLike | Iterable[EditLike] = (),
    second_edits: EditLike | Iterable[EditLike] = (),
    second_model: Model | None = None,
    site: str = "resid_post",
    layers: Sequence[int] | int | None = None,
    positions: Positions | None = None,
    lens: LensLike = None,
    quiet: bool = False,
) -> Trajectory:
    """Compare two runs cell by cell: two prompts, one prompt with and without an edit, or two models of one shape
    (such as a model and its fine-tune), each read out through its own head.

    Args:
        second: prompts of the same token lengths; None: the same as the first, to compare edits or models.
        lens: None for the logit lens, "tuned", or any lens (`translate_of`); used for both.

    Raises:
        BadInput: rows whose token counts differ, models of another width or vocabulary, or nothing that could differ.
            Others as `logit`.
    """
    first_edits, second_edits = _edits(first_edits), _edits(second_edits)
    other_model = second_model or model
    if second is None and other_model is model and not first_edits and not second_edits:
        raise BadInput("both runs are the same: give second=, second_edits= or second_model=")
    _check_shapes(model, other_model)
    sites = sites_at(model, site, layers)
    for place in sites:
        other_model.site(place)
    a = capture(model, first, sites, positions, first_edits)
    b = capture(other_model, first if second is None else second, sites, positions, second_edits)
    if a.chosen.shape != b.chosen.shape or not torch.equal(a.chosen.cpu(), b.chosen.cpu()):
        lengths = [states.tokens.lengths.tolist() for states in (a, b)]
        raise BadInput(f"the runs do not align: rows of {lengths[0]} and of {lengths[1]} tokens; they must be the same")
    translate = translate_of(model, lens)
    # a measure's q is the lens and its p the reference: KL(first‖second) has the first run as the reference
    measures: dict[str, Measure] = {"kl": kl, "js": js, "tv": tv}
    seen = stream(b.lens(translate), a.lens(translate), len(a), model.cfg.d_vocab, measures, top=1, quiet=quiet)
    own = stream(a.lens(translate), a.prediction, len(a), model.cfg.d_vocab, {}, top=1, quiet=quiet)
    values = dict(seen.measures)
    states = [(a.by_site[s].float().cpu(), b.by_site[s].float().cpu()) for s in sites]
    values["cosine"] = torch.stack([torch.cosine_similarity(x, y, dim=-1) for x, y in states])
    values["distance"] = torch.stack([(x - y).norm(dim=-1) / x.norm(dim=-1) for x, y in states])
    values["agree"] = (own.top_ids[..., 0] == seen.top_ids[..., 0]).float()
    return Trajectory(
        model,
        sites,
        a.tokens,
        b.tokens,
        {name: a.spread(value) for name, value in values.items()},
        a.spread(own.top_ids[..., 0]),
        a.spread(seen.top_ids[..., 0]),
    )


def _check_shapes(model: Model, other: Model) -> None:
    """Raises `BadInput` for models whose states or predictions cannot be compared."""
    first, second = ((one.cfg.d_model, one.cfg.d_vocab) for one in (model, other))
    if first != second:
        raise BadInput(f"models of width and vocabulary {first} and {second} cannot be compared; they must agree")


def _edits(given: EditLike | Iterable[EditLike]) -> list[EditLike]:
    return [given] if hasattr(given, "apply") else list(given)  # type: ignore[arg-type, list-item]
