"""A start for translators in closed form: least squares from the state at a layer to the last one.

Tokens are weighted by the inverse squared norm of their last state. The final norm takes the size of a state away, so
an error counts by the angle it makes; without the weights a few attention sinks, with norms a hundred times the
median's, own the fit.
"""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput
from ..regression import NormalEquations

RIDGE = 1e-3

Batch = tuple[list[Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]]


def least_squares(
    batches: Iterable[Batch], layers: int, rank: int | None
) -> list[tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"]]]:
    """A and b of every layer, so that h + h A + b is near the last state.

    Args:
        batches: states of the layers, and the last state, of the same tokens.

    Raises:
        BadInput: no text.
    """
    sums = [NormalEquations() for _ in range(layers)]
    for states, final in batches:
        final = final.float()
        weight = final.square().mean(-1).clamp_min(1e-12).reciprocal()
        for one, h in zip(sums, states, strict=True):
            one.add(h.float(), final - h.to(final.device).float(), weight)
    if not sums[0].weight:
        raise BadInput("no text to fit the translators on")
    return [one.solve(RIDGE, "mean", rank) for one in sums]
