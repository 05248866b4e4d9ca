"""Steering: what edits do to the next token and the continuation, for a few prompts or for every latent."""

from .controls import after_first, random_latents
from .effects import Comparison, Outcome, compare, outcome, summarise
from .sweep import Sweep, SweepConfig, open_sweep, sweep

__all__ = [
    "Comparison",
    "Outcome",
    "Sweep",
    "SweepConfig",
    "after_first",
    "compare",
    "open_sweep",
    "outcome",
    "random_latents",
    "summarise",
    "sweep",
]
