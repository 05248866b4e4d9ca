"""Temporal dictionaries (arXiv 2511.01836): what earlier tokens predict, and sparse codes of what they do not."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PROJECTIONS = {"k": "k_ctx", "q": "q_target", "v": "v_ctx", "o": "c_proj"}  # ours -> SAELens's names


def temporal_shapes(d_in: int, width: int) -> dict[str, tuple[int, ...]]:
    """Of the extra tensors: the bias that is subtracted from the input, and each projection of all layers, stacked."""
    shapes: dict[str, tuple[int, ...]] = {"b_in": (d_in,)}
    for name in PROJECTIONS:
        rows = -1 if name in ("k", "q") else width
        shapes |= {f"{name}_weight": (-1, rows, width), f"{name}_bias": (-1, rows)}
    return shapes


def novel_codes(
    z: Float[Tensor, "batch pos d_in"], tensors: Mapping[str, Tensor], k: int | None, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Float[Tensor, "batch pos d_out"]]:
    """Values and indices `[batch, pos, k]` of the novel codes, and the reconstruction of what is predicted.

    Each layer takes codes of what is left; a token's codes attend to the codes of the tokens before it (the first
    token's to zeros). What they predict is scaled to its projection on what is left, and taken away from it.
    """
    assert k is not None
    left = z - tensors["b_in"]
    W_enc, b_enc, W_dec = tensors["W_enc"], tensors["b_enc"], tensors["W_dec"]
    predicted = torch.zeros_like(left)
    for layer in range(len(tensors["k_bias"])):
        here = (left @ W_enc + b_enc).relu()
        there = F.pad(here, (0, 0, 1, 0))[:, :-1]
        codes = _attended(there, here, tensors, layer, options["heads"]).relu()
        part = codes @ W_dec
        size = (part.norm(dim=-1, keepdim=True) + options["eps"]).square()
        part = part * ((part * left).sum(-1, keepdim=True) / size)
        predicted, left = predicted + part, left - part
    values, indices = (left @ W_enc + b_enc).relu().topk(min(k, W_enc.shape[1]), dim=-1)
    return values, torch.where(values.detach() != 0, indices, 0), predicted


def _attended(context: Tensor, target: Tensor, tensors: Mapping[str, Tensor], layer: int, heads: int) -> Tensor:
    """Causal attention over codes, `[batch, pos, width]`."""

    def projected(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}_weight"][layer], tensors[f"{name}_bias"][layer])

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = (split(projected(x, name)) for x, name in ((target, "q"), (context, "k"), (context, "v")))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return projected(mixed.transpose(1, 2).flatten(2), "o")
