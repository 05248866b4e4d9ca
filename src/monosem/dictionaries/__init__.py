"""Dictionaries: learned sparse codes of activations (SAEs, transcoders) in one canonical form."""

from .codes import Codes, TokenNorm, latent_ids
from .dictionary import Dictionary
from .encoders import ENCODERS, batch_topk
from .evaluation import Evaluation, evaluate
from .formats import FORMATS
from .loading import load_dictionary, shipped_dictionaries, shipped_dictionary_folder
from .parts import DictionaryParts, DictionaryTensors
from .published import Published, Releases, releases
from .token_norms import TOKEN_NORMS
from .training import SeveralConfig, TrainConfig, train, train_on, train_several, train_several_on
from .writers import WRITERS

__all__ = [
    "ENCODERS",
    "FORMATS",
    "TOKEN_NORMS",
    "WRITERS",
    "Codes",
    "Dictionary",
    "DictionaryParts",
    "DictionaryTensors",
    "Evaluation",
    "Published",
    "Releases",
    "SeveralConfig",
    "TokenNorm",
    "TrainConfig",
    "batch_topk",
    "evaluate",
    "latent_ids",
    "load_dictionary",
    "releases",
    "shipped_dictionaries",
    "shipped_dictionary_folder",
    "train",
    "train_on",
    "train_several",
    "train_several_on",
]
