"""Sparse matrix products at the places where a code is active, with gradients.

A `Support` says which latents are active for which token. Three products over it are all that training needs:

    rows_dot        a · W[f] at every active place          codes' values, and their gradients
    weighted_sum    Σ_f value · W[f] for every token        the decoder
    transposed_sum  Σ_b value · a[b] for every latent       gradients of both weight matrices

On a GPU they are Triton kernels where Triton is installed (`gpu.py`). Elsewhere each runs in `embedding_bag` (or its
own backward), which gathers rows without writing the gathered copy to memory. At d=576, F=8192, k=32, 4096 tokens each
takes a few milliseconds on two cores, where the encoder's dense product takes hundreds; a gather + bmm takes ten times
longer and 300 MB. No dense code matrix is ever made.
"""

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_SUM = 0  # embedding_bag's mode number for "sum"
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def in_triton(tensor: Tensor) -> bool:
    """Whether a product with this tensor is a Triton kernel's."""
    return tensor.is_cuda and _HAS_TRITON


@dataclass
class Support:
    """The active places of a batch of codes, token by token (the indices of a CSR matrix [batch, width])."""

    columns: Int[Tensor, "places"]  # latent of each place, tokens in order
    offsets: Int[Tensor, "batch"]  # where each token's places begin
    width: int

    @classmethod
    def of(cls, columns: Int[Tensor, "batch k"], width: int) -> "Support":
        """The same number of places for every token (TopK)."""
        batch, k = columns.shape
        return cls(columns.flatten(), torch.arange(0, batch * k, k, device=columns.device), width)

    @classmethod
    def from_counts(cls, columns: Int[Tensor, "places"], counts: Int[Tensor, "batch"], width: int) -> "Support":
        """So many places for each token."""
        return cls(columns, counts.cumsum(0) - counts, width)

    @cached_property
    def counts(self) -> Int[Tensor, "batch"]:
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([len(self.columns)])])
        return ends - self.offsets

    @cached_property
    def rows(self) -> Int[Tensor, "places"]:
        return torch.repeat_interleave(self.counts, output_size=len(self.columns))

    @cached_property
    def order(self) -> Int[Tensor, "places"]:
        """Permutation that sorts the places by latent (stable, so that sums run in a fixed order)."""
        return torch.argsort(self.columns.int(), stable=True)

    @cached_property
    def latent_offsets(self) -> Int[Tensor, "width"]:
        """Where each latent's places begin in `order`."""
        latents = torch.arange(self.width, device=self.columns.device)
        return torch.searchsorted(self.columns[self.order], latents)  # bincount would make a GPU wait

    @cached_property
    def rows_by_latent(self) -> Int[Tensor, "places"]:
        return self.rows[self.order]


def rows_dot(
    support: Support, a: Float[Tensor, "batch d"], weight: Float[Tensor, "width d"]
) -> Float[Tensor, "places"]:
    """a[token] · weight[latent] at every place. This product is exactly embedding_bag's gradient for its weights."""
    if in_triton(weight):
        from . import gpu

        return gpu.dotted(support.columns, support.offsets, a, weight)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        a.contiguous(), weight, support.columns, support.offsets, support.rows, _SUM
    )


def weighted_sum(
    support: Support, values: Float[Tensor, "places"], weight: Float[Tensor, "width d"]
) -> Float[Tensor, "batch d"]:
    """Σ over a token's places of value · weight[latent], for every token."""
    if in_triton(weight):
        from . import gpu

        return gpu.summed(support.columns, support.offsets, values, weight)
    return F.embedding_bag(support.columns, weight, support.offsets, mode="sum", per_sample_weights=values)


def transposed_sum(
    support: Support, values: Float[Tensor, "places"], a: Float[Tensor, "batch d"]
) -> Float[Tensor, "width d"]:
    """Σ over a latent's places of value · a[token], for every latent; zero where a latent has no place."""
    ordered = values[support.order]
    if in_triton(a):
        from . import gpu

        return gpu.summed(support.rows_by_latent, support.latent_offsets, ordered, a)
    return F.embedding_bag(
        support.rows_by_latent, a.contiguous(), support.latent_offsets, mode="sum", per_sample_weights=ordered
    )


class _EncodeAt(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        b_dec: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        support: Support,
        signed: bool,
        known: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        if known is None:
            centred = x - b_dec
            pre = rows_dot(support, centred, W_enc) + b_enc[support.columns]
        else:
            centred, pre = known
        values = pre if signed else pre.relu()
        ctx.save_for_backward(centred, W_enc, values)
        ctx.support, ctx.signed = support, signed
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, W_enc, values = ctx.saved_tensors
        support: Support = ctx.support
        grad = grad if ctx.signed else grad * (values > 0)  # a selected place that ReLU set to zero gets no gradient
        grad_b_enc = grad.new_zeros(support.width).index_add_(0, support.columns, grad)
        grad_W_enc = transposed_sum(support, grad, centred)
        # Σ_b Σ_f of grad · W_enc[f]: summed over tokens before the product, so one matrix-vector product is enough
        grad_b_dec = -(grad_b_enc @ W_enc)
        grad_x = weighted_sum(support, grad, W_enc) if ctx.needs_input_grad[0] else None
        return grad_x, grad_b_dec, grad_W_enc, grad_b_enc, None, None, None


class _DecodeAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, support: Support) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values, W_dec)
        ctx.support = support
        return weighted_sum(support, values, W_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, W_dec = ctx.saved_tensors
        support: Support = ctx.support
        return rows_dot(support, grad, W_dec), transposed_sum(support, values, grad), None


def encode_at(
    x: Float[Tensor, "batch d"],
    b_dec: Float[Tensor, "d"],
    W_enc: Float[Tensor, "width d"],
    b_enc: Float[Tensor, "width"],
    support: Support,
    signed: bool = False,
    known: tuple[Float[Tensor, "batch d"], Float[Tensor, "places"]] | None = None,
) -> Float[Tensor, "places"]:
    """relu((x − b_dec) · W_enc[f] + b_enc[f]) at every place, `signed` without relu; gradients reach only the selected
    latents. `known`: x − b_dec and these products, where the choice of the places has computed them."""
    return _EncodeAt.apply(x, b_dec, W_enc, b_enc, support, signed, known)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, guess: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        rest = guess - y
        ctx.save_for_backward(rest)
        return torch.linalg.vector_norm(rest).square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (rest,) = ctx.saved_tensors
        return rest * (2 * grad), None


def distance_squared(guess: Float[Tensor, "batch d"], y: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Σ (guess − y)², with a gradient for the guess alone: two passes over memory fewer than autograd's, each way."""
    return _SquaredError.apply(guess, y)


def decode_at(
    values: Float[Tensor, "places"], W_dec: Float[Tensor, "width d"], support: Support
) -> Float[Tensor, "batch d"]:
    """Codes times decoder, without the bias."""
    return _DecodeAt.apply(values, W_dec, support)
