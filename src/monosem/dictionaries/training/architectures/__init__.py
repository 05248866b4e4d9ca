"""Architectures that can be trained: what a dictionary reads and writes. One small file each, and a row here."""

from .architecture import Architecture
from .cross_layer import CROSS_LAYER
from .crosscoder import CROSSCODER
from .one_site import SAE, TRANSCODER

ARCHITECTURES: dict[str, Architecture] = {
    "sae": SAE,
    "transcoder": TRANSCODER,
    "crosscoder": CROSSCODER,
    "cross_layer": CROSS_LAYER,
}

__all__ = ["ARCHITECTURES", "Architecture"]
