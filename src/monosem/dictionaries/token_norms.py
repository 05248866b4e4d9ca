"""Normalisation of each token that no fold can take away: done on the input, undone on the output
(not by transcoders, whose output is another activation). A row each."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .codes import TokenNorm

LAYER_NORM_EPS = 1e-5  # added to the standard deviation, by OpenAI and SAELens alike

Normalised = tuple[Float[Tensor, "*batch d_in"], TokenNorm | None]


def _layer_norm(x: Tensor) -> Normalised:
    """(x - mean) / (std + 1e-5), with the unbiased standard deviation."""
    norm = TokenNorm(x.mean(-1, keepdim=True), x.std(-1, keepdim=True))
    return (x - norm.mean) / (norm.scale + LAYER_NORM_EPS), norm


def _constant_norm(x: Tensor) -> Normalised:
    """x sqrt(d) / |x|"""
    scale = x.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
    return x / scale.clamp(min=torch.finfo(x.dtype).tiny), TokenNorm(torch.zeros_like(scale), scale)


def _layer_norm_in(x: Tensor) -> Normalised:
    """PyTorch's LayerNorm, (x - mean) / sqrt(variance + 1e-5), of what is encoded alone: the output is as it is."""
    normed = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
    return normed, TokenNorm(torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1]))


TOKEN_NORMS: dict[str, Callable[[Tensor], Normalised]] = {
    "none": lambda x: (x, None),
    "layer_norm": _layer_norm,
    "constant_norm_rescale": _constant_norm,
    "layer_norm_in": _layer_norm_in,
}
