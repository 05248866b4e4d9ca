"""What heads, MLPs and neurons read and write: direct attribution, circuits as factored matrices, head detectors."""

from .attribution import DirectAttribution, Part
from .composition import Composition, composition_scores
from .detectors import HeadScores, detect_head, head_scores
from .direct import direct_attribution
from .factored import OV, QK, FactoredMatrix, copying_scores, full_OV, full_QK, latent_OV, latent_QK
from .results import HeadResults

__all__ = [
    "OV",
    "QK",
    "Composition",
    "DirectAttribution",
    "FactoredMatrix",
    "HeadResults",
    "HeadScores",
    "Part",
    "composition_scores",
    "copying_scores",
    "detect_head",
    "direct_attribution",
    "full_OV",
    "full_QK",
    "head_scores",
    "latent_OV",
    "latent_QK",
]
