"""Patching: which places carry what makes the model answer differently on clean and corrupted prompts."""

from ..statistics import Interval, Share
from . import transformerlens
from .cells import Cell, cells_of
from .corruptions import Corruption, constants, last_mean, mean, noise, positional_mean, resample, zero
from .estimates.comparison import EstimateCheck, check_estimate
from .estimates.gradients import attribution
from .experiment import Experiment
from .localisation.job import localise
from .localisation.result import Component, Localisation
from .measured import Measured
from .paths.paths import paths
from .paths.result import Path, Paths
from .scoring import METRICS, metrics_of, normalised
from .scrubbing.hypothesis import Claim, Hypothesis
from .scrubbing.scrub import Scrubbed, scrub
from .sets.backups import Backup, backup
from .sets.evidence import CausalEvidence, SetEvidence, causal_evidence, necessity, sufficiency
from .sets.sets import Joint, patch_sets
from .subspaces import SubspacePatch, subspace
from .sweeps.result import Sweep
from .sweeps.sweep import sweep
from .sweeps.trace import Trace, trace

__all__ = [
    "METRICS",
    "Backup",
    "CausalEvidence",
    "Cell",
    "Claim",
    "Component",
    "Corruption",
    "EstimateCheck",
    "Experiment",
    "Hypothesis",
    "Interval",
    "Joint",
    "Localisation",
    "Measured",
    "Path",
    "Paths",
    "Scrubbed",
    "SetEvidence",
    "Share",
    "SubspacePatch",
    "Sweep",
    "Trace",
    "attribution",
    "backup",
    "causal_evidence",
    "cells_of",
    "check_estimate",
    "constants",
    "last_mean",
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
    "trace",
    "transformerlens",
    "zero",
]
