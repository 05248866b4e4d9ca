"""Latents: what fires where, what tells prompts apart, and the evidence of what one is about."""

from .config import IndexConfig
from .contrast import Contrast, contrast
from .effects import extreme_tokens, logit_effects
from .evidence import Evidence, Example
from .explanations import Explanation, Explanations, explanations_of
from .geometry import WeightStatistics, neighbours, weight_statistics
from .index import Index, index_of
from .indexing import build_index
from .latent_page import LatentPage, page
from .outputs import OutputScores, output_scores
from .pooling import pooled
from .rules import IndexCheck, check_index
from .top import Top, top

__all__ = [
    "Contrast",
    "Evidence",
    "Example",
    "Explanation",
    "Explanations",
    "Index",
    "IndexCheck",
    "IndexConfig",
    "LatentPage",
    "OutputScores",
    "Top",
    "WeightStatistics",
    "build_index",
    "check_index",
    "contrast",
    "explanations_of",
    "extreme_tokens",
    "index_of",
    "logit_effects",
    "neighbours",
    "output_scores",
    "page",
    "pooled",
    "top",
    "weight_statistics",
]
