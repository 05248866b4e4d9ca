"""monosem's own compact folders, for dictionaries that ship in a package: SAELens' `cfg.json` beside 8-bit weights.

`compact_weights.safetensors`: a matrix as int8 with one float32 scale a latent (`W_enc.scale [width]`, `W_dec.scale
[width]`; `W_skip.scale [d_out]`), value = integer · scale; vectors in float32. `writers/compact.py` writes it.
"""

import torch
from torch import Tensor

from ...errors import BadFile
from ...reading import read_safetensors
from ..parts import DictionaryParts
from .common import Format, Hints, Place
from .saelens import read_held
from .saelens_config import CONFIG

WEIGHTS = "compact_weights.safetensors"
SCALE = ".scale"
SCALED_AXIS = {"W_enc": 0, "W_dec": 1, "W_skip": 1}  # along which one scale holds


def detect(place: Place) -> bool:
    return place.has(CONFIG, WEIGHTS)


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile`: integers without their scales, and all that `saelens.read` finds wrong."""
    path = place.path / WEIGHTS
    held = read_safetensors(path)
    scales = {name.removesuffix(SCALE): held.pop(name) for name in [n for n in held if n.endswith(SCALE)]}
    integers = {name for name, tensor in held.items() if tensor.dtype == torch.int8}
    if integers != scales.keys() or not integers <= SCALED_AXIS.keys():
        odd = sorted(integers.symmetric_difference(scales) | (integers - SCALED_AXIS.keys()))[0]
        raise BadFile(f"{path}: {odd} and {odd}{SCALE} do not belong together as 8-bit weights; write the folder again")
    for name, scale in scales.items():
        held[name] = _product(held[name], scale, name, path)
    return read_held(place, hints, held)


def _product(integers: Tensor, scale: Tensor, name: str, path: object) -> Tensor:
    axis = SCALED_AXIS[name]
    if integers.ndim != 2 or scale.shape != (integers.shape[1 - axis],) or not scale.is_floating_point():
        raise BadFile(f"{path}: {name}{SCALE} has shape {list(scale.shape)}, which does not fit {list(integers.shape)}")
    return integers.float() * scale.float().unsqueeze(axis)


FORMAT = Format(detect, read)
