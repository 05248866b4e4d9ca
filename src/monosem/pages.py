"""Reports as pages: templates with one style, figures that need no network, short numbers."""

import base64
import gzip
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from .errors import require
from .files import writable_folder, write_json, write_text
from .plots import WORDS_FIT

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WIDE = 100  # columns of a heatmap without words from which its page is a grid that scrolls


@cache
def environment(package: str, escape: bool = False) -> jinja2.Environment:
    """The templates of a room (its folder `templates`) and the shared ones; `escape` for HTML."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(name, "templates") for name in (package, "monosem")])
    templates = jinja2.Environment(
        loader=loader, autoescape=escape, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    templates.filters |= {
        "number": number,
        "percent": percent,
        "token": token,
        "code": code,
        "prose": prose,
        "shade": shade,
    }
    return templates


@cache
def palette() -> str:
    """Colours and type, as CSS, of all pages."""
    return (files("monosem") / "templates" / "palette.css").read_text(encoding="utf-8")


def embedded(figure: "Figure", caption: str) -> dict[str, str]:
    """What the macro `plot` draws: the figure as JSON that can stand inside a page, and its caption."""
    # "</" would end the script element that holds the figure
    return {"json": figure.to_json().replace("</", "<\\/"), "caption": caption}


def plotly_script() -> str:
    """plotly.js itself, so that the page fetches nothing. Raises `MissingExtra` without plotly."""
    return str(require("plotly.offline", "plots").get_plotlyjs())


def write_report(
    room: str,
    name: str,
    results: Mapping[str, Any],
    facts: Mapping[str, Any],
    figures: Mapping[str, tuple["Figure", str]],
    folder: Path,
) -> None:
    """results.json, report.md and report.html of a room's templates `NAME.md.jinja` and `NAME.html.jinja`.

    Args:
        results: as results.json holds them. facts: what the templates show. figures: name -> figure and its caption.
    """
    writable_folder(folder)
    drawn = {key: embedded(figure, caption) for key, (figure, caption) in figures.items()}
    page = environment(room, escape=True).get_template(f"{name}.html.jinja")
    pages = {  # before the first is written, for what cannot be shown
        "report.md": environment(room).get_template(f"{name}.md.jinja").render(**facts),
        "report.html": page.render(**facts, plots=drawn, plotly=plotly_script()),
    }
    write_json(folder / "results.json", results)
    for file, text in pages.items():
        write_text(folder / file, text)


def page_of(figure: "Figure") -> str:
    """A figure as a page of its own: with plotly.js in it, but wide heatmaps as a grid that scrolls and zooms.

    A heatmap of hundreds of tokens is a blur where it is as wide as the screen, and plotly.js alone is 5 MB: the grid
    draws what is in view, words where cells are wide enough, and its numbers are compressed.
    """
    held: list[Any] = [getattr(trace, "meta", None) for trace in figure.data]
    if not all(trace.type == "heatmap" and meta for trace, meta in zip(figure.data, held)) or not any(
        len(meta["x"]) > (WIDE if trace.text is None else WORDS_FIT) for trace, meta in zip(figure.data, held)
    ):
        return str(figure.to_html(include_plotlyjs=True))
    title = held[0]["title"]
    grids = [_grid(trace) | {"title": meta["title"]} for trace, meta in zip(figure.data, held)]
    packed = gzip.compress(json.dumps(grids, ensure_ascii=False, separators=(",", ":")).encode(), mtime=0)
    page = environment("monosem", escape=True).get_template("grid.html.jinja")
    return page.render(title=title, data=base64.b64encode(packed).decode())


def _grid(trace: Any) -> dict[str, Any]:
    """A heatmap as the grid's script takes it: colours as numbers, values to four digits."""
    z = [[float(f"{value:.4g}") if math.isfinite(value) else None for value in row] for row in trace.z]
    colors = [[share, [int(color[i : i + 2], 16) for i in (1, 3, 5)]] for share, color in trace.colorscale]
    text, hover = (None if one is None else [list(row) for row in one] for one in (trace.text, trace.customdata))
    return {**trace.meta, "z": z, "low": trace.zmin, "high": trace.zmax, "colors": colors, "text": text, "hover": hover}


def number(value: float | None, digits: int = 3) -> str:
    """A short number: `0.012`, `−3.4`, `1,234`, `<0.001`; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if 0 < value < 10**-digits:
        return f"<{10**-digits:.{digits}f}"
    written = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"
    return written.replace("-", "−") if float(written.replace(",", "")) else f"{0:.{digits}f}"


def percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.0f} %"


def token(text: str) -> str:
    """A token so that its spaces and line breaks can be seen."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def code(text: Any) -> str:
    """Foreign text as Markdown shows it literally, also in a table: no HTML, no emphasis, line breaks as `\\n`."""
    written = json.dumps(str(text), ensure_ascii=False)[1:-1].replace('\\"', '"')
    return f"`{written.replace('|', chr(92) + '|').replace('`', chr(39))}`" if written else ""


def prose(text: Any) -> str:
    """Foreign words inside Markdown prose: what could be markup or HTML is escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def shade(activation: float, maximum: float) -> str:
    """Opacity of a token's background by its share of the latent's maximum: `strength` of `tokens.js`, times 0.75 so
    that words stay readable on dark paper."""
    share = max(0.0, min(1.0, activation / maximum)) if maximum > 0 else 0.0
    return f"{0.75 * (0.05 + 0.95 * math.log10(1 + 9 * share)):.2f}" if share > 0 else "0"
