"""Explanations of latents: a label each, and how well it tells held-out text apart on which the latent fires.

`explanations.json` beside a dictionary: {"method": text, "latents": {"12": {"label": text, "top": [right, of],
"middle": ..., "silent": ..., "near": ...}}}. A judge who saw the label alone said of each held-out text whether the
latent fires at its marked token.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..dictionaries import Dictionary
from ..errors import BadFile
from ..reading import read_object
from ..results import Result
from ..statistics import Share

FILE = "explanations.json"
KINDS = ("top", "middle", "silent", "near")  # of held-out texts; at the last two the latent does not fire


@dataclass(frozen=True)
class Explanation:
    """A label and its held-out score.

    Attributes:
        top, middle: of the texts at whose marked token the latent is above two thirds of its maximum, or between one
            and two thirds, how many the judge found. silent, near: of the texts at which it does not fire, drawn at
            random or where a latent with a similar decoder row does, how many the judge left out.
    """

    latent: int
    label: str
    top: Share
    middle: Share
    silent: Share
    near: Share

    @property
    def fires(self) -> Share:
        """How many of the texts on which it fires the label finds."""
        return Share(self.top.count + self.middle.count, self.top.of + self.middle.of)

    @property
    def quiet(self) -> Share:
        """How many of the texts on which it does not fire the label leaves out."""
        return Share(self.silent.count + self.near.count, self.silent.of + self.near.of)

    @property
    def score(self) -> float:
        """Balanced accuracy: the mean of both shares; 0.5 is guessing."""
        return (self.fires.value + self.quiet.value) / 2

    def __str__(self) -> str:
        scored = self.fires.of and self.quiet.of
        return f"{self.label} ({f'held-out score {self.score:.2f}' if scored else 'not scored'})"


@dataclass(frozen=True)
class Explanations(Result):
    """The labels of a dictionary's latents; `method` says how they were made."""

    method: str
    all: dict[int, Explanation] = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """One row a latent: latent, label, score, fires and quiet with their intervals, and the counts of each kind."""
        rows = [
            {"latent": one.latent, "label": one.label, "score": one.score}
            | dict(zip(("fires", "fires_low", "fires_high"), one.fires.interval))
            | dict(zip(("quiet", "quiet_low", "quiet_high"), one.quiet.interval))
            | {kind: str(getattr(one, kind)) for kind in KINDS}
            for one in self.all.values()
        ]
        return pd.DataFrame(rows)


def explanations_of(dictionary: Dictionary) -> Explanations | None:
    """The explanations that lie beside its files, if there are some. Raises `BadFile` for a damaged file."""
    path = None if dictionary.folder is None else dictionary.folder / FILE
    return read_explanations(path, dictionary.width) if path is not None and path.exists() else None


def read_explanations(path: str | os.PathLike[str], width: int) -> Explanations:
    """A file of explanations, of a dictionary with so many latents. Raises `BadFile` that says what is wrong."""
    held = read_object(path)
    latents = held.get("latents")
    if not isinstance(latents, dict) or not isinstance(held.get("method"), str):
        raise BadFile(f"{path} is no file of explanations: it needs `method` (text) and `latents` (an object)")
    found = [_explanation(Path(path), key, entry, width) for key, entry in latents.items()]
    return Explanations(held["method"], {one.latent: one for one in found})


def _explanation(path: Path, key: str, held: Any, width: int) -> Explanation:
    if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < width):
        raise BadFile(f"{path}: there is no latent {key!r}; the dictionary has {width:,}")
    if not isinstance(held, dict) or not isinstance(held.get("label"), str):
        raise BadFile(f"{path}: latent {key} has no label")
    shares = {kind: _share(held.get(kind), f"{path}: {kind} of latent {key}") for kind in KINDS}
    return Explanation(int(key), held["label"], **shares)


def _share(held: Any, where: str) -> Share:
    whole = isinstance(held, list) and len(held) == 2 and all(type(n) is int for n in held)
    if not whole or not 0 <= held[0] <= held[1]:
        raise BadFile(f"{where} must be [right, of], not {held!r}")
    return Share(held[0], held[1])
