"""Fitting probes at all places and strengths at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput, check_name
from ..jobs import fingerprint, marks
from ..statistics import auroc
from . import linear
from .kinds import KINDS
from .probe import Probes
from .rows import Rows
from .splits import check_apart


def fit(
    train: Rows,
    validation: Rows,
    *,
    kind: str = "logistic",
    strengths: Sequence[float] = linear.STRENGTHS,
    seed: int = 0,
    **own: Any,
) -> Probes:
    """Probes of one kind at every place of the rows; a kind that reads all places together (`joint`) is one probe.

    States are standardised on the training rows. The strength of each place is the one with the least validation log
    loss; nothing else is chosen here. A dimension that is constant in training has no weight.

    Args:
        kind: a name of `KINDS`.
        strengths: scikit-learn's C: the inverse of the penalty |w|² / 2 beside the summed loss.
        own: options of the kind: shrinkage (lda), balanced (logistic), k (sparse), orders and rank (polynomial), layers
            (early_exit), heads (attention), ...

    Raises:
        UnknownName: no such kind. BadInput: rows of one class, groups or texts in both parts, rows of single states
            where every token is read (or the other way), states that are the same in all rows, bad options.
    """
    check_name("kind of probe", kind, KINDS)
    row = KINDS[kind]
    if row.joint:
        train, validation = train.joined(), validation.joined()
    _check(train, validation, row.tokens, kind, strengths)
    with torch.no_grad():
        try:
            made = row.fit(train, validation, tuple(sorted(strengths)), seed, **own)
        except TypeError as error:
            if "keyword argument" not in str(error):
                raise
            raise BadInput(f"a probe of kind {kind!r} has no such option: {error}") from error
        parts, best = linear.chosen(made, row.score, validation)
        if row.linear and "pattern" not in parts:
            parts["pattern"] = linear.pattern(train.x, parts["weights"])
    about: dict[str, Any] = {"train": train.named, "validation": validation.named, "seed": seed, "options": own}
    about |= {"groups": len(train.group_keys), "data": fingerprint(*train.texts) if train.texts else ""}
    about["seen"] = marks([*train.texts, *validation.texts])
    if "made_on" in train.config:
        about["made_on"] = train.config["made_on"]
    if row.graded:
        about["strength"] = [sorted(strengths)[int(i)] for i in best]
    probes = Probes(kind, train.places, {name: value.cpu() for name, value in parts.items()}, train.model_name, about)
    f = probes.score(validation)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        f, validation.y.double().expand_as(f), reduction="none"
    )
    areas = areas_of(f, validation.y).tolist()
    return probes.with_parts({"validation_auroc": areas, "validation_log_loss": losses.mean(1).tolist()})


def areas_of(scores: Tensor, y: Tensor) -> Tensor:
    """AUROC of each place, `places`."""
    return auroc(scores[:, y].T, scores[:, ~y].T).double()


def _check(train: Rows, validation: Rows, tokens: bool, kind: str, strengths: Sequence[float]) -> None:
    train.check_two_classes("a probe")
    validation.check_two_classes("validation", fewest=1)
    for rows in (train, validation):
        rows.check_tokens(tokens, f"a probe of kind {kind!r}")
    check_apart(train, validation)
    if not strengths or not all(0 < one < float("inf") for one in strengths):
        raise BadInput(f"strengths are numbers above 0 (scikit-learn's C), not {list(strengths)!s:.80}")
    if train.mask is not None:
        return
    same = (train.x == train.x[:, :1]).all(1).all(-1)
    if bool(same.any()):
        place = train.places[int(same.nonzero()[0])]
        raise BadInput(
            f"the states at {place} are the same in all {len(train)} training rows, so that nothing can be told apart: "
            "read them at another position or layer"
        )
