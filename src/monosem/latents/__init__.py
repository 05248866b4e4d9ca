"""Latents: what fires where, what tells prompts apart, and the evidence of what one is about."""

from .config import IndexConfig
from .contrast import Contrast, contrast
from .cycles import CYCLES, Cycle, cycle
from .dashboards import Dashboards, read_dashboards
from .delphi import read_delphi
from .details import coactive, correlated_neurons, deciles, enrichment, near_misses, silent, token_patterns, uniform
from .effects import extreme_tokens, logit_effects
from .evidence import Evidence, Example
from .explanations import Explanation, Explanations, explanations_of
from .geometry import WeightStatistics, neighbours, weight_statistics
from .importance.check import LatentCheck, check_latents
from .importance.codes import Means
from .importance.exact import exact_latents
from .importance.gradients import LatentGradients, latent_gradients
from .importance.heads import HeadSources, head_sources
from .importance.scores import LATENT_METHODS, LatentScores, latent_scores
from .importance.weights import ReadScores, de_embedding, latent_connections, pullback
from .index import Index, index_of
from .indexing import build_index
from .latent_page import LatentPage, page
from .maps import DecoderMap, decoder_map
from .meta import MetaLatents, meta_latents
from .neuronpedia import neuron_row, quick_list_url, write_dashboards
from .outputs import OutputScores, output_scores
from .pooling import pooled
from .public import public_latent
from .readers import direction_latents, head_latents, neuron_latents
from .removal import Removal, ablation, removal
from .rules import IndexCheck, check_index
from .sparse_circuits.circuit import FeatureCircuit, feature_circuit
from .sparse_circuits.running import CircuitRun
from .splitting import Splitting, splitting
from .tables import export_index
from .token_sets import SetEffects, set_effects
from .top import Top, top
from .written import Written, written

__all__ = [
    "CYCLES",
    "LATENT_METHODS",
    "CircuitRun",
    "Contrast",
    "Cycle",
    "Dashboards",
    "DecoderMap",
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
    "Means",
    "MetaLatents",
    "OutputScores",
    "ReadScores",
    "Removal",
    "SetEffects",
    "Splitting",
    "Top",
    "WeightStatistics",
    "Written",
    "ablation",
    "build_index",
    "check_index",
    "check_latents",
    "coactive",
    "contrast",
    "correlated_neurons",
    "cycle",
    "de_embedding",
    "deciles",
    "decoder_map",
    "direction_latents",
    "enrichment",
    "exact_latents",
    "explanations_of",
    "export_index",
    "extreme_tokens",
    "feature_circuit",
    "head_latents",
    "head_sources",
    "index_of",
    "latent_connections",
    "latent_gradients",
    "latent_scores",
    "logit_effects",
    "meta_latents",
    "near_misses",
    "neighbours",
    "neuron_latents",
    "neuron_row",
    "output_scores",
    "page",
    "pooled",
    "public_latent",
    "pullback",
    "quick_list_url",
    "read_dashboards",
    "read_delphi",
    "removal",
    "set_effects",
    "silent",
    "splitting",
    "token_patterns",
    "top",
    "uniform",
    "weight_statistics",
    "write_dashboards",
    "written",
]
