"""Methods that find a direction between two classes of activations: one table, `METHODS`.

The rows of `Sample` are activations; μ₁, μ₀ are means of the positive and the negative class, δ = μ₁ - μ₀, and D the
differences of pairs. A method returns float64. Axes without a sign are oriented by δ (`Sample.oriented`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..covariance import SMALLEST, Covariance, Shrinkage
from ..errors import BadInput, UnknownName, did_you_mean
from ..logistic import logistic_paths
from .sample import SAME, Sample

Vector = Float[Tensor, "d"]
Needs = Literal["means", "scatter", "pairs", "rows", "paired rows", "background"]
WEISZFELD = 200  # steps at most


class Found(NamedTuple):
    """What a method found.

    Attributes:
        vector: what is added to steer. read: what is multiplied with to detect, where that is another vector.
        basis: orthonormal rows of a subspace, `k d`, where several directions were asked for.
        centre: the mean of all rows, around which an erasure acts.
    """

    vector: Vector
    read: Vector | None = None
    basis: Float[Tensor, "k d"] | None = None
    centre: Vector | None = None


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        needs: "means": of the classes; "scatter": also how rows lie around them; "pairs": the scatter of differences;
            "rows", "paired rows": the rows themselves, which are then kept (one for each prompt and place, float32);
            "background": the mean of a broad corpus.
        several: whether it takes `k`.
        formula: in a line.
        erases: what is found is an eraser (`edits.erase`, `Direction.erased`), not a vector to add.
    """

    find: Callable[[Sample], Found]
    needs: Needs
    formula: str
    several: bool = False
    erases: bool = False

    @property
    def paired(self) -> bool:
        return self.needs in ("pairs", "paired rows")


def method(name: str) -> Method:
    """The row of this name. Raises `UnknownName`; the names of other tools are said in ours."""
    if name in ELSEWHERE:
        raise UnknownName(f"method {name!r}: {ELSEWHERE[name]}")
    if name not in METHODS:
        near = did_you_mean(name, METHODS) or f"; there are {', '.join(map(repr, METHODS))}"
        raise UnknownName(f"no method {name!r}{near}")
    return METHODS[name]


# ---------------------------------------------------------------------- means
def _dim(sample: Sample) -> Found:
    return Found(sample.delta)


def _mean_centred(sample: Sample) -> Found:
    assert sample.background is not None
    return Found(sample.positive.mean - sample.background.mean)


def _projected(sample: Sample) -> Found:
    along = sample.negative.mean / sample.negative.mean.norm().clamp(min=1e-300)
    rest = sample.delta - (sample.delta @ along) * along
    if float(rest.norm()) <= SAME * float(sample.delta.norm()):
        raise BadInput("the difference of means lies along the negative mean: nothing is left of it; use method 'dim'")
    return Found(rest)


def _median(sample: Sample) -> Found:
    assert sample.rows is not None
    up, down = map(geometric_median, sample.rows)
    if float((up - down).norm()) <= SAME * float(up.norm().maximum(down.norm())):
        raise BadInput("the activations of both classes have the same median: there is no direction between them")
    return Found(up - down)


def geometric_median(rows: Float[Tensor, "n d"]) -> Vector:
    """The point with the least sum of distances to the rows (Weiszfeld 1937; Vardi & Zhang 2000 at a row itself)."""
    rows = rows.double()
    point, scale = rows.mean(0), float((rows - rows.mean(0)).norm(dim=1).mean())
    for _ in range(WEISZFELD):
        steps = rows - point
        distance = steps.norm(dim=1)
        here = distance <= 1e-12 * scale
        weights = torch.where(here, 0.0, 1 / distance.clamp(min=1e-300))
        if float(weights.sum()) == 0:
            break
        pull = (weights[:, None] * steps).sum(0)
        share = max(0.0, 1 - int(here.sum()) / max(float(pull.norm()), 1e-300)) if bool(here.any()) else 1.0
        move = share * pull / weights.sum()
        point = point + move
        if float(move.norm()) <= 1e-10 * scale:
            break
    return point


