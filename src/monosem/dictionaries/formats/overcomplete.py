"""overcomplete 0.3.0: a state dict with a linear encoder and a dictionary, whose rows have norm 1 when they are used.

    codes = act(relu(x W^T + b))        y = codes D exp(multiplier), D = _weights / |row|

JumpSAE keeps codes >= exp(thresholds). The others have the same tensors, so the caller says which it is; a
BatchTopKSAE's running threshold is not stored.
"""

from dataclasses import replace

import torch

from ...errors import BadFile
from ..folds import at_least
from ..parts import DictionaryParts
from .common import Format, Hints, Place, canonical, scalar, take

_NAMES = {
    "W_enc": "encoder.final_block.0.weight^T",
    "b_enc": "encoder.final_block.0.bias",
    "W_dec": "dictionary._weights",
}
_KNOWN = {*(name.removesuffix("^T") for name in _NAMES.values()), "dictionary.multiplier", "thresholds"}
SMALLEST = 1e-8  # added to the norm of a row


def detect(place: Place) -> bool:
    return place.holds("dictionary._weights")


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for an encoder that is not linear, or a kind that is neither stored nor given."""
    path, held = place.path, place.state
    if other := sorted(str(key) for key in held.keys() - _KNOWN):
        raise BadFile(f"{path}: only linear encoders are read, this one also has {', '.join(other):.200}")
    weights = canonical(held, _NAMES, path, default={"b_dec": lambda width, d_in: torch.zeros(d_in)})
    rows = weights.W_dec / (weights.W_dec.norm(dim=-1, keepdim=True) + SMALLEST)
    weights = replace(weights, W_dec=rows * torch.tensor(scalar(held, "dictionary.multiplier", path)).exp())
    kind = "jumprelu" if "thresholds" in held else hints.kind
    if kind == "jumprelu" and "thresholds" in held:
        threshold = take(held, ["thresholds"], path)[0].double().exp()
        weights = replace(weights, threshold=at_least(threshold))
    elif kind not in ("relu", "topk") or (kind == "topk" and hints.k is None):
        raise BadFile(f"{path} does not say its activation: give kind='relu' (SAE), or kind='topk' and k= (TopKSAE)")
    return DictionaryParts(
        weights.to(torch.float32),
        kind,
        k=hints.k if kind == "topk" else None,
        name=path.stem,
        metadata={"original_form": {"format": "overcomplete"}},
    )


FORMAT = Format(detect, read, hints=("kind", "k"))
