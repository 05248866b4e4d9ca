"""Robustness: how far a behaviour survives attacks beside their controls, and what attacks and defences cost."""

from .attacks import ATTACKS
from .config import RobustnessConfig
from .job import assess
from .result import Robustness

__all__ = ["ATTACKS", "Robustness", "RobustnessConfig", "assess"]
