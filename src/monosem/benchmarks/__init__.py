"""Benchmarks: what a dictionary is good for, beside a random dictionary and the activation's own dimensions."""

from .absorbers import Absorbers, absorbers
from .absorption import AbsorptionConfig, absorption
from .baselines import arms, fitted, mean_l0, random_dictionary, raw_dimensions
from .core import CoreConfig, core, core_each
from .disentanglement import DisentanglementConfig, disentanglement
from .job import BenchmarkReport, benchmark
from .labelled import Labelled, bundled_sets, labelled
from .meta_structure import MetaStructureConfig, meta_structure
from .rows import BENCHMARKS
from .scr import ScrConfig, scr
from .selectivity import SelectivityConfig, selectivity
from .sparse_probing import ProbingConfig, sparse_probing
from .task import ALL, DICTIONARY, RANDOM, RAW, WITHOUT, Score, Scores, Task, TaskConfig
from .tpp import TppConfig, tpp
from .variants import CORE_VARIANTS, CoreBatch, core_variant

__all__ = [
    "ALL",
    "BENCHMARKS",
    "CORE_VARIANTS",
    "DICTIONARY",
    "RANDOM",
    "RAW",
    "WITHOUT",
    "Absorbers",
    "AbsorptionConfig",
    "BenchmarkReport",
    "CoreBatch",
    "CoreConfig",
    "DisentanglementConfig",
    "Labelled",
    "MetaStructureConfig",
    "ProbingConfig",
    "Score",
    "Scores",
    "ScrConfig",
    "SelectivityConfig",
    "Task",
    "TaskConfig",
    "TppConfig",
    "absorbers",
    "absorption",
    "arms",
    "benchmark",
    "bundled_sets",
    "core",
    "core_each",
    "core_variant",
    "disentanglement",
    "fitted",
    "labelled",
    "mean_l0",
    "meta_structure",
    "random_dictionary",
    "raw_dimensions",
    "scr",
    "selectivity",
    "sparse_probing",
    "tpp",
]
