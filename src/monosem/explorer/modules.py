"""The browser's files beside the renderer of latents, and the names under which they import each other."""

from functools import cache
from importlib.resources import files

from ..latents.drawing.modules import DRAWN, NAMED, drawn

PAGES = ["home", "dictionary", "latent", "map", "prompt", "steer", "compare", "lens", "patching", "graph", "lists"]
PAGES += ["reports", "public", "files", "sweep", "geometry", "splitting", "circles", "meta", "absorbers", "writes"]
APP = {
    "server": "server.js",
    "place": "place.js",
    "grid": "grid.js",
    "scatter": "scatter.js",
    "jobs": "jobs.js",
    "notes": "notes.js",
    "kin": "kin.js",
    "making": "making.js",
    "frame": "frame.js",
    **{f"page/{name}": f"pages/{name}.js" for name in PAGES},
    "app": "app.js",
}
MODULES = DRAWN | {*APP.values(), "app.css"}


def imports() -> dict[str, str]:
    """The import map of the app."""
    return {name: f"/static/{file}" for name, file in {**NAMED, **APP}.items()}


@cache
def module(name: str) -> str:
    if name in DRAWN:
        return drawn(name)
    return (files("monosem.explorer") / "static" / name).read_text(encoding="utf-8")
