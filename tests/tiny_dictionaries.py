"""Random dictionaries for the tiny models."""

from dataclasses import replace
from typing import Any

import torch

from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors


def random_tensors(
    d: int = 32,
    width: int = 24,
    seed: int = 3,
    scales: tuple[float, float] = (1.0, 1.0),
    dtype: torch.dtype | None = None,
) -> DictionaryTensors:
    """Standard normal entries; `scales` of W_enc and b_enc."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d, width), "b_enc": (width,), "W_dec": (width, d), "b_dec": (d,)}
    drawn = {name: torch.randn(shape, generator=draw, dtype=dtype) for name, shape in shapes.items()}
    return replace(DictionaryTensors(**drawn), W_enc=drawn["W_enc"] * scales[0], b_enc=drawn["b_enc"] * scales[1])


def tiny_dictionary(kind: str = "topk", tensors: DictionaryTensors | None = None, **about: Any) -> Dictionary:
    """A dictionary at resid_post.1 with random tensors (or these); `about` are fields of `DictionaryParts`."""
    defaults = {"site": "resid_post.1", "model_name": "tiny", "name": "tiny-sae", "k": 6 if "topk" in kind else None}
    return Dictionary(DictionaryParts(tensors or random_tensors(), kind, **{**defaults, **about}))


def with_rows(
    rows: torch.Tensor, name: str, site: str = "resid_post.0", kind: str = "relu", **about: Any
) -> Dictionary:
    """A dictionary with these decoder rows; its encoder is their transpose."""
    width, d = rows.shape
    tensors = DictionaryTensors(rows.T.clone(), torch.zeros(width), rows, torch.zeros(d))
    return tiny_dictionary(kind, tensors, name=name, site=site, **about)
