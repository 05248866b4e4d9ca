"""Patching: which places carry what makes the model answer differently on clean and corrupted prompts."""

from .attribution import attribution
from .cells import Cell, cells_of
from .comparison import Comparison, compare
from .corruptions import Corruption, mean, noise, positional_mean, resample, zero
from .paths import Path, Paths, paths
from .result import Sweep
from .scoring import METRICS, metrics_of, normalised
from .sweep import sweep

__all__ = [
    "METRICS",
    "Cell",
    "Comparison",
    "Corruption",
    "Path",
    "Paths",
    "Sweep",
    "attribution",
    "cells_of",
    "compare",
    "mean",
    "metrics_of",
    "noise",
    "normalised",
    "paths",
    "positional_mean",
    "resample",
    "sweep",
    "zero",
]
