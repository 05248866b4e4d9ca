"""Do names that follow each other in a circle (weekdays, months) lie on a circle in activations, in their order?

After Engels et al. (2024, Not All Language Model Features Are One-Dimensionally Linear, arXiv:2405.14860), who found
circles of weekdays and months by principal components of what clusters of latents write. The statistic and its null are
ours: a plane that is chosen to look round looks round for any names, so every choice is made again for every order.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..dictionaries import Dictionary
from ..dictionaries.codes import latent_ids
from ..errors import BadInput, check_name
from ..models import Model, Site
from ..models.numbers import count
from ..results import Result, analysis

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CYCLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "weekdays": (
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        (
            "The next meeting will be on",
            "It rained all day last",
            "The shop in our street is closed every",
            "She was born on a",
            "My favourite day of the week is",
            "The deadline was moved to",
            "We will see each other again on",
            "They got married on a sunny",
            "The train to the coast leaves on",
            "He always calls his mother on",
            "The letter was written on a",
            "The new film opens this",
        ),
    ),
    "months": (
        (
            *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
            *("November", "December"),
        ),
        (
            "She was born in",
            "The new school opens in",
            "It was the coldest night of",
            "We travelled to Italy last",
            "The contract ends in",
            "My favourite month of the year is",
            "The festival takes place every",
            "They moved to the city in",
            "The war ended in",
            "The garden is at its best in",
            "He will come back in",
            "The first snow fell in early",
        ),
    ),
}
EXACT = 8  # names up to which all orders are gone through
COMPONENTS = 5  # principal components of which planes are made
OFTEN, SELDOM = 0.5, 0.05  # of its name's texts a latent of the cluster fires in; of other tokens, at most
BATCH = 64


class Arrangement(NamedTuple):
    """How names lie. power: share of their variance in the first harmonic of their order (a circle or a line along it);
    circularity: twice the smaller of its two axes, as a share of all variance: 1 for a circle, 0 for a line."""

    power: float
    circularity: float


@dataclass(frozen=True)
class Cycle(Result):
    """`table`, one row for all dimensions ("all") and one for each plane of two principal components ("1-2", ...).

    Columns: seen ("stream", or "latents": what a cluster of latents writes); space; variance, its share of the names'
    variance; power and circularity (`Arrangement`); p: how often another order of the names has at least that
    circularity, and p_best: of planes, how often the best plane of another order has.

    Attributes:
        points: one row a text: seen, name, template, x, y, in the plane with the largest circularity.
        latents: the cluster.
        orders: how many orders the null has, and whether these are all.
    """

    rows: pd.DataFrame = field(repr=False)
    points: pd.DataFrame = field(repr=False)
    names: tuple[str, ...]
    latents: tuple[int, ...]
    orders: tuple[int, bool]
    config: Any = field(default_factory=dict, repr=False)

    @property
    def table(self) -> pd.DataFrame:
        return self.rows

    def plot(self, seen: str = "stream") -> "Figure":
        """Every text in the best plane, and the names' means, joined in their order."""
        from plotly.graph_objects import Figure, Scatter

        check_name("view", seen, self.points["seen"].unique().tolist())
        points = self.points[self.points["seen"] == seen]
        means = points.groupby("name")[["x", "y"]].mean().loc[[*self.names, self.names[0]]]
        figure = Figure()
        for name in self.names:
            own = points[points["name"] == name]
            figure.add_trace(Scatter(x=own["x"], y=own["y"], text=own["template"], mode="markers", name=name))
        line = Scatter(x=means["x"], y=means["y"], mode="lines+text", text=[*self.names, ""], name="means")
        return figure.add_trace(line).update_yaxes(scaleanchor="x")


@analysis
@torch.no_grad()
def cycle(
    model: Model,
    dictionary: Dictionary,
    names: str | Sequence[str] = "weekdays",
    *,
    templates: Sequence[str] | None = None,
    latents: Sequence[int] | Tensor | None = None,
    site: Site | str | None = None,
    permutations: int = 10_000,
    seed: int = 0,
) -> Cycle:
    """Whether names lie on a circle in their order, in the stream and in what a cluster of latents writes.

    Every name ends every template; activations are read at its last token, less the template's mean over names. Planes
    are of principal components of these. The null orders the names anew (all orders of up to eight names), and looks
    for its best plane again.

    Args:
        names: "weekdays" or "months", or names in their order; then with `templates` that they end.
        latents: of the cluster. Default: those that fire in at least half of the texts of a name, and at 5 % or fewer
            of the other tokens. Neither looks at the order.
        site: where activations are read; default: the dictionary's. The cluster is of its own site alone.

    Raises:
        BadInput: fewer than five names, or two templates, or names without templates. UnknownName: another cycle.
        Mismatch: a dictionary of another model.
    """
    dictionary.check(model)
    named, given = _asked(names, templates)
    read = Site.parse(site) if isinstance(site, str) else site or dictionary.site
    x, elsewhere = _activations(model, named, given, read)
    views = {"stream": x}
    cluster: list[int] = []
    if read == dictionary.site and not dictionary.transcoder:
        codes = dictionary.encode(x.flatten(0, 1)).dense().float().view(*x.shape[:2], -1)
        cluster = (
            _cluster(dictionary, codes, elsewhere) if latents is None else latent_ids(latents, codes.shape[2]).tolist()
        )
        if cluster:
            views["latents"] = codes[..., cluster] @ dictionary.decoder_rows(cluster).float()
    elif latents is not None:
        raise BadInput(f"latents of {dictionary.name} are of {dictionary.site}: leave site= or latents= out")
    orders, every = _orders(len(named), count(permutations, "permutations"), seed)
    rows, points = [], []
    for seen, values in views.items():
        found, places = _measured(values.double().cpu(), orders, every)
        rows += [{"seen": seen, **row} for row in found]
        points += [
            (seen, name, template, *places[i, j].tolist())
            for i, name in enumerate(named)
            for j, template in enumerate(given)
        ]
    drawn = pd.DataFrame(points, columns=["seen", "name", "template", "x", "y"])
    return Cycle(pd.DataFrame(rows), drawn, tuple(named), tuple(cluster), (len(orders), every))


