"""Dictionaries: learned sparse codes of activations (SAEs, transcoders) in one canonical form."""

from .codes import Codes, TokenNorm, latent_ids
from .dictionary import Dictionary
from .encoders import ENCODERS, batch_topk
from .evaluation import Evaluation, evaluate
from .folds import Weights
from .loading import load_dictionary, shipped, shipped_folder

__all__ = [
    "ENCODERS",
    "Codes",
    "Dictionary",
    "Evaluation",
    "TokenNorm",
    "Weights",
    "batch_topk",
    "evaluate",
    "latent_ids",
    "load_dictionary",
    "shipped",
    "shipped_folder",
]
