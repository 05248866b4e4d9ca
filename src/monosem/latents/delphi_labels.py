"""What eai-delphi's explainer and scorers said of latents: the folders `explanations` and `scores` beside its cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import BadFile
from ..models.numbers import LARGEST
from ..reading import read_json
from ..statistics import auroc

OVERLAP = "its scorers drew examples without leaving out the ones that the explanation was written from"
# what the texts of a batch are read after: delphi gives the model the same cache again, which has grown
GROWN = "each batch of ten texts was read after the batches before it"

Rows = list[dict[str, Any]]
Read = tuple[float | None, str]  # the score, and what is to be said of it


def label_of(results: Path, hook: str, latent: int) -> tuple[dict[str, Any] | None, list[str]]:
    """The explanation of a latent as pages have it (or None), and what of it is unreliable.

    Scores of detection and fuzz, which judge examples one by one, are balanced accuracies over examples with an answer.
    Scores of embedding and surprisal are AUROCs of active against other texts: of the similarity to the explanation,
    and of the nats that reading the explanation first saves. A score of simulation is the correlation of predicted with
    true activations over all tokens.

    Args:
        results: the folder of a run of delphi, with `explanations`, `scores` and `latents` in it.
        hook: the name of the hook point, as of the folder in `latents`.

    Raises:
        BadFile: a damaged file.
    """
    name = f"{hook}_latent{latent}.txt"
    file = results / "explanations" / name
    if not file.is_file():
        return None, []
    label = read_json(file)
    if not isinstance(label, str):
        raise BadFile(f"{file} holds no explanation: it needs a JSON string")
    scores: dict[str, float] = {}
    remarks = []
    for scored in sorted((results / "scores").glob(f"*/{name.replace('/', '--')}")):
        value, remark = _score(scored)
        if value is not None:
            scores[scored.parent.name] = value
        if remark:
            remarks.append(f"{scored.parent.name}: {remark}")
    explained = {"label": label, "by": "eai-delphi", "scores": scores, "others": []}
    return explained, [OVERLAP, *remarks] if scores else remarks


def _score(file: Path) -> Read:
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadFile(f"{file} holds no scores of delphi: it needs a list of objects")
    fields = set[str].intersection(*map(set, rows)) if rows else set[str]()
    for needed, read in READERS:
        if needed <= fields:
            try:
                return read(rows)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise BadFile(f"{file} holds no scores of delphi ({error})") from error
    return None, "its scores are of a kind that is not read"


def _balanced(rows: Rows) -> Read:
    """Mean of the shares that were right among active and among other examples."""
    answered = [row for row in rows if isinstance(row["prediction"], bool)]
    shares = []
    for side in (True, False):
        right = [row["prediction"] is side for row in answered if row["activating"] is side]
        if not right:
            return None, f"no answers for {'active' if side else 'other'} examples"
        shares.append(sum(right) / len(right))
    lost = len(rows) - len(answered)
    return sum(shares) / 2, f"{lost} of {len(rows)} examples had no answer, and are left out" if lost else ""


def _area(active: list[float], others: list[float]) -> float | None:
    if not active or not others:
        return None
    return float(auroc(*(torch.tensor(some, dtype=torch.float64)[:, None] for some in (active, others))))


def _listed(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"a {type(values).__name__} where a list belongs")
    return values


def _number(value: Any) -> float:
    """Raises `TypeError` for what is no number, `ValueError` for one that cannot be computed with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a {type(value).__name__} where a number belongs")
    if not abs(value) <= LARGEST:  # NaN as well
        raise ValueError("a number that is not finite, or too large")
    return float(value)


def _numbers(values: Any) -> list[float]:
    return [_number(value) for value in _listed(values)]


def _embedding(rows: Rows) -> Read:
    # which texts are active is written nowhere: `distance` is their quantile, a whole number, or that of a neighbour
    sides: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        sides[isinstance(row["distance"], int)].append(_number(row["similarity"]))
    return _area(sides[True], sides[False]), ""


def _surprisal(rows: Rows) -> Read:
    sides: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        # the loss of a text that was filled up ends with a 0, which a sum does not count
        before, after = (sum(_numbers(row[name])) for name in ("no_explanation", "explanation"))
        sides[max(_numbers(row["activations"])) > 0].append(before - after)
    return _area(sides[True], sides[False]), GROWN if len(rows) > 10 else ""


def _simulation(rows: Rows) -> Read:
    # a group of all texts has distance 0; there is none where only active texts were read
    whole = [row for row in rows if row["distance"] == 0] or rows
    texts = [text for row in whole for text in _listed(row["scored_sequence_simulations"])]
    predicted = [_numbers(text["simulation"]["expected_activations"]) for text in texts]
    said = [value for values in predicted for value in values]
    true = [value for text in texts for value in _numbers(text["true_activations"])]
    silent = sum(not any(values) for values in predicted)
    remark = (
        f"{silent} of {len(texts)} texts were predicted as 0 throughout, which a failed call is, too" if silent else ""
    )
    if len({*said}) < 2 or len({*true}) < 2:
        return None, remark or "there is nothing to correlate"
    with np.errstate(all="ignore"):
        score = float(np.corrcoef(said, true)[0, 1])
    return (score, remark) if np.isfinite(score) else (None, remark or "there is nothing to correlate")


# fields that each object has -> what reads them
READERS: tuple[tuple[set[str], Callable[[Rows], Read]], ...] = (
    ({"activating", "prediction"}, _balanced),
    ({"similarity", "distance"}, _embedding),
    ({"no_explanation", "explanation", "activations"}, _surprisal),
    ({"scored_sequence_simulations", "distance"}, _simulation),
)
