"""What is known about one latent, and how to show it: in a terminal, in a page."""

import html
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from ..files import write_text
from ..results import Result

if TYPE_CHECKING:
    from rich.text import Text

    from .explanations import Explanation

_VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍", "\u200b": "∅", "\u00a0": "⍽"})


def visible(token: str) -> str:
    """A token with its invisible characters shown; a leading space stays a space."""
    return token.translate(_VISIBLE)


@dataclass(frozen=True)
class Example:
    """A piece of text in which a latent fires.

    Attributes:
        tokens, activations: token strings and the latent's activation at each (0 at tokens that do not count; negative
            only where codes have signs). Where a character is spread over several tokens, it stands at the last of them
            and the others are empty.
        anchor: index of the strongest token. document: its document's id. position: of the anchor in its window.
        ids: token ids, to run the model on the example again.
    """

    tokens: list[str]
    activations: list[float]
    anchor: int
    document: str
    position: int
    ids: list[int] = field(default_factory=list)

    @property
    def maximum(self) -> float:
        """The activation at the strongest token, with its sign."""
        return self.activations[self.anchor]

    def shown(self) -> Iterator[tuple[str, float]]:
        """(text, activation) of what can be seen: an empty token counts with the one that ends its character."""
        carried = 0.0
        for token, value in zip(self.tokens, self.activations):
            carried = max(carried, value, key=abs)
            if token:
                yield token, carried
                carried = 0.0


@dataclass(frozen=True)
class Band:
    """An interval of a latent's activations, and examples drawn from the tokens at which its activation lies in it.

    The maximum is all that top examples show; what a latent is about must hold further down, too.

    Attributes:
        low, high: of magnitudes, low < |activation| <= high. share: of the active tokens (interpolated in the
            histogram). examples: at most one a window and two a document; what lies in the interval stands at `anchor`.
    """

    low: float
    high: float
    share: float
    examples: list[Example]


