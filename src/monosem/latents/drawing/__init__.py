"""How a latent is drawn: one renderer for the explorer, a notebook, and a file of its own."""

from .export import export_page, framed

__all__ = ["export_page", "framed"]
