"""The token gap: how far each layer leans to one set of tokens over another, such as refusal against compliance."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput
from ...files import write_result
from ...models import Model, Positions, Site
from ...models.running.moment import EditLike
from ...statistics import standard_error
from ..figures import as_numbers, profile_figure
from ..states import capture, log_mass, sites_at, stream
from ..tuned.lens import LensLike, translate_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Tokens = Sequence[str | int] | str | int


@dataclass(frozen=True, eq=False)
class TokenGap:
    """Log-odds of token set a over token set b, layer by layer.

    Attributes:
        a, b: the token ids of the sets.
        groups: name of a group of prompts -> `layer row` log P(a) - log P(b) in nats, mean over the row's tokens.
        masses: the same for log P(a) and log P(b), `set layer row`.
    """

    model: Model = field(repr=False)
    sites: list[Site]
    a: list[int]
    b: list[int]
    groups: dict[str, Float[Tensor, "layer row"]] = field(repr=False)
    masses: dict[str, Float[Tensor, "set layer row"]] = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """One row a layer and group: mean log-odds with its standard error over prompts (NaN for a single one), and
        the mean probabilities of both sets (geometric means over the tokens of a row, where several are read)."""
        rows = []
        for name, odds in self.groups.items():
            error = standard_error(odds)
            mass = self.masses[name].exp().mean(-1)
            rows += [
                {
                    "group": name,
                    "site": str(site),
                    "layer": site.layer,
                    "log_odds": float(odds[i].mean()),
                    "se": float(error[i]),
                    "p_a": float(mass[0, i]),
                    "p_b": float(mass[1, i]),
                    "prompts": odds.shape[1],
                }
                for i, site in enumerate(self.sites)
            ]
        return pd.DataFrame(rows)

    def plot(self) -> "Figure":
        """Mean log-odds over layers, one line a group, with standard errors."""
        curves = {}
        for name, odds in self.groups.items():
            error = as_numbers(standard_error(odds)) if odds.shape[1] > 1 else None
            curves[name] = (as_numbers(odds.mean(-1)), error)
        sets = [
            " ".join(repr(self.model.str_token(i)) for i in ids[:3]) + ("…" if len(ids) > 3 else "")
            for ids in (self.a, self.b)
        ]
        title = f"log-odds of {sets[0]} over {sets[1]}"
        return profile_figure(curves, self.sites, "log-odds (nats)", title, zero=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The picture (.html) or the table (.csv, .json, .parquet)."""
        return write_result(path, self.table, self.plot)


def gap(
    model: Model,
    prompts: Any,
    a: Tokens,
    b: Tokens,
    site: str = "resid_post",
    layers: Sequence[int] | int | None = None,
    positions: Positions | None = "last",
    lens: LensLike = None,
    edits: EditLike | Iterable[EditLike] = (),
    quiet: bool = False,
) -> TokenGap:
    """log P(a) - log P(b) at every layer, for a group of prompts or several.

    Args:
        prompts: anything that `Model.run` takes, or groups of it by name: `{"harmful": [...], "harmless": [...]}`.
        a, b: texts of one token each, or ids. They may not overlap.
        positions: where to read, as in `Edit.at`; the mean is taken over a row's tokens.
        lens: None for the logit lens, "tuned", or any lens (`translate_of`).

    Raises:
        BadInput: a text that is not one token, an empty set, a token in both sets, a prompt without a token at the
            positions. Others as `logit`.
    """
    sets = [token_set(model, a), token_set(model, b)]
    if both := set(sets[0].tolist()) & set(sets[1].tolist()):
        raise BadInput(f"tokens in both sets: {', '.join(repr(model.str_token(i)) for i in sorted(both))}")
    sites, translate = sites_at(model, site, layers), translate_of(model, lens)
    groups = prompts if isinstance(prompts, Mapping) else {"prompts": prompts}
    odds, masses = {}, {}
    for name, group in groups.items():
        states = capture(model, group, sites, positions, edits)
        states.check_rows()
        measures = {0: log_mass(sets[0]), 1: log_mass(sets[1])}
        seen = stream(states.lens(translate), states.prediction, len(states), model.cfg.d_vocab, measures, quiet=quiet)
        mass = torch.stack([states.spread(seen.measures[i]) for i in (0, 1)])
        odds[str(name)] = (mass[0] - mass[1]).nanmean(-1)
        masses[str(name)] = mass.nanmean(-1)
    return TokenGap(model, sites, sets[0].tolist(), sets[1].tolist(), odds, masses)


def token_set(model: Model, given: Tokens) -> Int[Tensor, "token"]:
    """Ids of texts of one token each, or of ids; each once.

    Raises:
        BadInput: none, a text that is not one token, an id outside the vocabulary.
    """
    items = [given] if isinstance(given, str | int) else list(given)
    if not items:
        raise BadInput("a set of tokens is empty; give at least one")
    return torch.tensor(list(dict.fromkeys(map(model.to_single_token, items))))
