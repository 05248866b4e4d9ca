"""Kinds of dictionaries that can be trained: one small file each, and a row here."""

from ..settings import DictionarySettings
from .kind import Forward, Kind, Pass
from .matryoshka import MATRYOSHKA
from .topk import BATCHTOPK, TOPK

KINDS: dict[str, Kind] = {"topk": TOPK, "batchtopk": BATCHTOPK, "matryoshka": MATRYOSHKA}
OWN = {name for kind in KINDS.values() for name in kind.own}  # settings that only some kinds have

__all__ = ["KINDS", "OWN", "DictionarySettings", "Forward", "Kind", "Pass"]
