"""Patching: which places carry what makes the model answer differently on clean and corrupted prompts."""

from .attribution import attribution
from .backups import Backup, backup
from .causation import Evidence, Interval, Share, evidence, necessity, sufficiency
from .cells import Cell, cells_of
from .claims import Claim, Hypothesis
from .comparison import Comparison, compare
from .corruptions import Corruption, mean, noise, positional_mean, resample, zero
from .joint import Joint, patch_sets
from .localisation import Component, Localisation
from .localising import localise
from .paths import Path, Paths, paths
from .result import Sweep
from .scoring import METRICS, metrics_of, normalised
from .scrubbing import Scrubbed, scrub
from .subspace import SubspacePatch, subspace
from .sweep import sweep

__all__ = [
    "METRICS",
    "Backup",
    "Cell",
    "Claim",
    "Comparison",
    "Component",
    "Corruption",
    "Evidence",
    "Hypothesis",
    "Interval",
    "Joint",
    "Localisation",
    "Path",
    "Paths",
    "Scrubbed",
    "Share",
    "SubspacePatch",
    "Sweep",
    "attribution",
    "backup",
    "cells_of",
    "compare",
    "evidence",
    "localise",
    "mean",
    "metrics_of",
    "necessity",
    "noise",
    "normalised",
    "patch_sets",
    "paths",
    "positional_mean",
    "resample",
    "scrub",
    "subspace",
    "sufficiency",
    "sweep",
    "zero",
]
