"""How latents split: which latent of a narrow dictionary each one of a wider comes from, and what chance would give."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..covariance import same_covariance
from ..dictionaries import Dictionary
from ..dictionaries.codes import latent_ids
from ..errors import BadInput, Mismatch, check_name
from ..results import Result, analysis
from ..statistics import wilson
from .maps import told_apart, unit_rows

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

THRESHOLD = 0.7  # of the cosine, from which on a latent counts as another one's child
NULL_QUANTILE = 0.99
CHUNK = 2048
COLUMNS = ["dictionary", "width", "latent", "narrower", "parent", "cosine", "p", "child"]


class Place(NamedTuple):
    """A latent of one of the dictionaries."""

    dictionary: str
    latent: int


@dataclass(frozen=True)
class Splitting(Result):
    """`table`, one row a latent of every dictionary but the narrowest.

    Columns: dictionary; width; latent; narrower, the dictionary next to it in width; parent, its nearest latent there;
    cosine of both decoder rows; p, how often a random row has as near a one; child, cosine >= threshold.

    Attributes:
        names, widths: the dictionaries, narrow ones first.
        shares: one row a pair: narrower, dictionary, share (of latents with a parent), low, high (Wilson's 95 %),
            null_share (of random rows with one), null_99 (the 99th percentile of their best cosines), split (latents of
            the narrower one with two children or more), childless.
    """

    rows: pd.DataFrame = field(repr=False)
    shares: pd.DataFrame = field(repr=False)
    names: tuple[str, ...]
    widths: tuple[int, ...]
    threshold: float
    config: Any = field(default_factory=dict, repr=False)

    @property
    def table(self) -> pd.DataFrame:
        return self.rows

    @cached_property
    def _parents(self) -> dict[Place, tuple[Place, float]]:
        kept = self.rows[self.rows["child"]]
        columns = (kept[name].tolist() for name in ("dictionary", "latent", "narrower", "parent", "cosine"))
        return {Place(d, i): (Place(e, j), cosine) for d, i, e, j, cosine in zip(*columns)}

    @cached_property
    def _children(self) -> dict[Place, list[Place]]:
        found: dict[Place, list[Place]] = {}
        for child, (parent, _) in sorted(self._parents.items(), key=lambda one: -one[1][1]):
            found.setdefault(parent, []).append(child)
        return found

    def family(self, dictionary: str, latent: int) -> dict[str, Any]:
        """The tree that a latent is in, from its first ancestor down: {dictionary, latent, cosine (with its parent;
        None at the root), asked (whether it is this latent), children}, the nearest children first.

        Raises:
            UnknownName: no such dictionary, or latent.
        """
        check_name("dictionary", dictionary, self.names)
        latent_ids(latent, self.widths[self.names.index(dictionary)])
        asked = root = Place(dictionary, int(latent))
        while root in self._parents:
            root = self._parents[root][0]
        return self._below(root, asked)

    def _below(self, place: Place, asked: Place) -> dict[str, Any]:
        cosine = self._parents[place][1] if place in self._parents else None
        children = [self._below(child, asked) for child in self._children.get(place, [])]
        return {**place._asdict(), "cosine": cosine, "asked": place == asked, "children": children}

    def splits(self, n: int = 20) -> pd.DataFrame:
        """The latents of the narrowest dictionary with the most descendants: latent, children, descendants."""
        counted = [
            (i, len(self._children.get(Place(self.names[0], i), [])), self._descendants(Place(self.names[0], i)))
            for i in range(self.widths[0])
        ]
        table = pd.DataFrame(counted, columns=["latent", "children", "descendants"])
        return table.sort_values("descendants", ascending=False, kind="stable", ignore_index=True).head(n)

    def _descendants(self, place: Place) -> int:
        return sum(1 + self._descendants(child) for child in self._children.get(place, []))

    def plot(self) -> "Figure":
        """How near each latent's nearest one in the narrower dictionary is; the threshold as a line."""
        from plotly.express import histogram

        figure = histogram(self.rows, x="cosine", color="dictionary", barmode="overlay", nbins=60)
        return figure.add_vline(x=self.threshold, line_dash="dot")


@analysis
@torch.no_grad()
def splitting(
    dictionaries: Sequence[Dictionary],
    *,
    names: Sequence[str] | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> Splitting:
    """The family tree of latents across dictionaries of one site: each latent's parent is the latent of the next
    narrower dictionary with the nearest decoder row, where their cosine reaches the threshold.

    Latents that split in wider dictionaries: Bricken et al. (2023, Towards Monosemanticity). A best match always
    exists, so each pair has a null: as many random rows with the mean and covariance of the wider dictionary's.

    Args:
        names: under which the dictionaries are told apart; default: their own.

    Raises:
        BadInput: fewer than two dictionaries, two of one name, or a threshold outside 0 to 1.
        Mismatch: of different sites or models.
    """
    found = list(zip(dictionaries, told_apart(dictionaries, names)))
    order = sorted(found, key=lambda one: one[0].width)
    _check([one for one, _ in order], threshold)
    parts, shares = [], []
    for (narrow, above_name), (wide, name) in pairwise(order):
        above, below = unit_rows(narrow), unit_rows(wide)
        cosine, parent = best_match(below, above)
        drawn = same_covariance(below, seed)
        null = best_match(drawn / drawn.norm(dim=1, keepdim=True).clamp_min(1e-30), above)[0].sort().values
        at_least = len(null) - torch.searchsorted(null, cosine)
        child = cosine >= threshold
        columns = {"latent": torch.arange(wide.width), "parent": parent, "cosine": cosine, "child": child}
        columns |= {"p": (1 + at_least) / (1 + len(null))}
        part = pd.DataFrame({column: values.numpy() for column, values in columns.items()})
        parts.append(part.assign(dictionary=name, width=wide.width, narrower=above_name)[COLUMNS])
        families = parent[child].bincount(minlength=narrow.width)
        shares.append(
            {
                "narrower": above_name,
                "dictionary": name,
                **dict(zip(("share", "low", "high"), wilson(int(child.sum()), wide.width))),
                "null_share": float((null >= threshold).float().mean()),
                "null_99": float(null.quantile(NULL_QUANTILE)),
                "split": int((families > 1).sum()),
                "childless": int((families == 0).sum()),
            }
        )
    known = tuple(name for _, name in order), tuple(one.width for one, _ in order)
    return Splitting(pd.concat(parts, ignore_index=True), pd.DataFrame(shares), *known, threshold)


def best_match(
    rows: Float[Tensor, "n d"], among: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Of rows of length 1: each one's largest cosine with `among`, and with which row."""
    found = [(chunk @ among.T).max(1) for chunk in rows.split(CHUNK)]
    return torch.cat([one.values for one in found]).clamp(-1, 1), torch.cat([one.indices for one in found])


def _check(order: Sequence[Dictionary], threshold: float) -> None:
    if len(order) < 2:
        raise BadInput("a family needs two dictionaries or more of one site, of different widths")
    if not 0 < threshold <= 1:
        raise BadInput(f"threshold is a cosine above 0, up to 1, not {threshold}")
    sites = {f"{one.site_out} of {one.model_name}" for one in order}
    if len(sites) > 1:
        raise Mismatch(f"a family is of one site of one model, not {', '.join(sorted(sites))}")
