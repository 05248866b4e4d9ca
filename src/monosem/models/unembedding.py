"""The product of states with the unembedding, on processors that do not multiply the weights' precision themselves."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .loading.precision import multiplies

FEW = 8  # rows below which the native product is not slower
PIECE = 4096  # rows of the weight that are held in float32 at once


def unembedded(head: nn.Module, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """What the head gives, in the head's precision. Hooks of a pass in progress do not act.

    A CPU without bf16 (fp16) instructions multiplies bf16 (fp16) matrices at a quarter of the speed of float32 or
    less. There the products of many states are computed in float32, some tokens of the vocabulary at a time, and
    rounded: the head's own numbers, to the rounding of its precision.
    """
    if not _widened(head, resid):
        return head.forward(resid)
    assert isinstance(head, nn.Linear)
    wide, parts = resid.float(), []
    for first in range(0, head.out_features, PIECE):
        rows = slice(first, first + PIECE)
        bias = None if head.bias is None else head.bias[rows].float()
        parts.append(nn.functional.linear(wide, head.weight[rows].float(), bias).to(resid.dtype))
    return torch.cat(parts, -1)


def _widened(head: nn.Module, resid: Tensor) -> bool:
    """Not where a graph would keep the wide weights, nor for heads that are more than a product (adapters, packing)."""
    if type(head) is not nn.Linear or head.weight.dtype != resid.dtype or multiplies(resid.dtype, resid.device):
        return False
    graph = torch.is_grad_enabled() and (resid.requires_grad or head.weight.requires_grad)
    return not graph and resid.numel() // resid.shape[-1] >= FEW
