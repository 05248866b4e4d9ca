"""Means and spreads over pairs that are updated batch by batch, where variants times pairs are too many to keep."""

import torch
from jaxtyping import Float
from torch import Tensor


class Moments:
    """Mean, variance and covariance with the two unpatched runs of every variant's value, over the pairs seen so far.

    Batches are merged by Chan's update (Chan, Golub and LeVeque 1983), which does not cancel as sums of squares do.
    """

    def __init__(self, variants: int):
        self.count = 0
        self.mean: Float[Tensor, "variants"] = torch.zeros(variants, dtype=torch.float64)
        self.ends: Float[Tensor, "2"] = torch.zeros(2, dtype=torch.float64)  # means of clean, corrupted
        # sums of products of deviations: of the value with itself, with clean, with corrupted; of the ends' own
        self.squares = torch.zeros(variants, dtype=torch.float64)
        self.products: Float[Tensor, "variants 2"] = torch.zeros(variants, 2, dtype=torch.float64)
        self.between: Float[Tensor, "2 2"] = torch.zeros(2, 2, dtype=torch.float64)

    def add(
        self, values: Float[Tensor, "variants batch"], clean: Float[Tensor, "batch"], corrupted: Float[Tensor, "batch"]
    ) -> None:
        """Take in a batch of pairs."""
        ends = torch.stack([clean, corrupted])
        mean, end_means = values.mean(1), ends.mean(1)
        around, ends_around = values - mean[:, None], ends - end_means[:, None]
        moved, ends_moved = mean - self.mean, end_means - self.ends
        weight = self.count * values.shape[1] / (total := self.count + values.shape[1])
        self.squares += around.square().sum(1) + weight * moved.square()
        self.products += around @ ends_around.T + weight * torch.outer(moved, ends_moved)
        self.between += ends_around @ ends_around.T + weight * torch.outer(ends_moved, ends_moved)
        self.mean += moved * (values.shape[1] / total)
        self.ends += ends_moved * (values.shape[1] / total)
        self.count = total

    def standard_error(
        self, clean: float | Float[Tensor, "variants"] = 0.0, corrupted: float | Float[Tensor, "variants"] = 0.0
    ) -> Float[Tensor, "variants"]:
        """Standard error of the mean of value - clean · (clean run) - corrupted · (corrupted run); NaN for one pair."""
        if self.count < 2:
            return torch.full_like(self.mean, torch.nan)
        weights = torch.stack([torch.as_tensor(w).expand_as(self.mean) for w in (clean, corrupted)], 1).double()
        ends = ((weights @ self.between) * weights).sum(1)
        squares = self.squares - 2 * (weights * self.products).sum(1) + ends
        return (squares.clamp_min(0) / (self.count - 1) / self.count).sqrt()

    def take(self, which: Tensor) -> "Moments":
        """The moments of some of the variants."""
        part = Moments(0)
        part.count, part.ends, part.between = self.count, self.ends, self.between
        part.mean, part.squares, part.products = self.mean[which], self.squares[which], self.products[which]
        return part
