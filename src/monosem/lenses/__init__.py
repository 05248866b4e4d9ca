"""Lenses: what a state inside the model says about tokens, layer by layer."""

from .logit import logit, look
from .readout import MEASURES
from .results import LensResult

__all__ = ["MEASURES", "LensResult", "logit", "look"]
