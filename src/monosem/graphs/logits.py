"""What a graph explains: logits of the last token, a difference of two, or a direction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..components.targets import direction_target
from ..errors import BadInput
from ..models.numbers import count
from .frozen import Frozen, Targets

SHARE = 0.95  # of the probability
Tokens = str | int | Sequence[str | int]


@dataclass(frozen=True, eq=False)
class Logits:
    """Read-outs after the final norm at the last token.

    Attributes:
        vectors: of each, in what the unembedding reads. biases: what the unembedding adds.
        tokens: ids; -1 for what is no single token. labels: for people.
        weights: how much each counts; of tokens their probabilities.
        chosen: whether they were asked for, and not taken by their probability.
    """

    vectors: Float[Tensor, "logit d_model"]
    biases: Float[Tensor, "logit"]
    tokens: list[int]
    labels: list[str]
    weights: Float[Tensor, "logit"]
    chosen: bool

    def targets(self, frozen: Frozen) -> Targets:
        """Before a soft cap; multipliers of the logits are in."""
        model, last = frozen.model, frozen.length - 1
        norm = model.unembedding_norm(frozen.dtype)
        stream = frozen.at(frozen.end)[last]
        size = norm.scale(stream)
        constants = self.vectors @ norm.bias + self.biases
        return Targets(
            norm.pull(self.vectors) / size,
            torch.full((len(self.vectors),), last, device=stream.device),
            model.depth(frozen.end),
            constants,
            self.vectors @ norm.frozen(stream, size) + constants,
        )


def logits_of(frozen: Frozen, tokens: Tokens | None, wrong: Tokens | None, direction: Any, n: int) -> Logits:
    """The read-outs that are asked for; else the likeliest tokens, the fewest (at most n) that have 95 % of the
    probability. A token's logit is taken less the mean of all logits, which changes no probability; `wrong` makes it a
    difference.

    Raises:
        BadInput: no probability, tokens that are not one each, another number of wrong ones.
    """
    model, dtype = frozen.model, frozen.dtype
    logits = frozen.run.logits
    assert logits is not None
    p = logits[0].to(dtype).softmax(-1)
    if direction is not None:
        target = direction_target(model, direction)
        if target.site is not None:
            raise BadInput("a graph explains what is read after the final norm: direction=('final_norm', vector)")
        vector, one = target.vectors[0].to(dtype), p.new_ones(1)
        return Logits(vector, 0 * one, [-1], [target.label], one, True)
    if tokens is None:
        n, shares = count(n, "n_logits"), p.sort(descending=True)
        kept = min(n, int((shares.values.cumsum(0) < SHARE).sum()) + 1)
        ids = shares.indices[:kept].tolist()
    else:
        ids = _ids(model, tokens, frozen)
    less = None if wrong is None else _ids(model, wrong, frozen)
    if less is not None and (tokens is None or len(less) not in (1, len(ids))):
        raise BadInput("wrong= is subtracted from the logit of tokens=: give one for each, or one for all")
    names = [model.str_token(one) for one in ids]
    W_U, slope = model.W_U, model.logit_slope
    vectors, biases = W_U[:, ids].T.to(dtype), model.b_U[ids].to(dtype)
    weights = p[torch.tensor(ids)]
    if less is None:
        vectors, biases = vectors - W_U.mean(1, dtype=dtype), biases - model.b_U.to(dtype).mean()
    else:
        less = less * (len(ids) // len(less))
        vectors, biases = vectors - W_U[:, less].T.to(dtype), biases - model.b_U[less].to(dtype)
        names = [f"{name} − {model.str_token(other)}" for name, other in zip(names, less)]
    return Logits(vectors * slope, biases * slope, ids, names, weights, tokens is not None)


def _ids(model: Any, tokens: Tokens, frozen: Frozen) -> list[int]:
    listed = [tokens] if isinstance(tokens, str | int) else list(tokens)
    prompt = frozen.batch.rows()[0]
    ids = [int(model.to_single_token(token, prompt)) for token in listed]
    if not ids or len(set(ids)) < len(ids):
        raise BadInput("tokens= names the tokens whose logits are explained, each of them once")
    return ids
