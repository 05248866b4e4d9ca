"""Lenses: what a state inside the model says about tokens, layer by layer."""

from .copying.heads import CopyingEffects, copying_effects, copying_pairs
from .copying.lens import HeadLens
from .future.linear import FutureLens
from .future.results import FutureReading, FutureScores
from .future.soft_prompt import SoftPrompt
from .jacobian import JacobianLens
from .measures import MEASURES
from .patchscopes.affine import Affine
from .patchscopes.patchscope import patchscope
from .patchscopes.result import PatchscopeResult
from .patchscopes.target import ENTITY_DESCRIPTION, TOKEN_IDENTITY, TargetPrompt
from .profiles.entropy import EntropyProfile, entropy_profile
from .profiles.gap import TokenGap, gap
from .profiles.languages import LanguageProfile, first_tokens, languages
from .profiles.trajectory import Trajectory, trajectory
from .read import logit, read, tuned
from .results import LensResult
from .tuned.config import TuneConfig
from .tuned.evaluation import TunedEvaluation
from .tuned.lens import TunedLens
from .vectors import VectorReading, neurons, vectors

__all__ = [
    "ENTITY_DESCRIPTION",
    "MEASURES",
    "TOKEN_IDENTITY",
    "Affine",
    "CopyingEffects",
    "EntropyProfile",
    "FutureLens",
    "FutureReading",
    "FutureScores",
    "HeadLens",
    "JacobianLens",
    "LanguageProfile",
    "LensResult",
    "PatchscopeResult",
    "SoftPrompt",
    "TargetPrompt",
    "TokenGap",
    "Trajectory",
    "TuneConfig",
    "TunedEvaluation",
    "TunedLens",
    "VectorReading",
    "copying_effects",
    "copying_pairs",
    "entropy_profile",
    "first_tokens",
    "gap",
    "languages",
    "logit",
    "neurons",
    "patchscope",
    "read",
    "trajectory",
    "tuned",
    "vectors",
]
