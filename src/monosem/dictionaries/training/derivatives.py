"""Functions with derivatives of their own: one that autograd has none for, one that it needs more memory for."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Jump(torch.autograd.Function):
    """pre where pre > θ, or 1 there (`count`); the derivative by θ is estimated (see `kinds/jumprelu.py`)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, pre: Tensor, threshold: Tensor, width: float, both: bool, count: bool
    ) -> Tensor:
        above = pre > threshold
        ctx.save_for_backward(pre, threshold, above)
        ctx.width, ctx.both, ctx.count = width, both, count
        return above.to(pre.dtype) if count else pre * above

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pre, threshold, above = ctx.saved_tensors
        inside = (pre - threshold).abs() < ctx.width / 2
        height = 1.0 if ctx.count else threshold
        estimated = grad * inside * height / ctx.width
        grad_pre = torch.zeros_like(pre) if ctx.count else grad * above
        return grad_pre + estimated if ctx.both else grad_pre, -estimated, None, None, None


class PrefixErrors(torch.autograd.Function):
    """Σ over prefixes of ‖target − its parts‖², with one array of the size of `parts` and few passes over it."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        errors = torch.empty_like(parts)
        for group in range(parts.shape[1]):
            torch.sub(target, parts[:, group], out=errors[:, group])
            target = errors[:, group]
        ctx.save_for_backward(errors)
        return torch.linalg.vector_norm(errors).square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """A part is in its own prefix and all longer ones."""
        (errors,) = ctx.saved_tensors
        grads, total = torch.empty_like(errors), torch.zeros_like(errors[:, 0])
        for group in reversed(range(errors.shape[1])):
            total.add_(errors[:, group])
            torch.mul(total, -2 * grad, out=grads[:, group])
        return grads, -grads[:, 0]
