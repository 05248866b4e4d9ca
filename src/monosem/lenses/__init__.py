"""Lenses: what a state inside the model says about tokens, layer by layer."""

from .future import FutureLens, fit_future
from .future_results import FutureReading, FutureScores
from .jacobian import JacobianLens, fit_jacobian
from .logit import logit, look
from .mapping import Affine, affine_between
from .patchscope_result import PatchscopeResult
from .patchscopes import ENTITY_DESCRIPTION, TOKEN_IDENTITY, TargetPrompt, patchscope
from .readout import MEASURES
from .results import LensResult
from .soft_prompt import SoftPrompt, fit_soft_prompt
from .tuned import TunedLens, tuned
from .tuned_evaluation import TunedEvaluation, evaluate_tuned
from .tuned_files import load_tuned, shipped_tuned
from .tuning import TuneConfig, train_tuned

__all__ = [
    "ENTITY_DESCRIPTION",
    "MEASURES",
    "TOKEN_IDENTITY",
    "Affine",
    "FutureLens",
    "FutureReading",
    "FutureScores",
    "JacobianLens",
    "LensResult",
    "PatchscopeResult",
    "SoftPrompt",
    "TargetPrompt",
    "TuneConfig",
    "TunedEvaluation",
    "TunedLens",
    "affine_between",
    "evaluate_tuned",
    "fit_future",
    "fit_jacobian",
    "fit_soft_prompt",
    "load_tuned",
    "logit",
    "look",
    "patchscope",
    "shipped_tuned",
    "train_tuned",
    "tuned",
]
