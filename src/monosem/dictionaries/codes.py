"""Sparse codes: what a dictionary says about activations, as values and indices."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UnknownName


class TokenNorm(NamedTuple):
    """Statistics of each token of a dictionary that normalises its input at run time; both are `[..., 1]`.

    The reconstruction is `y * scale + mean`, so a decoder row counts `scale` times in raw activation units.
    """

    mean: Float[Tensor, "*batch 1"]
    scale: Float[Tensor, "*batch 1"]


class Codes(NamedTuple):
    """Codes of a batch of activations: `values[..., i]` is how strongly latent `indices[..., i]` is active.

    A row with fewer active latents than others is padded with value 0 at index 0; a padded entry adds nothing to
    any of the sums below. A latent occurs at most once a row (padding aside). `norm` is set only by dictionaries that
    normalise each token, `predicted` by those that predict a part of the activation from earlier tokens (it is added to
    what is decoded), so that `decode(codes)` needs nothing else.

    Shapes: `values` and `indices` are `[..., k]`, with k the largest number of active latents of any row.
    """

    values: Float[Tensor, "*batch k"]
    indices: Int[Tensor, "*batch k"]
    width: int
    norm: TokenNorm | None = None
    predicted: Float[Tensor, "*batch d_out"] | None = None

    def dense(self) -> Float[Tensor, "*batch width"]:
        """The same codes as one column a latent."""
        out = self.values.new_zeros(*self.values.shape[:-1], self.width)
        return out.scatter_add(-1, self.indices, self.values)

    def of(self, latents: int | Sequence[int] | Tensor) -> Float[Tensor, "*batch n"]:
        """Activations of some latents, 0 where they are not active.

        Raises:
            UnknownName: a latent is not in 0..width-1.
        """
        wanted = latent_ids(latents, self.width).to(self.indices.device)
        if (
            len(wanted) * self.values.shape[-1] > self.width
        ):  # the comparison below would be bigger than the dense codes
            return self.dense()[..., wanted]
        hit = self.indices.unsqueeze(-2) == wanted.unsqueeze(-1)  # [..., n, k]
        return torch.where(hit, self.values.unsqueeze(-2), 0).sum(-1)

    def l0(self) -> Int[Tensor, "*batch"]:
        """How many latents are active in each row."""
        return (self.values != 0).sum(-1)


def latent_ids(latents: int | Sequence[int] | Tensor, width: int) -> Int[Tensor, "n"]:
    """Check latent numbers and make them a 1-D tensor.

    Raises:
        UnknownName: not a whole number in 0..width-1.
    """
    ids = torch.as_tensor(latents)
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise UnknownName(f"latents are whole numbers from 0 to {width - 1}, not {ids.dtype} values")
    ids = ids.long().reshape(-1)
    outside = ids[(ids < 0) | (ids >= width)]
    if len(outside):
        raise UnknownName(f"no latent {int(outside[0])}: this dictionary has latents 0 to {width - 1}")
    return ids
