"""The renderer's files for the browser, and under which names they import each other."""

import base64
from functools import cache
from importlib.resources import files

from ...pages import palette

# name in an import statement -> file. One map serves the explorer, where files have addresses, and a page that has them
# inside: so every import names a module, never a place
NAMED = {
    "preact": "vendor/preact.js",
    "preact/hooks": "vendor/hooks.js",
    "htm": "vendor/htm.js",
    "ui": "ui.js",
    "tokens": "tokens.js",
    "charts": "charts.js",
    "latent-view": "latent_view.js",
}
DRAWN = frozenset({*NAMED.values(), "style.css"})


def inside() -> dict[str, str]:
    """The import map of a page that has its modules in it."""
    coded = {name: base64.b64encode(drawn(file).encode()).decode() for name, file in NAMED.items()}
    return {name: f"data:text/javascript;base64,{code}" for name, code in coded.items()}


@cache
def drawn(name: str) -> str:
    """The text of a file; the style has the colours that all pages share before it."""
    text = (files("monosem.latents.drawing") / "static" / name).read_text(encoding="utf-8")
    return palette() + text if name == "style.css" else text
