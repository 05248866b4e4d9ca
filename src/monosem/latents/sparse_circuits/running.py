"""A feature circuit run alone: nodes that are left out have their other value, everything else is computed anew."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data import TokenPairs
from ...dictionaries import Dictionary
from ...edits import Edit
from ...errors import BadInput
from ...models import Model, Moment
from ...patching.scoring import Metric
from ...results import Tabled
from ..importance.states import Other, States

Masks = Sequence[Bool[Tensor, "place node"]]


@dataclass(frozen=True)
class CircuitRun(Tabled):
    """`table`: a row each of "model", "circuit", "complement" and "nothing": the metric's `mean`, and its `share`.

    Attributes:
        faithfulness: the circuit's share of the way from nothing to the model. completeness: the complement's.
    """

    faithfulness: float = 0.0
    completeness: float = 0.0


@torch.no_grad()
def measured(
    model: Model,
    pairs: TokenPairs,
    dictionaries: Sequence[Dictionary],
    masks: Masks,
    name: str,
    metric: Metric,
    other: Other,
    batch_size: int,
) -> CircuitRun:
    """Raises `BadInput` where the model and nothing at all give the same metric."""
    arms = {
        "circuit": masks,
        "complement": [~mask for mask in masks],
        "nothing": [torch.zeros_like(mask) for mask in masks],
    }
    sums = dict.fromkeys(["model", *arms], 0.0)
    for first in range(0, len(pairs), batch_size):
        some = pairs[slice(first, first + batch_size)]
        batch = [States.of(model, some, one, metric, other) for one in dictionaries]
        rows = [*range(len(some))]
        sums["model"] += float(batch[0].measured(batch[0].clean_logits, rows).sum())
        for arm, given in arms.items():
            logits = run(batch, given)
            sums[arm] += float(batch[0].measured(logits, rows).sum())
    means = {arm: value / len(pairs) for arm, value in sums.items()}
    gap = means["model"] - means["nothing"]
    if abs(gap) < 1e-8:
        raise BadInput(
            f"{name} is {means['model']:.4g} with all nodes and with none: there is nothing to be faithful to"
        )
    shares = {arm: (value - means["nothing"]) / gap for arm, value in means.items()}
    table = pd.DataFrame({"arm": [*means], "mean": [*means.values()], "share": [*shares.values()]})
    return CircuitRun(table, {"metric": name, "other": str(other)}, shares["circuit"], shares["complement"])


def run(batch: Sequence[States], masks: Masks) -> Float[Tensor, "pairs vocab"]:
    """Logits after the last token, with the nodes of these masks alone."""
    seen = dict[int, Tensor]()
    put = [_only(number, one, mask, seen) for number, (one, mask) in enumerate(zip(batch, masks))]
    look = [_look(number, one, seen) for number, one in enumerate(batch) if one.dictionary.transcoder]
    first = batch[0]
    found = first.model.run(first.pairs.clean, edits=[*put, *look], logits="last").logits
    assert found is not None
    return found


def _look(number: int, one: States, seen: dict[int, Tensor]) -> Edit:
    """What a transcoder reads, after what other dictionaries put there."""

    def fn(x: Tensor, moment: Moment) -> Tensor:
        seen[number] = x
        return x

    return Edit(one.dictionary.site, fn, "look on")


def _only(number: int, one: States, mask: Bool[Tensor, "place node"], seen: dict[int, Tensor]) -> Edit:
    dictionary, rows = one.dictionary, one.rows
    bias = dictionary.b_dec.to(rows)
    other_error = one.other - bias - one.other_written @ rows
    mask = mask.to(rows.device)

    def fn(x: Tensor, moment: Moment) -> Tensor:
        flat = x.flatten(2).to(rows)
        read = (seen[number] if dictionary.transcoder else x).flatten(2)
        dense, scale = dictionary.encode(read).dense(), dictionary.token_scale(read)
        written = dense if scale is None else dense * scale
        error = torch.where(mask[:, -1:], flat - bias - written @ rows, other_error)
        made = bias + torch.where(mask[:, :-1], written, one.other_written) @ rows + error
        return torch.where(one.keep[..., None], made, flat).reshape(x.shape).to(x)

    return Edit(dictionary.site_out, fn, "circuit")
