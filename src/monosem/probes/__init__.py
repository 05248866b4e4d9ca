"""Probes: what can be read from states, with the controls that say whether it means anything."""

from .controls import ControlTask, Null, Survey, control_task, permutation_null, survey, text_baselines
from .covariance import Whitening
from .fitting import fit
from .kinds import KINDS
from .measures import Measures, measure
from .probe import Probes
from .reader import read_rows
from .rows import Place, Rows
from .splits import Parts, folds, near_duplicates, split
from .thresholds import Cascade, calibrated, cascade, orders, with_threshold

__all__ = [
    "KINDS",
    "Cascade",
    "ControlTask",
    "Measures",
    "Null",
    "Parts",
    "Place",
    "Probes",
    "Rows",
    "Survey",
    "Whitening",
    "calibrated",
    "cascade",
    "control_task",
    "fit",
    "folds",
    "measure",
    "near_duplicates",
    "orders",
    "permutation_null",
    "read_rows",
    "split",
    "survey",
    "text_baselines",
    "with_threshold",
]
