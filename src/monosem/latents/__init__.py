"""Latents: what fires where, what tells prompts apart, and the evidence of what one is about."""

from .config import IndexConfig
from .contrast import Contrast, contrast
from .effects import extreme_tokens, logit_effects
from .evidence import Evidence, Example
from .explanations import Explanation, Explanations, explanations_of
from .geometry import WeightStatistics, neighbours, weight_statistics
from .importance.check import LatentCheck, check_latents
from .importance.exact import exact_latents
from .importance.gradients import LatentGradients, latent_gradients
from .importance.heads import HeadSources, head_sources
from .importance.scores import LATENT_METHODS, LatentScores, latent_scores
from .importance.weights import ReadScores, de_embedding, latent_connections, pullback
from .index import Index, index_of
from .indexing import build_index
from .latent_page import LatentPage, page
from .outputs import OutputScores, output_scores
from .pooling import pooled
from .rules import IndexCheck, check_index
from .sparse_circuits.circuit import FeatureCircuit, feature_circuit
from .sparse_circuits.running import CircuitRun
from .top import Top, top

__all__ = [
    "LATENT_METHODS",
    "CircuitRun",
    "Contrast",
    "Evidence",
    "Example",
    "Explanation",
    "Explanations",
    "FeatureCircuit",
    "HeadSources",
    "Index",
    "IndexCheck",
    "IndexConfig",
    "LatentCheck",
    "LatentGradients",
    "LatentPage",
    "LatentScores",
    "OutputScores",
    "ReadScores",
    "Top",
    "WeightStatistics",
    "build_index",
    "check_index",
    "check_latents",
    "contrast",
    "de_embedding",
    "exact_latents",
    "explanations_of",
    "extreme_tokens",
    "feature_circuit",
    "head_sources",
    "index_of",
    "latent_connections",
    "latent_gradients",
    "latent_scores",
    "logit_effects",
    "neighbours",
    "output_scores",
    "page",
    "pooled",
    "pullback",
    "top",
    "weight_statistics",
]
