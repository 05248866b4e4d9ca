"""Dictionaries: learned sparse codes of activations (SAEs, transcoders, crosscoders) in one canonical form."""

from .codes import Codes, TokenNorm, latent_ids
from .cross_layer import CrossLayer
from .crosscoder import Crosscoder
from .dictionary import Dictionary
from .encoders import ENCODERS, batch_topk
from .evaluation import Evaluation, evaluate, evaluate_each
from .formats import FORMATS
from .loading import load_dictionary, one_site, shipped_dictionaries, shipped_dictionary_folder
from .parts import DictionaryParts, DictionaryTensors
from .published import Published, Releases, releases
from .several import SeveralSites
from .token_norms import TOKEN_NORMS
from .training import SeveralConfig, TrainConfig, train, train_on, train_several, train_several_on
from .writers import WRITERS

__all__ = [
    "ENCODERS",
    "FORMATS",
    "TOKEN_NORMS",
    "WRITERS",
    "Codes",
    "CrossLayer",
    "Crosscoder",
    "Dictionary",
    "DictionaryParts",
    "DictionaryTensors",
    "Evaluation",
    "Published",
    "Releases",
    "SeveralConfig",
    "SeveralSites",
    "TokenNorm",
    "TrainConfig",
    "batch_topk",
    "evaluate",
    "evaluate_each",
    "latent_ids",
    "load_dictionary",
    "one_site",
    "releases",
    "shipped_dictionaries",
    "shipped_dictionary_folder",
    "train",
    "train_on",
    "train_several",
    "train_several_on",
]