# ---------------------------------------------------------------------- principal components
def _first(root: Float[Tensor, "r d"], k: int = 1) -> Float[Tensor, "k d"]:
    """The k axes of largest scatter. Raises `BadInput` where there is less scatter than that."""
    _, singular, axes = torch.linalg.svd(root, full_matrices=False)
    if k > len(singular) or float(singular[k - 1]) <= SMALLEST * float(root.abs().amax()) or not bool(root.any()):
        raise BadInput(
            f"{k} principal component{'s' * (k > 1)} of rows that do not vary enough (one pair, or equal differences): "
            "use method 'dim', or more prompts"
        )
    return axes[:k]


def _pca_pairs(sample: Sample) -> Found:
    assert sample.differences is not None
    return Found(sample.oriented(_first(sample.differences.uncentred)[0]))


def _svd(sample: Sample) -> Found:
    assert sample.differences is not None
    return _several(sample, _first(sample.differences.uncentred, sample.k))


def _pca_global(sample: Sample) -> Found:
    root = sample.total.root
    assert root is not None
    return Found(sample.oriented(_first(root)[0]))


def _lat(sample: Sample) -> Found:
    assert sample.rows is not None
    rows, generator = torch.cat(sample.rows).double(), torch.Generator().manual_seed(sample.seed)
    first, second = rows[torch.randperm(len(rows), generator=generator)][: len(rows) // 2 * 2].chunk(2)
    differences = first - second
    lengths = differences.norm(dim=1, keepdim=True)
    units = torch.where(lengths > 0, differences / lengths.clamp(min=1e-300), 0.0)
    return Found(sample.oriented(_first(_spread(units))[0]))


def _repe(sample: Sample) -> Found:
    assert sample.rows is not None
    generator = torch.Generator().manual_seed(sample.seed)
    differences = sample.rows[0].double() - sample.rows[1].double()
    signs = torch.randint(0, 2, (len(differences), 1), generator=generator) * 2 - 1
    return _several(sample, _first(_spread(signs * differences), sample.k))


def _spread(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The rows less their mean; zeros where that is all they are."""
    centred = rows - rows.mean(0)
    return torch.where(centred.abs() > SAME * rows.abs().amax(), centred, 0.0)


def _several(sample: Sample, axes: Float[Tensor, "k d"]) -> Found:
    return Found(sample.oriented(axes[0]), basis=axes if len(axes) > 1 else None)


# ---------------------------------------------------------------------- covariance
def _lda(sample: Sample) -> Found:
    covariance = Covariance.of(*sample.within)
    return Found(sample.delta, read=covariance.solve(sample.delta), centre=_middle(sample))


def _leace(sample: Sample) -> Found:
    return _erasure(sample, "none")


def _leace_shrunk(sample: Sample) -> Found:
    return _erasure(sample, "oas")


def _erasure(sample: Sample, shrinkage: Shrinkage) -> Found:
    """r(x) = x - δ · read·(x - μ) with read = Σ⁻¹δ / (δᵀΣ⁻¹δ) has no class gap, whatever Σ is.

    There is no threshold on how much the label says: of a rare label, or one in small units, everything is erased.
    """
    total = sample.total
    assert total.root is not None
    read = Covariance.of(total.root, total.n, shrinkage).solve(sample.delta)
    return Found(sample.delta, read=read / (sample.delta @ read), centre=total.mean)


def _orthogonal(sample: Sample) -> Found:
    return Found(sample.delta, read=sample.delta / (sample.delta @ sample.delta), centre=sample.total.mean)


def _middle(sample: Sample) -> Vector:
    return (sample.positive.mean + sample.negative.mean) / 2


# ---------------------------------------------------------------------- logistic regression
def _logistic(sample: Sample) -> Found:
    assert sample.rows is not None
    rows = torch.cat(sample.rows).double()
    scale = rows.std(0, unbiased=False)
    scale = torch.where(scale > 0, scale, 1.0)  # a constant dimension says nothing, and has weight 0
    read = sample.oriented(_weights((rows - rows.mean(0)) / scale, len(sample.rows[0])) / scale)
    covariance = Covariance.of(*((m := sample.total).root, m.n), "none")  # type: ignore[arg-type]
    return Found(sample.oriented(covariance @ read), read=read, centre=_middle(sample))


def _logistic_pairs(sample: Sample) -> Found:
    assert sample.rows is not None
    half = (sample.rows[0].double() - sample.rows[1].double()) / 2
    return Found(sample.oriented(_weights(torch.cat([half, -half]), len(half))))  # by symmetry the bias is 0


def _weights(rows: Float[Tensor, "n d"], positive: int) -> Vector:
    """Of logistic regression with scikit-learn's default strength; the first rows are the positive ones."""
    return logistic_paths(rows[None], torch.arange(len(rows)) < positive, [1.0])[0][0, 0]


METHODS: dict[str, Method] = {
    "dim": Method(_dim, "means", "δ (Marks & Tegmark 2023, arXiv:2310.06824; CAA, RepE's cluster mean)"),
    "mean_centred": Method(
        _mean_centred, "background", "μ₁ - mean of a broad corpus (Jorgensen 2023, arXiv:2312.03813)"
    ),
    "projected": Method(_projected, "means", "δ less its part along μ₀"),
    "median": Method(_median, "rows", "difference of the geometric medians: a wild prompt does not move it"),
    "pca_pairs": Method(_pca_pairs, "pairs", "first axis of D, not centred (repeng pca_center, IBM pca_pairwise)"),
    "svd": Method(_svd, "pairs", "the first k axes of D, not centred (Gabliteration 2025, arXiv:2512.18901)", True),
    "pca_global": Method(_pca_global, "scatter", "first axis of all rows less their mean (IBM pca_center)"),
    "lat": Method(_lat, "rows", "first axis of unit differences of random pairs, labels unseen (Zou 2023, AxBench)"),
    "repe": Method(_repe, "paired rows", "first k axes of D with the order in each pair drawn, centred (RepE)", True),
    "lda": Method(_lda, "scatter", "write δ, read Σ⁻¹δ, Σ within the classes, shrunk (OAS)"),
    "leace": Method(
        _leace, "scatter", "write δ, read Σ⁻¹δ / δᵀΣ⁻¹δ, Σ of all rows: erasure (arXiv:2306.03819)", erases=True
    ),
    "leace_shrunk": Method(_leace_shrunk, "scatter", "leace with Σ shrunk (OAS): for few rows", erases=True),
    "orthogonal": Method(_orthogonal, "means", "write δ, read δ / |δ|²: erasure by projection", erases=True),
    "logistic": Method(_logistic, "rows", "read w / s of a logistic regression on x / s, write Σ · read (Haufe 2014)"),
    "logistic_pairs": Method(_logistic_pairs, "paired rows", "logistic regression on ±D/2 (steering-vectors)"),
}

# names of other tools that mean something else there, or that would mislead
ELSEWHERE = {
    "pca_diff": "the first axis of centred differences points across the mean difference, which centring takes out; "
    "use 'pca_pairs', which does not centre",
    "pca_center": "it means two things: each pair centred (repeng; 'pca_pairs' here), or all rows (IBM; 'pca_global')",
    "pca_pairwise": "it is 'pca_pairs' here",
    "pca": "say which: 'pca_pairs' (differences of pairs), 'pca_global' (all rows), 'repe' or 'lat'",
    "caa": "it is 'dim' here",
    "cluster_mean": "it is 'dim' here",
    "umap": "a weighted mean whose weights may sum to zero; use 'dim' or 'median'",
}
