"""Kinds of dictionaries that can be trained: one small file each, and a row here."""

from ..settings import DictionarySettings
from .gated import GATED
from .jumprelu import JUMPRELU
from .kind import Forward, Kind, Moment, Pass
from .matryoshka import MATRYOSHKA
from .pursuit import PURSUIT
from .relu import RELU
from .topk import ABSTOPK, BATCHTOPK, TOPK

KINDS: dict[str, Kind] = {
    "topk": TOPK,
    "batchtopk": BATCHTOPK,
    "matryoshka": MATRYOSHKA,
    "abstopk": ABSTOPK,
    "jumprelu": JUMPRELU,
    "gated": GATED,
    "relu": RELU,
    "matching_pursuit": PURSUIT,
}
OWN = {name for kind in KINDS.values() for name in kind.own}  # settings that only some kinds have

__all__ = ["KINDS", "OWN", "DictionarySettings", "Forward", "Kind", "Moment", "Pass"]
