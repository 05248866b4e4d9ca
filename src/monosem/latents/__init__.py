"""Latents: what fires where, what tells prompts apart, and the evidence of what one is about."""

from .config import IndexConfig
from .contrast import Contrast, contrast
from .effects import extreme_tokens, logit_effects
from .evidence import Evidence, Example
from .index import Index, index_of
from .indexing import build_index
from .pooling import pooled
from .readings import Reading, Readings, readings_of
from .rules import IndexCheck, check_index
from .top import Top, top

__all__ = [
    "Contrast",
    "Evidence",
    "Example",
    "Index",
    "IndexCheck",
    "IndexConfig",
    "Reading",
    "Readings",
    "Top",
    "build_index",
    "check_index",
    "contrast",
    "extreme_tokens",
    "index_of",
    "logit_effects",
    "pooled",
    "readings_of",
    "top",
]
