"""Straight effects between nodes of several dictionaries: gradients that pass through no other node.

In one run each dictionary's output is cut off from what it was made of: what lies before is kept, and what lies behind
reads a leaf of the same value. A backward pass from a node reaches the leaves that it reads straight, and no further.

    weight(u -> v) = -(∂metric/∂v) · (∂v/∂u, all other nodes held) · (u' - u)

with the gradient of the metric from the scores. All rows together, the errors' and the metric's own among them, give
back the score of u where it is the first-order one: the chain rule.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...edits import Edit
from ...models import Moment, Run
from ..importance.scores import along
from ..importance.states import States

Flow = list[Float[Tensor, "pairs pos node"]]  # a tensor for each dictionary: what its nodes give to one target


class Cut:
    """One run of a batch of pairs with every dictionary's output cut off.

    Attributes:
        states: of each dictionary, in the order of depth. leaves: what is read behind it. written, errors: of what lay
            before it, with their graph.
    """

    def __init__(self, batch: Sequence[States]):
        self.states = batch
        self.leaves: dict[int, Tensor] = {}
        self.before: dict[int, Tensor] = {}
        first, model = batch[0], batch[0].model
        reads = {one.dictionary.site for one in batch}
        with torch.enable_grad():
            run = model.run(
                first.pairs.clean,
                capture=sorted({first.begin[0], *reads}, key=str),
                edits=[self._cut(number, one) for number, one in enumerate(batch)],
                start=first.begin,
                logits="last",
                grad=True,
            )
            assert run.logits is not None
            self.number = first.measured(run.logits, [*range(len(first.pairs))]).sum()
            parts = [self._parts(number, one, run) for number, one in enumerate(batch)]
        self.written, self.errors = zip(*parts)

    def _cut(self, number: int, one: States) -> Edit:
        def fn(x: Tensor, moment: Moment) -> Tensor:
            self.before[number] = x
            leaf = self.leaves[number] = x.detach().clone().requires_grad_()
            keep = one.keep.to(x.device).view(*x.shape[:2], *[1] * (x.ndim - 2))
            return torch.where(keep, leaf, x)  # tokens without nodes are passed through

        return Edit(one.dictionary.site_out, fn, "cut off")

    def _parts(self, number: int, one: States, run: Run) -> tuple[Tensor, Tensor]:
        dictionary, out = one.dictionary, self.before[number].flatten(2)
        same = dictionary.site == dictionary.site_out
        read = out if same else run[dictionary.site].flatten(2)
        dense, scale = dictionary.encode(read).dense(), dictionary.token_scale(read)
        written = dense if scale is None else dense * scale
        return written, out.to(written) - written @ one.rows

    def flow(self, value: Tensor) -> Flow:
        """What every node before gives to a number (summed over pairs), straight."""
        leaves = [self.leaves[number] for number in range(len(self.states))]
        if not value.requires_grad:
            slopes: Sequence[Tensor | None] = [None] * len(leaves)
        else:
            slopes = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        return [
            along(one, torch.zeros_like(one.x) if slope is None else slope.flatten(2).to(one.x))
            for one, slope in zip(self.states, slopes)
        ]

    def node(self, number: int, slope: Float[Tensor, "pairs pos d_out"], place: int | None, node: int) -> Tensor:
        """The sum of a node's values (at one token, or at all), each times the metric's gradient there."""
        one = self.states[number]
        if node == self.written[number].shape[-1]:
            values = (self.errors[number] * slope).sum(-1)
        else:
            values = self.written[number][..., node] * (slope @ one.rows[node])
        values = values * one.keep
        return values.sum() if place is None else values[:, place].sum()
