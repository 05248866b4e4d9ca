"""Lenses: what a state inside the model says about tokens, layer by layer."""

from .copying.heads import CopyingScores, copying_pairs, copying_scores
from .copying.lens import HeadLens, head_lens
from .future.linear import FutureLens, fit_future
from .future.results import FutureReading, FutureScores
from .future.soft_prompt import SoftPrompt, fit_soft_prompt
from .jacobian import JacobianLens, fit_jacobian
from .patchscopes.mapping import Affine, affine_between
from .patchscopes.patchscope import ENTITY_DESCRIPTION, TOKEN_IDENTITY, TargetPrompt, patchscope
from .patchscopes.result import PatchscopeResult
from .profiles.entropy import EntropyProfile, entropy
from .profiles.gap import TokenGap, gap
from .profiles.languages import LanguageProfile, first_tokens, languages
from .profiles.trajectory import Trajectory, trajectory
from .read import logit, look
from .results import LensResult
from .states import MEASURES
from .tuned.evaluation import TunedEvaluation, evaluate_tuned
from .tuned.files import load_tuned, shipped_tuned
from .tuned.lens import TunedLens, tuned
from .tuned.training import TuneConfig, train_tuned
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
