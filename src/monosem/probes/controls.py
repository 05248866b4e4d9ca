"""What makes a probe's number mean something: labels that say nothing of the text, and texts without a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..plots import Figure, by_layer, lines
from ..progress import Meter
from ..results import Result, Tabled, analysis
from ..statistics import Interval, rank_p
from . import linear
from .fitting import areas_of, fit
from .measures import area_by_group
from .rows import Place, Rows, group_numbers
from .splits import Parts, split
from .texts import TextDetector, fitted_on

TRIES = 1000


# ---------------------------------------------------------------------- control tasks
@dataclass(frozen=True)
class ControlTask(Tabled):
    """`table`: at each place the accuracy on the task, on control tasks (mean of several), and selectivity, their
    difference: near 0 where the probe could as well learn the types by heart."""

    ranked_by: ClassVar[str | None] = "selectivity"


@analysis
def control_task(
    rows: Rows, types: Sequence[Any], *, kind: str = "logistic", draws: int = 5, seed: int = 0, **own: Any
) -> ControlTask:
    """Selectivity (Hewitt & Liang 2019, arXiv:1909.03368): the same probe is trained on labels that each type (a word,
    a template) has by chance, alike in training and test.

    Both tasks are measured on test rows whose type is in training: what is learnt by heart can be known there.

    Args:
        types: one a row; at least two rows of most of them.
        draws: of the control labels.

    Raises:
        BadInput: no test row of a type that training has: types are groups, or every row is a type of its own.
    """
    if len(types) != len(rows):
        raise BadInput(f"{len(rows)} rows have {len(types)} types; give one a row")
    numbers = group_numbers(types)[0]
    parts = split(rows, seed=seed)
    at = split(_numbered(rows), seed=seed)  # the same split, of row numbers
    of = [numbers[part.x[0, :, 0].long()] for part in at]
    known = torch.isin(of[2], of[0])
    if not bool(known.any()):
        raise BadInput(
            "no type of the test rows is in training, so that nothing learnt by heart could show: types must not be "
            "the groups; give words or templates that several groups share"
        )
    task = _accuracy(parts, known, kind, seed, own)
    control = torch.stack([_control(parts, of, known, kind, seed + i, own) for i in range(draws)])
    error = control.std(0) / draws**0.5 if draws > 1 else torch.full_like(task, torch.nan)
    columns = {"accuracy": task, "control": control.mean(0), "control_se": error, "selectivity": task - control.mean(0)}
    table = pd.DataFrame({"place": list(map(str, rows.places))} | {name: one.numpy() for name, one in columns.items()})
    return ControlTask(table, {"types": int(numbers.max()) + 1, "test rows of known types": int(known.sum())})


def _numbered(rows: Rows) -> Rows:
    place = (Place(rows.places[0].sites),)
    return Rows(
        torch.arange(len(rows)).double()[None, :, None], rows.y, place, rows.groups, group_names=rows.group_names
    )


def _control(parts: Parts, of: list[Tensor], known: Tensor, kind: str, seed: int, own: dict[str, Any]) -> Tensor:
    """Accuracy on labels that each type has by chance, half of the types each."""
    draw = torch.Generator().manual_seed(seed)
    count = max(int(one.max()) for one in of) + 1
    for _ in range(TRIES):
        label = torch.randperm(count, generator=draw) < count / 2
        made = Parts(*(part.relabelled(label[numbers]) for part, numbers in zip(parts, of)))
        if min(min(part.named.values()) for part in made[:2]) > 1:
            return _accuracy(made, known, kind, seed, own)
    raise BadInput("control labels by type leave a part with one class: give more types")


def _accuracy(parts: Parts, known: Tensor, kind: str, seed: int, own: dict[str, Any]) -> Float[Tensor, "places"]:
    probes = fit(parts.train, parts.validation, kind=kind, seed=seed, **own)
    test = parts.test.part(known)
    return ((probes.score(test) > 0) == test.y).double().mean(1)


# ---------------------------------------------------------------------- permuted labels
@dataclass(frozen=True)
class Null(Result):
    """`table`: at each place the test AUROC, its p alone, and p_family, for having looked at every place.

    Attributes:
        null: AUROCs with permuted labels, `permutations places`.
        memorised: share of training labels that a probe of permuted ones gets right, of each place: how much it can
            learn by heart.
    """

    places: tuple[Place, ...]
    observed: Float[Tensor, "places"]
    null: Float[Tensor, "permutations places"] = field(repr=False)
    memorised: Float[Tensor, "places"]
    config: dict[str, Any] = field(default_factory=dict)

    ranked_by: ClassVar[str | None] = "auroc"

    @property
    def table(self) -> pd.DataFrame:
        largest = self.null.amax(1).tolist()
        rows = [
            (str(place), value, rank_p(value, null), rank_p(value, largest), heart)
            for place, value, null, heart in zip(
                self.places, self.observed.tolist(), self.null.T.tolist(), self.memorised.tolist()
            )
        ]
        return pd.DataFrame(rows, columns=["place", "auroc", "p", "p_family", "memorised"])


def check_permutations(n: int) -> None:
    """Raises `BadInput` for too few of them."""
    if n < 10:
        raise BadInput(f"permutations is 10 or more, not {n}")


@analysis
def permutation_null(
    parts: Parts, *, kind: str = "logistic", permutations: int = 100, seed: int = 0, quiet: bool = True, **own: Any
) -> Null:
    """Test AUROCs of the whole procedure with permuted labels: what looking at this many places finds in nothing.

    Labels are exchanged among groups where every group has one label, else among all rows.

    Raises: as `fit`, and `BadInput` for fewer than 10 permutations.
    """
    check_permutations(permutations)
    draw = torch.Generator().manual_seed(seed)
    observed = areas_of(fit(parts.train, parts.validation, kind=kind, seed=seed, **own).score(parts.test), parts.test.y)
    null, memorised = [], []
    with Meter("permutations", total=permutations, unit="fits", quiet=quiet) as meter:
        for _ in range(permutations):
            other = _permuted(parts, draw)
            probes = fit(other.train, other.validation, kind=kind, seed=seed, **own)
            null.append(areas_of(probes.score(other.test), other.test.y))
            memorised.append(((probes.score(other.train) > 0) == other.train.y).double().mean(1))
            meter.advance(1)
    return Null(parts.train.places, observed, torch.stack(null), torch.stack(memorised).mean(0))


def _permuted(parts: Parts, draw: torch.Generator) -> Parts:
    y = torch.cat([part.y for part in parts])
    keys = [(number, group) for number, part in enumerate(parts) for group in part.groups.tolist()]
    of = group_numbers(keys)[0]
    sums = torch.zeros(int(of.max()) + 1).index_add_(0, of, y.float())
    alike = bool(((sums == 0) | (sums == of.bincount())).all())
    for _ in range(TRIES):
        new = (
            (sums > 0)[torch.randperm(len(sums), generator=draw)][of]
            if alike
            else y[torch.randperm(len(y), generator=draw)]
        )
        pieces = new.split([len(part) for part in parts])
        if all(1 < int(piece.sum()) < len(piece) - 1 for piece in pieces[:1]) and all(
            0 < int(piece.sum()) < len(piece) for piece in pieces
        ):
            return Parts(*(part.relabelled(piece) for part, piece in zip(parts, pieces)))
    raise BadInput("labels cannot be permuted so that each part has both classes: give more groups")


# ---------------------------------------------------------------------- texts without a model
def text_baselines(parts: Parts) -> dict[str, Interval]:
    """Test AUROC of logistic probes that see no state: the number of tokens and of letters ("length"), and which of the
    training texts' words a text holds ("bag of words").

    Raises:
        BadInput: rows without texts.
    """
    bag = TextDetector.fit(parts.train, parts.validation)
    length = fitted_on(_lengths, parts.train, parts.validation)
    scores = {
        "length": linear.score(length, _lengths(parts.test)[None])[0],
        "bag of words": bag.log_odds(parts.test.texts),
    }
    return {name: area_by_group(f, parts.test) for name, f in scores.items()}


def _lengths(rows: Rows) -> Float[Tensor, "n 4"]:
    letters = torch.tensor([len(text) for text in rows.texts]).double()
    tokens = letters if rows.lengths is None else rows.lengths.double()
    return torch.stack([tokens, letters, tokens.log1p(), letters.log1p()], 1)


# ---------------------------------------------------------------------- all places and kinds
@dataclass(frozen=True)
class Survey(Tabled):
    """`table`: for each kind and place the validation AUROC, by which a place is chosen, and the test AUROC with its
    interval (rows of a group are no new rows); `chosen` marks the place that validation rows choose of each kind.

    Attributes:
        baselines: test AUROCs of what sees no model.
        nulls: of each kind, where permutations were asked for.
    """

    baselines: dict[str, Interval] = field(default_factory=dict)
    nulls: dict[str, Null] = field(default_factory=dict, repr=False)

    ranked_by: ClassVar[str | None] = "validation_auroc"

    def plot(self) -> Figure:
        places = list(dict.fromkeys(self.rows["place"]))
        curves: dict[str, Any] = {}
        for kind, part in self.rows.groupby("kind", sort=False):
            curves[str(kind)] = (part["auroc"].to_numpy(), ((part["high"] - part["low"]) / 3.92).to_numpy())
        curves |= {name: (np.full(len(places), one.value), None) for name, one in self.baselines.items()}
        x, title = by_layer(places)
        figure = lines(curves, x, x_title=title, y_title="test AUROC")
        for name in self.baselines:  # of no layer
            figure.update_traces(mode="lines", line_dash="dot", selector={"name": name})
        return figure


@analysis
def survey(
    parts: Parts,
    *,
    kinds: Sequence[str] = ("mass_mean", "lda", "logistic"),
    permutations: int = 0,
    seed: int = 0,
    quiet: bool = True,
) -> Survey:
    """Kinds of probe at every place, side by side on the same rows, with baselines and (if wanted) a permutation null.

    Choose the place by validation, and read its test number: the best of many test numbers is too good.

    Raises: as `fit`.
    """
    tables, nulls = [], {}
    for kind in kinds:
        probes = fit(parts.train, parts.validation, kind=kind, seed=seed)
        f, best = probes.score(parts.test), probes.best.places[0]
        found = [area_by_group(one, parts.test, seed=seed) for one in f]
        columns: dict[str, Any] = {"kind": kind, "place": list(map(str, probes.places))}
        columns |= {"strength": probes.about.get("strength", float("nan"))}
        columns |= {"validation_auroc": probes.about["validation_auroc"], "auroc": [one.value for one in found]}
        columns |= {"low": [one.low for one in found], "high": [one.high for one in found]}
        columns |= {"chosen": [place == best for place in probes.places]}
        if permutations:
            nulls[kind] = permutation_null(parts, kind=kind, permutations=permutations, seed=seed, quiet=quiet)
            columns |= {name: nulls[kind].table[name] for name in ("p", "p_family")}
        tables.append(pd.DataFrame(columns))
    baselines = text_baselines(parts) if all(part.texts for part in parts) else {}
    sizes = dict(zip(Parts._fields, (part.named for part in parts)))
    return Survey(pd.concat(tables, ignore_index=True), {"rows": sizes}, baselines, nulls)
