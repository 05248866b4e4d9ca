"""Directions: a vector at a site with its provenance."""

from .direction import Direction, of_latent
from .fitting import fit

__all__ = ["Direction", "fit", "of_latent"]
