"""Directions: a vector at a site with its provenance."""

from .direction import Direction

__all__ = ["Direction"]
