"""What is known about one latent, and how to show it: in a terminal, in a page."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from ..files import json_value, write_text
from ..results import Result
from .drawing import export_page, framed

if TYPE_CHECKING:
    from rich.text import Text

    from .explanations import Explanation

SHOWN = 10  # tokens and neighbours a list

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

    def as_data(self) -> dict[str, Any]:
        """Plain values: tokens, ids, activations, anchor, maximum, document, position."""
        return {**vars(self), "maximum": self.maximum}

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
        histogram: (lower edge, upper edge, count) of every bin of magnitudes that is not empty; upper edges are not in
            their bin, but for the last, which is the maximum.
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
        """What the index holds as a page (.html, one file without external resources), or the table of examples."""
        if Path(path).suffix.lower() != ".html":
            return super().save(path, **plot)
        write_text(path, self.html)
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

    def parts(self) -> dict[str, Any]:
        """What a page holds of it, as plain values: see `latent_page.PARTS`."""
        active = {"mean": self.mean, "sd": self.sd}
        found: dict[str, Any] = {
            "statistics": {
                "count": self.count,
                "tokens": self.provenance.get("tokens"),
                "density": self.density,
                "maximum": self.maximum,
                "dead": self.count == 0,
                "active": active,
                "quantiles": {name.removeprefix("quantile "): value for name, value in self.quantiles.items()},
            },
            "histogram": [{"low": low, "high": high, "count": count} for low, high, count in self.histogram],
            "tokens": [{"token": token, "count": count, "mass": mass} for token, count, mass in self.tokens],
            "logits": {
                side: [{"token": token, "effect": value} for token, value in pairs[:SHOWN]]
                for side, pairs in (("promoted", self.promoted), ("suppressed", self.suppressed))
            },
            "examples": [example.as_data() for example in self.examples],
            "intervals": [self.interval(band) for band in self.bands],
            "provenance": self.provenance,
        }
        read = self.explanation
        if read is not None:
            shares = {"fires": str(read.fires), "quiet": str(read.quiet)}
            found["explanation"] = {"label": read.label, "score": read.score, **shares}
        return found

    def interval(self, band: Band) -> dict[str, Any]:
        """A band as plain values, with its share of the whole activation as well."""
        return {
            "low": band.low,
            "high": band.high,
            "share": band.share,
            "mass": mass_between(self.histogram, band.low, band.high),
            "examples": [example.as_data() for example in band.examples],
        }

    @property
    def html(self) -> str:
        """The explorer's page of what the index holds, as one file."""
        about = {"latent": self.latent, "dictionary": self.dictionary, "summary": self.summary, "missing": {}}
        return export_page([json_value(about | self.parts())])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return framed(self.html)


def mass_between(histogram: list[tuple[float, float, int]], low: float, high: float) -> float:
    """Share of the summed magnitudes that lies between two, if activations are spread over log2 evenly in each bin."""
    narrowed = [(min(a, b * (1 - 1e-6)), b, n) for a, b, n in histogram]  # what has no width is still there
    parts = [(n / math.log(b / a), a, b) for a, b, n in narrowed]
    inside = sum(rate * max(min(b, high) - max(a, low), 0.0) for rate, a, b in parts)
    whole = sum(rate * (b - a) for rate, a, b in parts)
    return inside / whole if whole else 0.0


def _sign(total: float) -> str:
    return " (−)" if total < 0 else ""


def _style(share: float) -> str:
    if share == 0:
        return ""
    if share < 0:
        return "bold black on bright_red" if share < -0.66 else "black on red" if share < -0.33 else "red"
    return "bold black on bright_yellow" if share > 0.66 else "black on yellow" if share > 0.33 else "yellow"
