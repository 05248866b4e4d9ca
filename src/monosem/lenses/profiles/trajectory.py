"""Two runs side by side: where in layers and tokens their predictions and their states part."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ...errors import BadInput
from ...models import Layers, Model, Positions, TokenBatch
from ...models.running.moment import EditLike
from ...plots import Figure
from ...results import analysis
from ..grid import CellIndex, Column, short_label, token_label, visible
from ..lookup import LensLike, sight
from ..measures import Measure, js, kl, tv
from ..states import States, read_out, states_of
from .profile import TokenProfile

LIMITS = {"cosine": (-1.0, 1.0), "tv": (0.0, 1.0), "agree": (0.0, 1.0)}
DIFFERENCES = ("kl", "js", "tv", "cosine", "distance", "agree")  # what a trajectory measures at every token


@dataclass(frozen=True, eq=False)
class Trajectory(TokenProfile):
    """How far the second run is from the first, layer by layer and token by token.

    Attributes:
        measures: "kl" (first‖second) and "js" in nats, "tv", "cosine" of the states, "distance" of the states as a
            share of the first one's norm, "agree" (1 where both have the same likeliest token).
        tokens, other: the two batches.
        first_ids, second_ids: the likeliest tokens, `layer batch pos`.
    """

    ranked_by: ClassVar[str | None] = "js"

    other: TokenBatch = field(repr=False)
    first_ids: Int[Tensor, "layer batch pos"] = field(repr=False)
    second_ids: Int[Tensor, "layer batch pos"] = field(repr=False)

    def _word(self, ids: Tensor, cell: CellIndex) -> str:
        return self.model.str_token(int(ids[cell]))

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell."""
        names: dict[str, Column] = {
            "other_token": lambda cell: self.model.str_token(int(self.other.ids[cell[1:]])),
            "first": lambda cell: self._word(self.first_ids, cell),
            "second": lambda cell: self._word(self.second_ids, cell),
        }
        return self.grid.table(names | self.measures)

    def plot(self, value: str = "js", row: int = 0) -> Figure:
        """Layers on y, tokens on x, coloured by `value`; a cell shows both likeliest tokens where they differ."""

        def words(cell: CellIndex) -> tuple[str, str]:
            return self._word(self.first_ids, cell), self._word(self.second_ids, cell)

        def text(cell: CellIndex) -> str:
            first, second = words(cell)
            return short_label(first) if first == second else f"{short_label(first)} → {short_label(second)}"

        def hover(cell: CellIndex) -> list[str]:
            first, second = map(token_label, words(cell))
            numbers = [f"{name}: {float(grid[cell]):.4g}" for name, grid in self.measures.items()]
            return [f"first: {first}", f"second: {second}", *numbers]

        def column(place: int) -> str:
            first, second = (
                visible(self.model.str_token(int(batch.ids[row, place]))) for batch in (self.tokens, self.other)
            )
            return first if first == second else f"{first} /{second}"

        return self.grid.heatmap(
            self[value],
            row,
            text=text,
            hover=hover,
            words=column,
            title=self.title(f"two runs, {value}"),
            diverging=value == "cosine",
            less_is_better=value not in ("cosine", "agree"),
            limits=LIMITS.get(value),
        )


@analysis
def trajectory(
    model: Model,
    x: Any,
    other: Any = None,
    *,
    first_edits: EditLike | Iterable[EditLike] = (),
    second_edits: EditLike | Iterable[EditLike] = (),
    second_model: Model | None = None,
    site: str = "resid_post",
    layers: Layers = None,
    positions: Positions | None = None,
    lens: LensLike = None,
    quiet: bool = False,
) -> Trajectory:
    """Compare two runs cell by cell: two prompts, one prompt with and without an edit, or two models of one shape
    (such as a model and its fine-tune), each read out through its own head.

    Args:
        other: prompts of the same token lengths as `x`; None: `x` again, to compare edits or models.
        lens: None for the logit lens, "tuned", or any lens (as in `read`); used for both.

    Raises:
        BadInput: rows whose token counts differ, models of another width or vocabulary, or nothing that could differ.
            Others as `read`.
    """
    first_edits, second_edits = _listed(first_edits), _listed(second_edits)
    other_model = second_model or model
    if other is None and other_model is model and not first_edits and not second_edits:
        raise BadInput("both runs are the same: give other=, second_edits= or second_model=")
    _check_shapes(model, other_model)
    through = sight(model, lens, site, layers)
    sites, translate = through.sites, through.translate
    for place in sites:
        other_model.site(place)
    x = model.tokens(x)
    a = states_of(model, x, sites, positions, first_edits)
    b = states_of(other_model, x if other is None else other, sites, positions, second_edits)
    _check_aligned(a, b)
    # a measure's q is the lens and its p the reference: KL(first‖second) has the first run as the reference
    measures: dict[str, Measure] = {"kl": kl, "js": js, "tv": tv}
    seen = read_out(b.lens(translate), a.lens(translate), len(a), model.cfg.d_vocab, measures, top=1, quiet=quiet)
    first = a.read_out(translate, {}, top=1, quiet=quiet).top_ids[..., 0]
    second = seen.top_ids[..., 0]
    states = [(a.by_site[place].float().cpu(), b.by_site[place].float().cpu()) for place in sites]
    values = dict(seen.measures)
    values["cosine"] = torch.stack([torch.cosine_similarity(x, y, dim=-1) for x, y in states])
    values["distance"] = torch.stack([(x - y).norm(dim=-1) / x.norm(dim=-1) for x, y in states])
    values["agree"] = (first == second).float()
    spread = {name: a.spread(value) for name, value in values.items()}
    return Trajectory(
        model, sites, through.lens, a.tokens, a.chosen.cpu(), spread, b.tokens, a.spread(first), a.spread(second)
    )


def _check_shapes(model: Model, other: Model) -> None:
    """Raises `BadInput` for models whose states or predictions cannot be compared."""
    first, second = ((one.cfg.d_model, one.cfg.d_vocab) for one in (model, other))
    if first != second:
        raise BadInput(f"models of width and vocabulary {first} and {second} cannot be compared; they must agree")


def _check_aligned(a: States, b: States) -> None:
    """Raises `BadInput` for two runs whose cells are not the same tokens of the same rows."""
    if a.chosen.shape != b.chosen.shape or not torch.equal(a.chosen.cpu(), b.chosen.cpu()):
        lengths = [states.tokens.lengths.tolist() for states in (a, b)]
        raise BadInput(f"the runs do not align: rows of {lengths[0]} and of {lengths[1]} tokens; they must be the same")


def _listed(edits: EditLike | Iterable[EditLike]) -> list[EditLike]:
    return [edits] if hasattr(edits, "apply") else list(edits)  # type: ignore[arg-type, list-item]
