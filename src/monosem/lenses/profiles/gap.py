"""The token gap: how far each layer leans to one set of tokens over another, such as refusal against compliance."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput
from ...models import Layers, Model, Positions
from ...models.running.moment import EditLike
from ...plots import Figure
from ...results import analysis
from ...statistics import standard_error
from ..lookup import LensLike, sight
from ..measures import log_mass
from ..states import states_of
from .profile import Profile

Tokens = Sequence[str | int] | str | int


@dataclass(frozen=True, eq=False)
class TokenGap(Profile):
    """Log-odds of token set a over token set b, layer by layer.

    Attributes:
        a, b: the token ids of the sets.
        groups: name of a group of prompts -> `layer row` log P(a) - log P(b) in nats, mean over the row's tokens.
        masses: the same for log P(a) and log P(b), `set layer row`.
    """

    ranked_by: ClassVar[str | None] = "log_odds"

    a: list[int]
    b: list[int]
    groups: dict[str, Float[Tensor, "layer row"]] = field(repr=False)
    masses: dict[str, Float[Tensor, "set layer row"]] = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """One row a layer and group: mean log-odds with its standard error over prompts (NaN for a single one), and
        the mean probabilities of both sets with theirs (geometric means over the tokens of a row, where several are
        read)."""
        table = self.layer_table("group", {"log_odds": self.groups})
        for place, column in enumerate(("p_a", "p_b")):
            masses = [mass[place].exp() for mass in self.masses.values()]
            table[column] = torch.cat([mass.mean(-1) for mass in masses]).tolist()
            table[f"{column}_se"] = torch.cat([standard_error(mass) for mass in masses]).tolist()
        return table.assign(prompts=[odds.shape[1] for odds in self.groups.values() for _ in self.sites])

    def plot(self) -> Figure:
        """Mean log-odds over layers, one line a group, with standard errors."""
        sets = [
            " ".join(repr(self.model.str_token(i)) for i in ids[:3]) + ("…" if len(ids) > 3 else "")
            for ids in (self.a, self.b)
        ]
        title = self.title(f"log-odds of {sets[0]} over {sets[1]}")
        return self.plot_lines(self.groups, "log-odds (nats)", title, zero=True)


@analysis
def gap(
    model: Model,
    x: Any,
    a: Tokens,
    b: Tokens,
    *,
    site: str = "resid_post",
    layers: Layers = None,
    positions: Positions = "last",
    lens: LensLike = None,
    edits: EditLike | Iterable[EditLike] = (),
    quiet: bool = False,
) -> TokenGap:
    """log P(a) - log P(b) at every layer, for a group of prompts or several.

    Args:
        x: anything that `Model.run` takes, or groups of it by name: `{"harmful": [...], "harmless": [...]}`.
        a, b: texts of one token each, or ids. They may not overlap.
        positions: where to read, as in `Edit.at`; the mean is taken over a row's tokens.
        lens: None for the logit lens, "tuned", or any lens (as in `read`).

    Raises:
        BadInput: a text that is not one token, an empty set, a token in both sets, a prompt without a token at the
            positions. Others as `read`.
    """
    sets = [token_set(model, a), token_set(model, b)]
    if both := set(sets[0].tolist()) & set(sets[1].tolist()):
        raise BadInput(f"tokens in both sets: {', '.join(repr(model.str_token(i)) for i in sorted(both))}")
    through = sight(model, lens, site, layers)
    named = isinstance(x, Mapping) and not {"input_ids", "role"} & set(x)  # else it is a prompt itself
    groups = x if named else {"prompts": x}
    odds, masses = {}, {}
    for name, group in groups.items():
        states = states_of(model, group, through.sites, positions, edits)
        states.check_rows()
        measures = {0: log_mass(sets[0]), 1: log_mass(sets[1])}
        seen = states.read_out(through.translate, measures, quiet=quiet)
        mass = torch.stack([states.spread(seen.measures[i]) for i in (0, 1)])
        odds[str(name)] = (mass[0] - mass[1]).nanmean(-1)
        masses[str(name)] = mass.nanmean(-1)
    return TokenGap(model, through.sites, through.lens, sets[0].tolist(), sets[1].tolist(), odds, masses)


def token_set(model: Model, tokens: Tokens) -> Int[Tensor, "token"]:
    """Ids of texts of one token each, or of ids; each once.

    Raises:
        BadInput: no token, a text that is not one token, an id outside the vocabulary.
    """
    items = [tokens] if isinstance(tokens, str | int) else list(tokens)
    if not items:
        raise BadInput("a set of tokens is empty; give at least one")
    return torch.tensor(list(dict.fromkeys(map(model.to_single_token, items))))
