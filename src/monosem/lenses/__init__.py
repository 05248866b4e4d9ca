"""Lenses: what a state inside the model says about tokens, layer by layer."""

from .concept import HeadLens, head_lens
from .copying import CopyingScores, copying_pairs, copying_scores
from .entropy import EntropyProfile, entropy
from .future import FutureLens, fit_future
from .future_results import FutureReading, FutureScores
from .gap import TokenGap, gap
from .jacobian import JacobianLens, fit_jacobian
from .languages import LanguageProfile, first_tokens, languages
from .logit import logit, look
from .mapping import Affine, affine_between
from .patchscope_result import PatchscopeResult
from .patchscopes import ENTITY_DESCRIPTION, TOKEN_IDENTITY, TargetPrompt, patchscope
from .readout import MEASURES
from .results import LensResult
from .soft_prompt import SoftPrompt, fit_soft_prompt
from .trajectory import Trajectory, trajectory
from .tuned import TunedLens, tuned
from .tuned_evaluation import TunedEvaluation, evaluate_tuned
from .tuned_files import load_tuned, shipped_tuned
from .tuning import TuneConfig, train_tuned
from .vectors import VectorReading, neurons, vectors

__all__ = [
    "ENTITY_DESCRIPTION",
    "MEASURES",
    "TOKEN_IDENTITY",
    "Affine",
    "CopyingScores",
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
    "affine_between",
    "copying_pairs",
    "copying_scores",
    "entropy",
    "evaluate_tuned",
    "first_tokens",
    "fit_future",
    "fit_jacobian",
    "fit_soft_prompt",
    "gap",
    "head_lens",
    "languages",
    "load_tuned",
    "logit",
    "look",
    "neurons",
    "patchscope",
    "shipped_tuned",
    "train_tuned",
    "trajectory",
    "tuned",
    "vectors",
]
