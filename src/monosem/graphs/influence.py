"""How much of what a graph explains goes through each node: one sweep from the logits back."""

from jaxtyping import Float, Int
from torch import Tensor

SMALLEST = 1e-10  # a row that is smaller is divided by this


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


def largest_share(values: Float[Tensor, "n"], share: float) -> Float[Tensor, ""]:
    """The value from which on the largest values make up a share of their sum."""
    ordered = values.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum().clamp(min=SMALLEST)
    return ordered[min(int((reached < share).sum()), len(ordered) - 1)]
