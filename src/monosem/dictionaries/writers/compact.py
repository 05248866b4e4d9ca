"""monosem's compact folders: 8-bit matrices with a scale a latent, a quarter of the size of float32."""

from pathlib import Path

import torch
from torch import Tensor

from ..formats.compact import SCALE, SCALED_AXIS, WEIGHTS
from ..parts import DictionaryParts
from .common import write_tensors
from .saelens import held_as

STEPS = 127  # integers on each side of zero


def write(parts: DictionaryParts, folder: Path, dtype: torch.dtype) -> None:
    """Write `cfg.json` as for SAELens beside rounded weights. `dtype` has no say: matrices are int8, vectors float32.

    Each number is off by at most half of its scale, a 254th of the largest magnitude of its row; what that cost is in
    docs/dictionary-formats.md. Only monosem reads it: `monosem convert` writes what other tools read.

    Raises:
        BadInput: SAELens has no architecture for this dictionary, or it holds further matrices.
    """
    target, held = held_as(parts, folder, torch.float32)
    rounded: dict[str, Tensor] = {}
    for name, tensor in held.items():
        rounded |= _rounded(name, tensor) if name in SCALED_AXIS else {name: tensor.detach().float()}
    write_tensors(target / WEIGHTS, rounded, None)


def _rounded(name: str, tensor: Tensor) -> dict[str, Tensor]:
    axis = SCALED_AXIS[name]
    scale = tensor.detach().float().abs().amax(axis) / STEPS
    scale = torch.where(scale > 0, scale, 1)
    return {name: (tensor.float() / scale.unsqueeze(axis)).round().to(torch.int8), name + SCALE: scale}
