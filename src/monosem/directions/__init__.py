"""Directions: a vector at a site with its provenance, and how it is found."""

from .direction import Direction
from .directions import Directions
from .methods import METHODS
from .positions import Last, Mean, Offset, Regex, Selector, TemplateSuffix

__all__ = ["METHODS", "Direction", "Directions", "Last", "Mean", "Offset", "Regex", "Selector", "TemplateSuffix"]
