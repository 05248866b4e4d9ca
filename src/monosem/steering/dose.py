"""What a direction does at each amount, beside random directions of the same length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from ..edits import DirectionLike, Edit, add
from ..edits.changes import site_and_vector
from ..errors import BadInput
from ..models import Model, SiteLike
from ..models.numbers import count
from ..plots import Figure, lines
from ..results import Result, analysis
from ..statistics import spearman
from .comparison import comparisons
from .controls import random_directions

Operation = Callable[[Any, float], Edit | Sequence[Edit]]


@dataclass(frozen=True)
class DoseResponse(Result):
    """A row for each direction and amount, and whether the effect rises with the amount (`monotone`)."""

    ranked_by: ClassVar[str] = "kl"

    rows: list[dict[str, Any]]
    monotone: dict[str, float]

    @property
    def table(self) -> pd.DataFrame:
        """Columns: `direction` ("given", or "random" with a `number`), `amount`, the columns of `steering.summarise`
        (KL at the next token, changed next tokens, perplexity, distinct bigrams), and `score` where one was given."""
        return pd.DataFrame(self.rows)

    def plot(self) -> Figure:
        """KL over the amount, a line a direction."""
        table = self.table.sort_values("amount", kind="stable")
        numbered = table["direction"] + " " + (table["number"] + 1).astype(str)
        names = numbered.where(table["direction"] == "random", table["direction"])
        curves = {name: (table["kl"][names == name], None) for name in names.drop_duplicates()}
        return lines(curves, sorted({*table["amount"]}), x_title="amount", y_title="KL at the next token, nats")


@analysis
def dose_response(
    model: Model,
    x: Any,
    direction: DirectionLike | tuple[SiteLike, Tensor],
    amounts: Sequence[float],
    *,
    operation: Operation = add,
    controls: int = 3,
    score: Callable[[list[str]], Sequence[float]] | None = None,
    max_new_tokens: int = 20,
    batch_size: int = 128,
    seed: int = 0,
) -> DoseResponse:
    """Every prompt at every amount, with the direction and with random ones of the same length at the same site.

    Args:
        amounts: also 0 and negative ones. A direction whose effect is its own moves `score` with their sign; what
            grows either way, as KL does, grows with random directions as well.
        operation: from a direction and an amount to an edit: `edits.add`, `edits.set_to`, ...
        controls: how many random directions.
        score: of continuations, one number each, such as a held-out detector's; its mean is a column.

    Raises:
        BadInput: no amounts, or a score with another number of values than texts.
    """
    given = site_and_vector(direction)
    if not len(amounts):
        raise BadInput("dose_response needs amounts, such as [-4, -2, 0, 2, 4]")
    arms: dict[tuple[str, int], Any] = {("given", 0): given}
    if count(controls, "controls", 0):
        arms |= {("random", n): one for n, one in enumerate(random_directions(given, controls, seed=seed))}
    keys = [(*arm, float(amount)) for arm in arms for amount in amounts]
    edited = {str(key): operation(arms[key[0], key[1]], key[2]) for key in keys}
    found = comparisons(model, x, edited, max_new_tokens=max_new_tokens, batch_size=batch_size)
    rows = []
    for key in keys:
        comparison = found[str(key)]
        row = dict(zip(("direction", "number", "amount"), key)) | comparison.summary
        if score is not None:
            texts = [line["edited_text"] for line in comparison.rows]
            values = [float(value) for value in score(texts)]
            if len(values) != len(texts):
                raise BadInput(f"score gives {len(values)} numbers for {len(texts)} texts; it gives one a text")
            row["score"] = sum(values) / len(values)
        rows.append(row)
    return DoseResponse(rows, _monotone(rows, score is not None))


def _monotone(rows: Sequence[dict[str, Any]], scored: bool) -> dict[str, float]:
    """Spearman's correlation of the given direction's KL with the size of the amount, and of its score with the
    amount."""
    own = [row for row in rows if row["direction"] == "given"]
    amounts = torch.tensor([row["amount"] for row in own])
    found = {"kl": spearman(amounts.abs(), torch.tensor([row["kl"] for row in own]))}
    return found | ({"score": spearman(amounts, torch.tensor([row["score"] for row in own]))} if scored else {})
