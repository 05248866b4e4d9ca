"""Steering: what edits do to the next token and the continuation, for a few prompts or for every latent."""

from .comparison import Comparison, compare, comparisons, summarise
from .controls import random_latents
from .outcome import Outcome, outcome, outcomes
from .rows import EditSource
from .sweep import sweep_latents
from .sweep_result import LatentSweep, SweepConfig

__all__ = [
    "Comparison",
    "EditSource",
    "LatentSweep",
    "Outcome",
    "SweepConfig",
    "compare",
    "comparisons",
    "outcome",
    "outcomes",
    "random_latents",
    "summarise",
    "sweep_latents",
]
