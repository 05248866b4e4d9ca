"""Published dictionaries: which there are, and how to get one (offline, but for the download)."""

from .hub import fetched
from .registry import Published, named
from .releases import Releases, releases

__all__ = ["Published", "Releases", "fetched", "named", "releases"]
