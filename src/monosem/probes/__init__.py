"""Probes: what can be read from states, with the controls that say whether it means anything."""

from .covariance import Whitening
from .fitting import fit
from .kinds import KINDS
from .probe import Probes
from .reader import read_rows
from .rows import Place, Rows
from .splits import Parts, folds, near_duplicates, split

__all__ = [
    "KINDS",
    "Parts",
    "Place",
    "Probes",
    "Rows",
    "Whitening",
    "fit",
    "folds",
    "near_duplicates",
    "read_rows",
    "split",
]
