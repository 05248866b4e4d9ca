"""Patching: which places carry what makes the model answer differently on clean and corrupted prompts."""

from ..statistics import Interval, Share
from .cells import Cell, cells_of
from .corruptions import Corruption, mean, noise, positional_mean, resample, zero
from .estimates.comparison import Comparison, compare
from .estimates.gradients import attribution
from .localisation.job import localise
from .localisation.result import Component, Localisation
from .measured import Sweep
from .paths.paths import Path, Paths, paths
from .scoring import METRICS, metrics_of, normalised
from .scrubbing.hypothesis import Claim, Hypothesis
from .scrubbing.scrub import Scrubbed, scrub
from .sets.backups import Backup, backup
from .sets.evidence import Evidence, evidence, necessity, sufficiency
from .sets.sets import Joint, patch_sets
from .subspaces import SubspacePatch, subspace
from .sweeps.sweep import sweep

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
