"""A map of latents: decoder rows of one or several dictionaries on a plane, and the clusters that they form."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import BadInput, Mismatch, check_name, require
from ..models.numbers import count
from ..results import Result, analysis

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Method = Literal["pca", "umap"]
METHODS = {"pca": "principal components", "umap": "UMAP"}
CLUSTER_DIMENSIONS, CLUSTER_DISTANCE = 10, 0.1  # of the space in which clusters are looked for
FEWEST = 20  # rows on a map
NOISE = -1  # the cluster of a row in none
CHUNK = 1024  # rows whose cosines with all others are held at once

Tell = Callable[[str], None]


@dataclass(frozen=True)
class DecoderMap(Result):
    """`table`, one row a latent: dictionary, latent, x, y (NaN for a row of zeros), cluster (0 the largest, -1 none).

    Attributes:
        explained: shares of the rows' variance along x and y (principal components alone).
    """

    rows: pd.DataFrame = field(repr=False)
    explained: tuple[float, float] | None = None
    config: Any = field(default_factory=dict, repr=False)

    @property
    def table(self) -> pd.DataFrame:
        return self.rows

    def cluster(self, number: int) -> pd.DataFrame:
        """The latents of one cluster. Raises `UnknownName`."""
        check_name("cluster", number, self.rows["cluster"].unique().tolist())
        return self.rows[self.rows["cluster"] == number][["dictionary", "latent"]].reset_index(drop=True)

    def plot(self) -> "Figure":
        """The map, coloured by cluster, or by dictionary where there are several; rows in no cluster are grey."""
        from plotly.express import scatter

        several = self.rows["dictionary"].nunique() > 1
        by = "dictionary" if several else "cluster"
        named = self.rows.assign(cluster=self.rows["cluster"].map(lambda c: "none" if c == NOISE else str(c)))
        figure = scatter(
            named, x="x", y="y", color=by, hover_data=["dictionary", "latent", "cluster"], render_mode="webgl"
        )
        figure.update_traces(marker={"size": 4})
        return figure.update_layout(showlegend=several)


@analysis
def decoder_map(
    dictionaries: Dictionary | Sequence[Dictionary],
    method: Method = "pca",
    *,
    names: Sequence[str] | None = None,
    clusters: bool = True,
    neighbours: int = 15,
    min_dist: float = 0.05,
    smallest: int = 5,
    seed: int = 0,
    tell: Tell | None = None,
) -> DecoderMap:
    """Decoder rows of length 1 on a plane that all dictionaries share, and their clusters.

    "pca" is linear, the same for everybody, and shows what varies most. "umap" (McInnes et al. 2018, arXiv:1802.03426;
    cosine distance, exact neighbours) keeps near rows together; how far apart its groups lie says nothing. Clusters are
    HDBSCAN's (Campello et al. 2013) in ten dimensions of the same method. The same seed gives the same map.

    Args:
        names: under which the dictionaries are told apart; default: their own.
        clusters: False leaves them out; then "pca" needs nothing beyond monosem.
        neighbours, min_dist: UMAP's: how local it is, and how tight points may lie.
        smallest: rows that make a cluster.
        tell: hears in words what is being done; an exception that it raises ends the work.

    Raises:
        MissingExtra: "umap" without umap-learn, clusters without scikit-learn. UnknownName: another method.
        Mismatch: rows of different length. BadInput: too few rows.
    """
    check_name("method", method, METHODS)
    dictionaries = [dictionaries] if isinstance(dictionaries, Dictionary) else list(dictionaries)
    names = told_apart(dictionaries, names)
    if len({one.d_out for one in dictionaries}) > 1:
        sizes = ", ".join(f"{name} {one.d_out}" for name, one in zip(names, dictionaries))
        raise Mismatch(f"rows of different length share no map ({sizes}): name dictionaries of one space")
    neighbours, smallest = count(neighbours, "neighbours"), count(smallest, "smallest")
    rows = torch.cat([unit_rows(one) for one in dictionaries])
    kept = rows.any(1)
    if int(kept.sum()) < max(FEWEST, neighbours + 1):
        raise BadInput(
            f"{int(kept.sum())} decoder rows are too few for a map: {max(FEWEST, neighbours + 1)} are needed"
        )
    say = tell or (lambda words: None)
    laid = _Layout(rows[kept], method, neighbours, seed, say)
    flat, explained = laid.places(2, min_dist)
    groups = np.full(len(flat), NOISE)
    if clusters:
        wide, _ = laid.places(min(CLUSTER_DIMENSIONS, rows.shape[1]), CLUSTER_DISTANCE)
        say("looking for clusters")
        groups = clusters_of(wide, smallest)
    return DecoderMap(_table(names, [one.width for one in dictionaries], kept.numpy(), flat, groups), explained)


def _table(names: list[str], widths: list[int], kept: np.ndarray, flat: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    """A row a latent, from the places and clusters of the rows that were laid out."""
    numbers = np.concatenate([np.arange(width) for width in widths])
    table = pd.DataFrame({"dictionary": np.repeat(names, widths), "latent": numbers})
    for name, values, none in (("x", flat[:, 0], np.nan), ("y", flat[:, 1], np.nan), ("cluster", groups, NOISE)):
        column = np.full(len(kept), none, dtype=values.dtype)
        column[kept] = values
        table[name] = column
    return table


def told_apart(dictionaries: Sequence[Dictionary], names: Sequence[str] | None) -> list[str]:
    """A name for each dictionary. Raises `BadInput` for none, and for two with the same name."""
    found = [one.name for one in dictionaries] if names is None else list(names)
    if not dictionaries or len(found) != len(dictionaries):
        raise BadInput(
            f"there are {len(dictionaries)} dictionaries and {len(found)} names: give one or more, with one each"
        )
    if twice := {one for one in found if found.count(one) > 1}:
        raise BadInput(f"two dictionaries are called {twice.pop()!r}: give names= that tell them apart")
    return found


def unit_rows(dictionary: Dictionary) -> Float[Tensor, "width d"]:
    """Decoder rows of length 1; a row of zeros stays one."""
    rows = dictionary.W_dec.detach().float().cpu()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def principal(
    rows: Float[Tensor, "n d"], components: int
) -> tuple[Float[np.ndarray, "n components"], Float[np.ndarray, "components"]]:
    """Scores on the first principal components, and their shares of the variance. The entry of a component that is
    largest in magnitude is positive, so that the map does not turn over."""
    centred = (rows - rows.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors[:, -components:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    shares = values.flip(0)[:components] / values.sum().clamp_min(1e-30)
    return (centred @ axes).float().numpy(), shares.numpy()


def nearest(rows: Float[Tensor, "n d"], k: int) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Of rows of length 1: each one's k nearest by cosine, itself the first, with the distances 1 - cosine."""
    ids, distances = [], []
    for start in range(0, len(rows), CHUNK):
        cosines = rows[start : start + CHUNK] @ rows.T
        own = torch.arange(len(cosines))
        cosines[own, start + own] = 2.0  # itself comes first, before rows that are the same
        best = cosines.topk(k, dim=1)
        ids.append(best.indices)
        distances.append((1 - best.values.clamp_max(1.0)).clamp_min(0))
    return torch.cat(ids).int().numpy(), torch.cat(distances).numpy()


