"""Chosen latents as one HTML file: the same renderer as the app's, with everything inside."""

import base64
import gzip
import html
import json
from collections.abc import Sequence
from typing import Any

from ...pages import environment
from .modules import drawn, inside


def export_page(pages: Sequence[dict[str, Any]]) -> str:
    """A page that needs neither server nor network.

    Args:
        pages: of latents, as `LatentPage.to_json` gives them.
    """
    packed = gzip.compress(json.dumps(list(pages), ensure_ascii=False, allow_nan=False).encode(), mtime=0)
    named = [f"{page['dictionary']} {page['latent']}" for page in pages]
    template = environment("monosem.latents.drawing", escape=True).get_template("export.html.jinja")
    return template.render(
        title=", ".join(named[:4]) + (" …" if len(named) > 4 else ""),
        importmap=json.dumps({"imports": inside()}),
        style=drawn("style.css"),
        data=base64.b64encode(packed).decode(),
    )


def framed(page: str, height: int = 720) -> str:
    """A page as a piece of a notebook: a frame of its own, whose script reaches nothing outside it."""
    style = f"width:100%;height:{height}px;border:1px solid #8884;border-radius:8px"
    return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{html.escape(page)}"></iframe>'
