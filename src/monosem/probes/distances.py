"""How far a state is from the states seen before: Mahalanobis distances and their relatives, and baselines.

Scores grow with the distance. Covariances are means over rows, with one divisor everywhere, shrunken and in float64, so
that more rows, or other units, do not change what a distance means.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor

from ..covariance import Inverse, Shrinkage, class_residuals, inverse
from ..errors import BadFile, BadInput, Mismatch, check_name
from ..files import replacing
from ..jobs import known_again, marks
from ..models import Model, refuse_other
from .probe import read_probe
from .rows import Place, Rows, check_same

FORMAT = "monosem distances 1"
LEAST = 1e-12  # of a score, before its log
States = Float[Tensor, "places n d"]
Parts = dict[str, Tensor]


# ---------------------------------------------------------------------- Mahalanobis
def _gaussian(X: States, classes: Int[Tensor, "n"], shrinkage: Shrinkage | float) -> Parts:
    means, residuals = class_residuals(X, classes)
    found = inverse(residuals, shrinkage)
    sign = torch.full_like(found.base, found.sign)
    return {"means": means, "base": found.base, "sign": sign, "B": found.B, "rho": found.rho}


def _nearest(parts: Mapping[str, Tensor], X: States) -> Float[Tensor, "places n"]:
    """min_c (x - μ_c)ᵀ Σ⁻¹ (x - μ_c)."""
    to = Inverse(parts["base"], float(parts["sign"][0]), parts["B"], parts["rho"])
    X = X.double()
    return torch.stack([to.squared(X - mean[:, None]) for mean in parts["means"].unbind(1)]).amin(0)


def mahalanobis(X: States, classes: Int[Tensor, "n"], *, shrinkage: Shrinkage | float = "ledoit_wolf") -> Parts:
    """Lee et al. 2018 (arXiv:1807.03888): the least squared distance to a class mean, Σ within the classes."""
    return _gaussian(X, classes, shrinkage)


def marginal(X: States, classes: Int[Tensor, "n"], *, shrinkage: Shrinkage | float = "ledoit_wolf") -> Parts:
    """The same with one class: the distance to the mean of all rows."""
    return _gaussian(X, torch.zeros_like(classes), shrinkage)


def relative(X: States, classes: Int[Tensor, "n"], *, shrinkage: Shrinkage | float = "ledoit_wolf") -> Parts:
    """Ren et al. 2021 (arXiv:2106.09022): min_c d_c² - d_0², where d_0 takes all rows as one class.

    Both covariances have the divisor n. With one class it is 0 everywhere.
    """
    total = _gaussian(X, torch.zeros_like(classes), shrinkage)
    return _gaussian(X, classes, shrinkage) | {f"total_{name}": value for name, value in total.items()}


def relative_score(parts: Mapping[str, Tensor], X: States) -> Float[Tensor, "places n"]:
    total = {name.removeprefix("total_"): value for name, value in parts.items() if name.startswith("total_")}
    return _nearest(parts, X) - _nearest(total, X)


# ---------------------------------------------------------------------- baselines
def nearest_rows(X: States, classes: Int[Tensor, "n"], *, k: int = 10) -> Parts:
    """Sun et al. 2022 (arXiv:2204.06507): the distance to the k-th nearest row, on the unit sphere."""
    if not 1 <= k <= X.shape[1]:
        raise BadInput(f"k is a number from 1 to the {X.shape[1]} rows, not {k}")
    return {"rows": _unit(X), "k": torch.full((len(X),), float(k), dtype=torch.float64)}


def nearest_rows_score(parts: Mapping[str, Tensor], X: States) -> Float[Tensor, "places n"]:
    return torch.cdist(_unit(X), parts["rows"]).kthvalue(int(parts["k"][0]), dim=2).values


def cosine(X: States, classes: Int[Tensor, "n"]) -> Parts:
    """1 - the largest cosine with a class mean."""
    return {"means": _unit(class_residuals(X, classes)[0])}


def residual(X: States, classes: Int[Tensor, "n"], *, components: int = 32) -> Parts:
    """The squared length outside the main axes, which a distance on these axes does not see."""
    mean = X.double().mean(1, keepdim=True)
    if not 1 <= components < min(X.shape[1:]):
        raise BadInput(f"components is a number from 1 to {min(X.shape[1:]) - 1} here, not {components}")
    return {"mean": mean[:, 0], "axes": torch.linalg.svd(X.double() - mean, full_matrices=False).Vh[:, :components]}


def residual_score(parts: Mapping[str, Tensor], X: States) -> Float[Tensor, "places n"]:
    z = X.double() - parts["mean"][:, None]
    return (z.square().sum(2) - (z @ parts["axes"].mT).square().sum(2)).clamp(min=0)


def _unit(X: Tensor) -> Tensor:
    X = X.double()
    return X / X.norm(dim=-1, keepdim=True).clamp(min=1e-300)


@dataclass(frozen=True)
class Metric:
    """A kind of distance. `unit`: rows are divided by their length first (Mahalanobis++, arXiv:2505.18032), so that
    their scale does not count. `classes`: how many it needs. `signed`: scores may be negative, and have no log."""

    about: str
    fit: Callable[..., Parts]
    score: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    unit: bool = False
    classes: int = 1
    signed: bool = False


DISTANCES: dict[str, Metric] = {
    "mahalanobis": Metric("distance to the nearest class", mahalanobis, _nearest),
    "mahalanobis++": Metric("this distance of rows of length one", mahalanobis, _nearest, unit=True),
    "relative": Metric("less the distance to all rows as one class", relative, relative_score, classes=2, signed=True),
    "relative++": Metric(
        "this distance of rows of length one", relative, relative_score, unit=True, classes=2, signed=True
    ),
    "marginal": Metric("distance to all rows as one class", marginal, _nearest),
    "knn": Metric("distance to the k-th nearest row", nearest_rows, nearest_rows_score),
    "cosine": Metric(
        "angle to the nearest class mean", cosine, lambda parts, X: 1 - (_unit(X) @ parts["means"].mT).amax(2)
    ),
    "residual": Metric("length outside the main axes", residual, residual_score),
}


@dataclass(frozen=True, eq=False)
class Distances:
    """A distance fitted at one place or many. `score` grows with the distance from what was seen.

    Attributes:
        kind: a name of `DISTANCES`.
        held: scores of held-out rows of the usual kind, `places m`, one column a row, for p-values; see `against`.
    """

    kind: str
    places: tuple[Place, ...]
    parts: Parts
    model_name: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    held: Float[Tensor, "places m"] | None = None

    @classmethod
    def fit(cls, rows: Rows, kind: str = "mahalanobis", **own: Any) -> Self:
        """Fit on rows of the usual kind, with their `classes`.

        Args:
            own: shrinkage ("ledoit_wolf", "oas", "none" or ρ), k (knn), components (residual).

        Raises:
            UnknownName: no such kind. BadInput: too few rows or classes, rows of every token, a covariance without an
                inverse, bad options.
        """
        check_name("kind of distance", kind, DISTANCES)
        metric = DISTANCES[kind]
        rows.check_tokens(False, "a distance")
        sizes = torch.as_tensor(rows.classes).unique(return_inverse=True, return_counts=True)
        if len(sizes[0]) < metric.classes:
            raise BadInput(
                f"{kind!r} of one class is 0 for every state: give classes (Rows.with_classes), or use 'mahalanobis'"
            )
        if int(sizes[2].min()) < 2:
            raise BadInput("a class has one row alone, which has no covariance: leave it out, or join classes")
        try:
            parts = metric.fit(_unit(rows.x) if metric.unit else rows.x, sizes[1], **own)
        except TypeError as error:
            if "keyword argument" not in str(error):
                raise
            raise BadInput(f"a distance of kind {kind!r} has no such option: {error}") from error
        about = {"rows": len(rows), "classes": len(sizes[0]), "options": own, "seen": marks(rows.texts)}
        about |= {"made_on": rows.config["made_on"]} if "made_on" in rows.config else {}
        held = {name: value.cpu().contiguous() for name, value in parts.items()}  # as a file has them: the same bits
        return cls(kind, rows.places, held, rows.model_name, about)

    def score(self, x: Rows | States) -> Float[Tensor, "places n"]:
        """Raises `Mismatch` for rows of other places, another model or width."""
        if isinstance(x, Rows):
            name = next(one for one in ("means", "rows", "mean") if one in self.parts)
            check_same(x, self.places, self.model_name, self.parts[name].shape[-1], "distance")
            x.check_tokens(False, "a distance")
        states = (x.x if isinstance(x, Rows) else x).cpu()
        metric = DISTANCES[self.kind]
        return metric.score(self.parts, _unit(states) if metric.unit else states)

    def check(self, model: Model) -> None:
        """Raises `Mismatch` for another model than the distance's, `UnknownName` for a site that the model lacks."""
        for site in {site for place in self.places for site in place.sites}:
            model.site(site)
        if self.model_name and self.model_name != model.name:
            raise Mismatch(f"this distance was fitted on states of {self.model_name}, not of {model.name}")
        refuse_other(model, self.about.get("made_on"), "this distance")

    # ------------------------------------------------------------------ against held-out rows
    def against(self, held: Rows) -> Self:
        """The same with scores of held-out rows of the usual kind, which it must not have been fitted on."""
        return replace(
            self, held=self.score(held), about=self.about | {"seen": marks(held.texts, self.about.get("seen"))}
        )

    def seen(self, texts: Sequence[str]) -> Bool[Tensor, "n"]:
        """Which texts it was fitted on, or has scores of: they lie nearer than new ones."""
        return torch.tensor(known_again(self.about.get("seen"), texts), dtype=torch.bool)

    def p_values(
        self, x: Rows | States, *, how: Literal["each", "mean", "max"] = "each", log: bool = False
    ) -> Float[Tensor, "*places n"]:
        """(1 + number of held-out rows at least as far) / (1 + m): right for rows like these, whatever they are.

        Args:
            how: "each" place alone, `places n`; or of all places together (`combined`), `n`.
            log: as `combined`.

        Raises: `BadInput` before `against`.
        """
        if how == "each":
            held, f = self._held, self.score(x)
            return torch.stack([_ranks(one, own) for one, own in zip(f, held)])
        return _ranks(self.combined(x, how=how, log=log), _together(self.standardised(log=log), how))

    def combined(
        self, x: Rows | States, *, how: Literal["mean", "max"] = "mean", log: bool = False
    ) -> Float[Tensor, "n"]:
        """`standardised` scores of all places as one: their mean or the largest."""
        return _together(self.standardised(x, log=log), how)

    def standardised(self, x: Rows | States | None = None, *, log: bool = False) -> Float[Tensor, "places n"]:
        """Scores less the mean of held-out rows, by their standard deviation; without `x` of the held-out rows.

        Args:
            log: of log scores, which a few far rows spread less.

        Raises: `BadInput` before `against`, or for the log of a kind that has negative scores.
        """
        if log and self.signed:
            raise BadInput(f"scores of kind {self.kind!r} may be negative and have no log: use log=False")
        held, f = self._held, self._held if x is None else self.score(x)
        if log:
            held, f = (one.clamp(min=LEAST).log() for one in (held, f))
        return (f - held.mean(1, keepdim=True)) / held.std(1, keepdim=True).clamp(min=1e-300)

    @property
    def signed(self) -> bool:
        """Whether scores may be negative."""
        return DISTANCES[self.kind].signed

    @property
    def _held(self) -> Tensor:
        if self.held is None or self.held.shape[1] < 2:
            raise BadInput("this needs scores of held-out rows: distances.against(rows), of two rows or more")
        return self.held

    # ------------------------------------------------------------------ files
    def save(self, path: str | os.PathLike[str]) -> Path:
        """One safetensors file: the parts, and the rest as JSON in its metadata."""
        about = {"kind": self.kind, "model": self.model_name, "places": [one.written() for one in self.places]}
        tensors = self.parts | ({} if self.held is None else {"held": self.held})
        with replacing(path) as temporary:
            held = {name: value.contiguous() for name, value in tensors.items()}
            save_file(held, temporary, {"format": FORMAT, "distances": json.dumps(about | {"about": self.about})})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Raises `BadFile` when the file is missing, damaged or holds something else."""
        about, parts = read_probe(path, FORMAT, "distances", "a distance")
        held = parts.pop("held", None)
        try:
            places = tuple(Place.parse(one) for one in about["places"])
            made = cls(about["kind"], places, parts, str(about["model"]), dict(about["about"]), held)
            fine = all(bool(one.isfinite().all()) and len(one) == len(places) for one in parts.values())
            if about["kind"] not in DISTANCES or not fine:
                raise ValueError("its kind is not known, or its tensors are not finite or of other places")
            name = next(one for one in ("means", "rows", "mean") if one in parts)
            made.score(torch.zeros(len(places), 1, parts[name].shape[-1], dtype=torch.float64))
        except (KeyError, TypeError, ValueError, StopIteration, IndexError, AttributeError, RuntimeError) as error:
            raise BadFile(f"{path} does not hold distances that can be read ({error})") from error
        return made


def _together(z: Float[Tensor, "places n"], how: str) -> Float[Tensor, "n"]:
    check_name("way to combine places", how, ("mean", "max"))
    return z.mean(0) if how == "mean" else z.amax(0)


def _ranks(f: Float[Tensor, "n"], held: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
    above = len(held) - torch.searchsorted(held.sort().values, f)
    return (1 + above).double() / (1 + len(held))


def energy(logits: Float[Tensor, "n vocab"]) -> Float[Tensor, "n"]:
    """-log Σ exp of the logits of the next token (Liu et al. 2020, arXiv:2010.03759): a baseline that sees no state."""
    return -logits.double().logsumexp(-1)


def unsure(logits: Float[Tensor, "n vocab"]) -> Float[Tensor, "n"]:
    """1 - the largest probability of the next token: the other such baseline."""
    return 1 - logits.double().softmax(-1).amax(-1)
