"""How much of what a graph explains goes through each node: one sweep from the logits back."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST = 1e-10  # a row that is smaller is divided by this
MOST_SORTED = 2**20


def shares_of(edges: Float[Tensor, "row node"]) -> Float[Tensor, "row node"]:
    """Magnitudes as shares of their row: |A| / max(Σ |A|, 1e-10)."""
    sizes = edges.abs()
    return sizes.div_(sizes.sum(-1, keepdim=True).clamp(min=SMALLEST))


def sweep(
    shares: Float[Tensor, "row node"],
    rows: Int[Tensor, "row"],
    depths: Int[Tensor, "row"],
    weights: Float[Tensor, "row"],
) -> Float[Tensor, "node"]:
    """w (S + S² + S³ + ...), rows of larger depth first: a row's own influence is complete when its turn comes.

    Args:
        rows: the node of each row. depths: rows read from nodes of smaller depth alone.
        weights: what each row has of its own: of logits.
    """
    influence = shares.new_zeros(shares.shape[1])
    for depth in depths.unique().flip(0):
        here = (depths == depth).nonzero().flatten()
        total = influence[rows[here]] + weights[here]
        active = total != 0
        if len(here) > 1 and int(here[-1] - here[0]) + 1 == len(here):  # no copy of neighbouring rows
            influence += total @ shares[int(here[0]) : int(here[-1]) + 1]
        else:
            influence += total[active] @ shares[here[active]]
    return influence


def largest_share(values: Float[Tensor, "n"], share: float, most: int = MOST_SORTED) -> Float[Tensor, ""]:
    """The value from which on the largest values (none below 0) make up a share of their sum.

    Only where at most so many values are left between two bounds are they sorted: a graph of 10,000 nodes has 10^8.
    """
    total = values.sum(dtype=torch.float64)
    wanted, above = float(total) * share, 0.0  # above: the sum of what lies over the upper bound
    low, high = -1.0, float(values.max())
    between = values
    if high <= 0:
        return values.new_zeros(())
    for _ in range(60):
        if len(between) <= most:
            break
        middle = (max(low, high * 1e-6) * high) ** 0.5  # values of a graph differ by orders of magnitude
        upper = between > middle
        more = above + float(between[upper].sum(dtype=torch.float64))
        if more >= wanted:
            low, between = middle, between[upper]
        else:
            high, above, between = middle, more, between[~upper]
    ordered = between.sort(descending=True).values
    reached = above + ordered.cumsum(0, dtype=torch.float64)
    return ordered[min(int((reached < wanted).sum()), len(ordered) - 1)]
