"""Lenses: what a state inside the model says about tokens, layer by layer."""

from .jacobian import JacobianLens, fit_jacobian
from .logit import logit, look
from .mapping import Affine, affine_between
from .patchscope_result import PatchscopeResult
from .patchscopes import ENTITY_DESCRIPTION, TOKEN_IDENTITY, TargetPrompt, patchscope
from .readout import MEASURES
from .results import LensResult

__all__ = [
    "ENTITY_DESCRIPTION",
    "MEASURES",
    "TOKEN_IDENTITY",
    "Affine",
    "JacobianLens",
    "LensResult",
    "PatchscopeResult",
    "TargetPrompt",
    "affine_between",
    "fit_jacobian",
    "logit",
    "look",
    "patchscope",
]
