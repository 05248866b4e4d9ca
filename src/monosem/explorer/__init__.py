"""The explorer: what every latent does, in the browser, on this machine."""

from ..latents.drawing import export_page
from .server import serve

__all__ = ["export_page", "serve"]
