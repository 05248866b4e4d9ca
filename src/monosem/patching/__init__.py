"""Patching: which places carry what makes the model answer differently on clean and corrupted prompts."""

from .cells import Cell, cells_of
from .paths import Path, Paths, paths
from .result import Sweep
from .scoring import METRICS, metrics_of, normalised

__all__ = ["METRICS", "Cell", "Path", "Paths", "Sweep", "cells_of", "metrics_of", "normalised", "paths"]
