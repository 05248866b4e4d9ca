"""Steering: what edits do to the next token and the continuation, for a few prompts or for every latent."""

from .comparison import Comparison, compare, comparisons, summarise
from .controls import random_directions, random_latents
from .dose import DoseResponse, dose_response
from .operations import OPERATIONS, Operation, own_amount
from .outcome import Outcome, outcome, outcomes
from .rows import EditSource
from .strength import IsoKL, Spoken, in_maxima, in_norms, iso_kl
from .sweep import sweep_latents
from .sweep_result import LatentSweep, SweepConfig

__all__ = [
    "OPERATIONS",
    "Comparison",
    "DoseResponse",
    "EditSource",
    "IsoKL",
    "LatentSweep",
    "Operation",
    "Outcome",
    "Spoken",
    "SweepConfig",
    "compare",
    "comparisons",
    "dose_response",
    "in_maxima",
    "in_norms",
    "iso_kl",
    "outcome",
    "outcomes",
    "own_amount",
    "random_directions",
    "random_latents",
    "summarise",
    "sweep_latents",
]
