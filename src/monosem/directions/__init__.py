"""Directions: a vector at a site with its provenance, and how it is found."""

from .attributions import LatentAttributions, latent_attributions
from .direction import Direction
from .directions import Directions, alike
from .latents import latent_directions
from .methods import METHODS
from .positions import Last, Mean, Offset, Regex, Selector, TemplateSuffix
from .scores import DirectionScores, along
from .selection import Prefiltered, Selection, prefilter, select

__all__ = [
    "METHODS",
    "Direction",
    "DirectionScores",
    "Directions",
    "Last",
    "LatentAttributions",
    "Mean",
    "Offset",
    "Prefiltered",
    "Regex",
    "Selection",
    "Selector",
    "TemplateSuffix",
    "alike",
    "along",
    "latent_attributions",
    "latent_directions",
    "prefilter",
    "select",
]