@dataclass(frozen=True, repr=False)
class Evidence(Result):
    """What an index holds about a latent.

    Attributes:
        count, density: counted tokens at which it is active, and their share.
        maximum: the largest magnitude. mean, sd: of the activations where it is active, with their signs.
        quantiles: share -> magnitude, over active tokens (interpolated in the histogram).
        histogram: (lower edge, upper edge, count) of every bin of magnitudes that is not empty.
        tokens: (token, times active there, summed activation), most activation first; where codes have signs, a token
            with both stands here twice.
        examples: strongest first, at most one a window and two a document.
        bands: intervals of equal width from 0 to the maximum with examples drawn from each, the strongest first;
            intervals without an active token are left out. Empty where the index has none.
        explanation: its label with a score, where its dictionary comes with one.
        promoted, suppressed: (token, direct effect on its logit per unit of activation), see `effects.CONVENTION`.
    """

    latent: int
    dictionary: str
    count: int
    density: float
    maximum: float
    mean: float
    sd: float
    quantiles: dict[str, float]
    histogram: list[tuple[float, float, int]]
    tokens: list[tuple[str, int, float]]
    examples: list[Example]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    provenance: dict[str, Any] = field(default_factory=dict)
    bands: list[Band] = field(default_factory=list)
    explanation: "Explanation | None" = None

    ranked_by: ClassVar[str | None] = "maximum"
    either_way: ClassVar[bool] = True

    @property
    def table(self) -> pd.DataFrame:
        """One row an example, strongest first: maximum, token (the strongest), text, document, position."""
        rows = [(e.maximum, e.tokens[e.anchor], "".join(e.tokens), e.document, e.position) for e in self.examples]
        return pd.DataFrame(rows, columns=["maximum", "token", "text", "document", "position"])

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """Everything known as a page (.html, one file without external resources), or the table of examples."""
        if Path(path).suffix.lower() != ".html":
            return super().save(path, **plot)
        write_text(path, self.as_page())
        return Path(path)

    @property
    def summary(self) -> str:
        if not self.count:
            return (
                f"latent {self.latent} of {self.dictionary} never fired on {self.provenance.get('tokens', 0):,} tokens"
            )
        return (
            f"latent {self.latent} of {self.dictionary}: active at {self.density:.3%} of tokens "
            f"({self.count:,}), maximum {self.maximum:.1f}, mean when active {self.mean:.1f}"
        )

    def __repr__(self) -> str:
        """In a line: the examples alone are thousands of characters."""
        return f"<Evidence of {self.summary}>"

    def as_text(self, examples: int = 10) -> "Text":
        """For the terminal: active tokens are marked, the stronger the brighter."""
        from rich.text import Text

        out = Text(f"{self.summary}\n")
        if self.explanation is not None:
            out.append("  explained  ", style="bold").append(f"{self.explanation}\n")
        for title, listed in (("promotes", self.promoted), ("suppresses", self.suppressed)):
            out.append(f"  {title:<11}", style="bold")
            out.append("  ".join(f"{visible(token)!r}" for token, _ in listed[:10]) + "\n")
        if self.tokens:
            out.append("  fires on   ", style="bold")
            shown = (f"{visible(token)!r} ×{count}{_sign(total)}" for token, count, total in self.tokens[:10])
            out.append("  ".join(shown) + "\n")
        for example in self.examples[:examples]:
            self._write(out, example)
        for band in self.bands if examples else []:
            out.append(f"  {self._interval(band)}\n", style="bold")
            for example in band.examples:
                self._write(out, example)
        return out

    def _write(self, out: "Text", example: Example) -> None:
        out.append(f"  {example.maximum:7.1f}  ", style="bold")
        for token, value in example.shown():
            out.append(visible(token), style=_style(value / self.maximum if self.maximum else 0.0))
        out.append(f"   ({example.document})\n", style="dim")

    def _interval(self, band: Band) -> str:
        return f"{band.low:.1f} to {band.high:.1f} ({band.share:.1%} of its active tokens), drawn evenly"

    def as_html(self, examples: int = 10) -> str:
        """A fragment without scripts or style sheets: token background as strong as its share of the maximum."""
        rows = "".join(_example_html(example, self.maximum) for example in self.examples[:examples])
        lists = "".join(
            f"<p><b>{title}</b> {_tokens_html(listed[:10])}</p>"
            for title, listed in (
                ("Promotes", self.promoted),
                ("Suppresses", self.suppressed),
                ("Fires most on", [(f"{token}{_sign(total)}", total) for token, _, total in self.tokens]),
            )
        )
        read = "" if self.explanation is None else f"<p><b>Explained</b> {html.escape(str(self.explanation))}</p>"
        return f'<div class="evidence"><p>{html.escape(self.summary)}</p>{read}{lists}<ol>{rows}</ol></div>'

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.as_html()

    def as_page(self) -> str:
        """A whole page of everything known, in one file without external resources."""
        facts = {"mean when active": self.mean, "standard deviation": self.sd, **self.quantiles}
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{v:.2f}</td></tr>" for k, v in facts.items())
        source = html.escape("; ".join(f"{name}: {value}" for name, value in self.provenance.items()))
        title = html.escape(f"Latent {self.latent} of {self.dictionary}")
        return _PAGE.format(
            title=title,
            evidence=self.as_html(examples=len(self.examples)),
            bands="".join(
                f"<h3>{html.escape(self._interval(band))}</h3>"
                f"<ol>{''.join(_example_html(example, self.maximum) for example in band.examples)}</ol>"
                for band in self.bands
            ),
            cells=cells,
            bars=self._bars(),
            source=source,
        )

    def _bars(self) -> str:
        """The histogram as one inline SVG, logarithmic in activation."""
        if not self.histogram:
            return ""
        highest = max(count for *_, count in self.histogram)
        bars = "".join(
            f'<rect x="{i * 14}" y="{100 - 100 * count / highest:.1f}" width="12" height="{100 * count / highest:.1f}">'
            f"<title>{low:.2f} to {high:.2f}: {count:,} tokens</title></rect>"
            for i, (low, high, count) in enumerate(self.histogram)
        )
        return f'<svg viewBox="0 0 {14 * len(self.histogram)} 100" role="img">{bars}</svg>'


def _sign(total: float) -> str:
    return " (−)" if total < 0 else ""


def _style(share: float) -> str:
    if share == 0:
        return ""
    if share < 0:
        return "bold black on bright_cyan" if share < -0.66 else "black on cyan" if share < -0.33 else "cyan"
    return "bold black on bright_yellow" if share > 0.66 else "black on yellow" if share > 0.33 else "yellow"


def _example_html(example: Example, maximum: float) -> str:
    spans = []
    for token, value in example.shown():
        text = html.escape(visible(token))
        if value and maximum:
            weight = "font-weight:600;" if value == example.maximum else ""
            colour = "255,160,0" if value > 0 else "0,150,220"
            shade = f"background:rgba({colour},{0.12 + 0.75 * min(abs(value) / maximum, 1):.2f});{weight}"
            text = f'<span style="{shade}" title="{value:.2f}">{text}</span>'
        spans.append(text)
    return f'<li value="{round(example.maximum)}">{"".join(spans)}</li>'


def _tokens_html(listed: list[tuple[str, float]]) -> str:
    return " ".join(f"<code>{html.escape(visible(token))}</code>" for token, _ in listed)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
code{{background:#8882;border-radius:4px;padding:0 .3em;white-space:pre}}li{{margin:.3em 0}}
th{{text-align:left;padding-right:1em;font-weight:500}}svg{{width:100%;height:8rem;fill:#e08a00}}
@media(prefers-color-scheme:dark){{body{{background:#16181c;color:#e6e6e6}}}}</style></head>
<body><h1>{title}</h1>{evidence}{bands}
<h2>Activations where it is active</h2>{bars}<p>Histogram, from weak to strong (logarithmic bins).</p>
<table>{cells}</table><h2>Where this comes from</h2><p>{source}</p></body></html>
"""
