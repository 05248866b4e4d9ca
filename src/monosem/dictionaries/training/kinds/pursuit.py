"""Matching pursuit (Costa et al. 2025, arXiv 2506.03093): latents are found one after the other, in what is left over.

From r = x − b_dec on, k times: the latent with the largest r · W_dec[j] above 0 is active by that much more, and r
loses its part. Encoder and decoder are one; W_enc and b_enc are not used. The backward pass goes the steps back: with
unit rows w, each step is r ← r − (r · w) w, so that no step's r has to be kept.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..form import TrainingForm
from ..settings import DictionarySettings
from .kind import Kind, Pass, counted


class _Pursuit(torch.autograd.Function):
    """What is left of each row after k steps, the latents and by how much they became active."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, W_dec: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        left = left.clone()
        columns = torch.empty(len(left), k, dtype=torch.long, device=left.device)
        values = left.new_empty(len(left), k)
        for step in range(k):
            value, column = (left @ W_dec.T).max(1)
            values[:, step], columns[:, step] = value.relu(), column
            left.addcmul_(values[:, step, None], W_dec[column], value=-1)
        ctx.save_for_backward(left, values, columns, W_dec)
        ctx.mark_non_differentiable(values, columns)
        return left, values, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        left, values, columns, W_dec = ctx.saved_tensors
        left, grad, grad_W = left.clone(), grad.clone(), torch.zeros_like(W_dec)
        for step in reversed(range(values.shape[1])):
            value, column = values[:, step, None], columns[:, step]
            rows = W_dec[column]
            left.addcmul_(value, rows)  # as it was before this step
            along = (grad * rows).sum(1, keepdim=True) * (value > 0)
            grad_W.index_add_(0, column, -(along * left + value * grad))
            grad.addcmul_(along, rows, value=-1)
        return grad, grad_W, None


def forward(form: TrainingForm, x: Float[Tensor, "batch d"], settings: DictionarySettings) -> Pass:
    assert settings.k is not None
    found: tuple[Tensor, Float[Tensor, "batch k"], Int[Tensor, "batch k"]]
    found = _Pursuit.apply(x - form.b_dec, form.W_dec, settings.k)
    left, values, columns = found
    done = counted(x - left, columns.flatten(), values.flatten(), form.width)
    done.active = sum_of_different(columns, values)
    return done


def sum_of_different(columns: Int[Tensor, "batch k"], values: Float[Tensor, "batch k"]) -> Int[Tensor, ""]:
    """Active latents in the batch, each counted once a row although it may have been found twice."""
    named = torch.where(values > 0, columns, -1).sort(1).values
    return (named[:, :1] >= 0).sum() + ((named[:, 1:] != named[:, :-1]) & (named[:, 1:] >= 0)).sum()


def _canonical(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"W_enc": weights["W_dec"], "b_enc": torch.zeros_like(weights["b_enc"])}


PURSUIT = Kind(
    use="latents found one after the other, for correlated or nested features; k times the work of topk",
    forward={"dense": forward},
    saved="matching_pursuit",
    architecture="matching_pursuit",
    own=("k",),
    needed=("k",),
    refused=("auxk",),
    canonical=_canonical,
    options=lambda settings: {"steps": settings.k, "tolerance": 0.0, "stop_at_repeat": False},
)
