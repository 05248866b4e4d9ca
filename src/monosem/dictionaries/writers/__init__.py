"""Formats that dictionaries are written in: a row each; each is read back as the same function."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..parts import DictionaryParts
from ..several import SeveralSites
from . import circuit_tracer, compact, cross_layer, crosscoder, saelens, sparsify

Writer = Callable[[DictionaryParts, Path, torch.dtype], None]

WRITERS: dict[str, Writer] = {
    "saelens": saelens.write,
    "sparsify": sparsify.write,
    "circuit-tracer": circuit_tracer.write,
    "compact": compact.write,
}
SeveralWriter = Callable[[SeveralSites, Path, torch.dtype], None]
CROSS_LAYER: dict[str, SeveralWriter] = {"circuit-tracer": cross_layer.write}
CROSSCODER: dict[str, SeveralWriter] = {"crosscoder": crosscoder.write}