def clusters_of(places: Float[np.ndarray, "n k"], smallest: int) -> Int[np.ndarray, "n"]:
    """HDBSCAN's clusters, numbered by size, the largest 0; -1 is none. Raises `MissingExtra`."""
    cluster = require("sklearn.cluster", "maps")
    found = cluster.HDBSCAN(min_cluster_size=max(smallest, 2), copy=True).fit(places.astype(np.float64)).labels_
    numbers, first, sizes = np.unique(found[found >= 0], return_index=True, return_counts=True)
    renamed = np.full(len(numbers) + 1, NOISE)  # the last stands for -1
    renamed[numbers[np.lexsort((first, -sizes))]] = np.arange(len(numbers))
    return renamed[found]


@dataclass
class _Layout:
    rows: Float[Tensor, "n d"]
    method: str
    neighbours: int
    seed: int
    say: Tell
    near: Any = None

    def places(self, dimensions: int, min_dist: float) -> tuple[np.ndarray, tuple[float, float] | None]:
        if self.method == "pca":
            self.say(f"{dimensions} principal components of {len(self.rows):,} rows")
            scores, shares = principal(self.rows, dimensions)
            return scores, (float(shares[0]), float(shares[1]))
        if self.near is None:
            self.say("loading UMAP (the first time, it is compiled)")
            require("umap", "maps")
            self.say(f"the nearest of {len(self.rows):,} rows")
            self.near = (*nearest(self.rows, self.neighbours), None)
        return self._umap(dimensions, min_dist), None

    def _umap(self, dimensions: int, min_dist: float) -> np.ndarray:
        self.say(f"UMAP in {dimensions} dimensions")
        made = require("umap", "maps").UMAP(
            n_components=dimensions,
            n_neighbors=self.neighbours,
            min_dist=min_dist,
            metric="cosine",
            init="pca",
            random_state=self.seed,
            n_jobs=1,  # more give another map each time
            precomputed_knn=self.near,
            force_approximation_algorithm=True,  # else it ignores the neighbours of fewer than 4,096 rows
            tqdm_kwds={
                "disable": False,
                "file": _Heard(self.say, dimensions),
                "bar_format": "{n_fmt} of {total_fmt}",
                "mininterval": 0.5,
            },
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot place new rows, which nobody asks for
            return np.asarray(made.fit_transform(self.rows.numpy()))


class _Heard:
    """The file that a progress bar writes to: its words go to `tell`, and what `tell` raises ends the work."""

    def __init__(self, say: Tell, dimensions: int):
        self.say, self.dimensions = say, dimensions

    def write(self, text: str) -> None:
        if words := text.strip():
            self.say(f"UMAP in {self.dimensions} dimensions: {words} rounds")

    def flush(self) -> None:
        pass
