"""Probes: what can be read from states, with the controls that say whether it means anything."""

from ..covariance import Whitening
from .controls import ControlTask, Null, Survey, control_task, permutation_null, survey, text_baselines
from .distances import DISTANCES, Distances, energy, unsure
from .ensemble import LayerEnsemble
from .fitting import fit
from .kinds import KINDS
from .measures import Measures, area_by_group, measure
from .monitor import PredictControl, Reading, Watched, predict_control, watch
from .ood import Ood, ood
from .probe import Probes
from .reader import read_rows
from .rows import Place, Rows
from .splits import Parts, folds, held_out, near_duplicates, parted, split
from .texts import TextDetector
from .thresholds import Cascade, calibrated, cascade, stages, with_threshold

__all__ = [
    "DISTANCES",
    "KINDS",
    "Cascade",
    "ControlTask",
    "Distances",
    "LayerEnsemble",
    "Measures",
    "Null",
    "Ood",
    "Parts",
    "Place",
    "PredictControl",
    "Probes",
    "Reading",
    "Rows",
    "Survey",
    "TextDetector",
    "Watched",
    "Whitening",
    "area_by_group",
    "calibrated",
    "cascade",
    "control_task",
    "energy",
    "fit",
    "folds",
    "held_out",
    "measure",
    "near_duplicates",
    "ood",
    "parted",
    "permutation_null",
    "predict_control",
    "read_rows",
    "split",
    "stages",
    "survey",
    "text_baselines",
    "unsure",
    "watch",
    "with_threshold",
]