def arrangement(gram: Float[Tensor, "*orders n n"]) -> tuple[Float[Tensor, "*orders"], Float[Tensor, "*orders"]]:
    """(power, circularity) of centred places in their order, from their inner products.

    The first harmonic: places on cos and sin of the angles 2πk/n, as a matrix of two rows; both are sums of its squared
    singular values, which no rotation of space changes.
    """
    n = gram.shape[-1]
    angle = 2 * math.pi * torch.arange(n, dtype=gram.dtype) / n
    waves = torch.stack([angle.cos(), angle.sin()]) * math.sqrt(2 / n)
    inner = waves @ gram @ waves.T
    total = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-30)
    half, apart = (inner[..., 0, 0] + inner[..., 1, 1]) / 2, (inner[..., 0, 0] - inner[..., 1, 1]) / 2
    smaller = half - (apart.square() + inner[..., 0, 1].square()).sqrt()
    return 2 * half / total, 2 * smaller.clamp_min(0) / total


def _asked(names: str | Sequence[str], templates: Sequence[str] | None) -> tuple[list[str], list[str]]:
    if isinstance(names, str):
        check_name("cycle", names, CYCLES)
        own, usual = CYCLES[names]
        named, given = list(own), list(templates or usual)
    else:
        named, given = list(names), list(templates or ())
    if len(set(named)) < 5 or len(set(named)) < len(named):
        raise BadInput(f"a circle needs five different names or more, in their order, not {', '.join(named) or 'none'}")
    if len(given) < 2:
        raise BadInput("give templates=: two texts or more that each name ends")
    return named, given


def _activations(
    model: Model, names: Sequence[str], templates: Sequence[str], site: Site
) -> tuple[Float[Tensor, "names templates d"], Float[Tensor, "n d"]]:
    """At the last token of every text; and at the templates' own tokens but the first."""
    texts = [f"{template} {name}" for name in names for template in templates]
    x = [model.run(texts[i : i + BATCH], capture=[site], logits=False).last(site) for i in range(0, len(texts), BATCH)]
    elsewhere = []
    for template in templates:
        elsewhere.append(model.run(template, capture=[site], logits=False)[site][0, 1:])
    flat = torch.cat(x).flatten(1)
    return flat.view(len(names), len(templates), -1), torch.cat(elsewhere).flatten(1)


def _cluster(dictionary: Dictionary, codes: Float[Tensor, "names templates width"], elsewhere: Tensor) -> list[int]:
    """Latents of the names: they fire at one of them in most texts, and hardly at other tokens."""
    here = (codes != 0).float().mean(1).amax(0)
    there = (dictionary.encode(elsewhere).dense() != 0).float().mean(0)
    return ((here >= OFTEN) & (there <= SELDOM)).nonzero()[:, 0].tolist()


def _orders(n: int, permutations: int, seed: int) -> tuple[Int[np.ndarray, "orders n"], bool]:
    """Orders of n names that differ as circles: the first name stays. All of them for few names; the given one is one
    of these, and is not among those that are drawn."""
    if n <= EXACT:
        return np.array([(0, *rest) for rest in itertools.permutations(range(1, n))]), True
    rng = np.random.default_rng(seed)
    return np.array([(0, *(1 + rng.permutation(n - 1))) for _ in range(permutations)]), False


def _measured(
    x: Float[Tensor, "names templates d"], orders: Int[np.ndarray, "orders n"], every: bool
) -> tuple[list[dict[str, Any]], Float[Tensor, "names templates 2"]]:
    centred = x - x.mean(0)
    flat = centred.flatten(0, 1)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    scores = centred @ axes[: min(COMPONENTS, len(axes))].T
    means = centred.mean(1)
    spaces = {"all": means @ means.T}
    for i, j in itertools.combinations(range(scores.shape[2]), 2):
        plane = scores[..., [i, j]].mean(1)
        spaces[f"{i + 1}-{j + 1}"] = plane @ plane.T
    order = torch.as_tensor(orders)
    nulls = {name: arrangement(gram[order[:, :, None], order[:, None, :]])[1] for name, gram in spaces.items()}
    best = torch.stack([null for name, null in nulls.items() if name != "all"]).amax(0)
    total = spaces["all"].trace().clamp_min(1e-30)
    rows = []
    for name, gram in spaces.items():
        own = Arrangement(*(float(value) for value in arrangement(gram)))
        p_best = math.nan if name == "all" else _p(own.circularity, best, every)
        row = {"space": name, "variance": float(gram.trace() / total), **own._asdict()}
        rows.append(row | {"p": _p(own.circularity, nulls[name], every), "p_best": p_best})
    chosen = max(rows[1:], key=lambda row: row["circularity"])["space"]
    i, j = (int(part) - 1 for part in chosen.split("-"))
    return rows, scores[..., [i, j]]


def _p(observed: float, null: Float[Tensor, "orders"], every: bool) -> float:
    """The share of orders with at least as much; the given order counts, and is among all orders already."""
    hits = int((null >= observed - 1e-9).sum())
    return hits / len(null) if every else (1 + hits) / (1 + len(null))
