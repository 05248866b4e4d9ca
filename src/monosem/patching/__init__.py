"""Patching: which places carry what makes the model answer differently on clean and corrupted prompts."""

from .scoring import METRICS, metrics_of, normalised

__all__ = ["METRICS", "metrics_of", "normalised"]
