"""The browser's files: which there are, and under which names they import each other."""

import base64
from functools import cache
from importlib.resources import files

# name in an import statement -> file. One map serves the app, where files have addresses, and the exported page, where
# they are inside it: so every import names a module, never a place
PAGES = ["home", "dictionary", "latent", "map", "prompt", "steer", "compare", "lens", "patching", "graph", "lists"]
PAGES += ["reports", "public", "geometry", "splitting", "circles", "meta", "absorbers", "writes"]
NAMED = {
    "preact": "vendor/preact.js",
    "preact/hooks": "vendor/hooks.js",
    "htm": "vendor/htm.js",
    "ui": "ui.js",
    "tokens": "tokens.js",
    "charts": "charts.js",
    "latent-view": "latent_view.js",
}
APP = {
    "server": "server.js",
    "place": "place.js",
    "grid": "grid.js",
    "jobs": "jobs.js",
    "notes": "notes.js",
    **{f"page/{name}": f"pages/{name}.js" for name in PAGES},
    "app": "app.js",
}
MODULES = frozenset({*NAMED.values(), *APP.values(), "style.css"})


def imports() -> dict[str, str]:
    """The import map of the app."""
    return {name: f"/static/{file}" for name, file in {**NAMED, **APP}.items()}


def inside() -> dict[str, str]:
    """The import map of a page that has its modules in it."""
    coded = {name: base64.b64encode(module(file).encode()).decode() for name, file in NAMED.items()}
    return {name: f"data:text/javascript;base64,{code}" for name, code in coded.items()}


@cache
def module(name: str) -> str:
    return (files("monosem.explorer") / "static" / name).read_text(encoding="utf-8")
