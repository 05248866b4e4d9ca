"""Sweeps of latents that were made before: what each latent made the model write."""

import base64
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UnknownName
from ..files import json_value
from ..steering import LatentSweep
from .library import Library

NUMBERS = ("latent", "value", "score", "kl", "kl_text", "perplexity", "distinct_2")


class Sweeps:
    """The sweeps in some folders, ranked by their score.

    Raises:
        BadFile: a folder without a sweep, or with a damaged one.
    """

    def __init__(self, folders: Sequence[Path], library: Library):
        self.library, self.lock = library, threading.Lock()
        self.held = [LatentSweep.load(folder) for folder in folders]
        self.tables: list[pd.DataFrame] = [one.table for one in self.held]

    def about(self) -> list[dict[str, Any]]:
        """A line each; `dictionary` is the name under which it is open here, or None."""
        return [
            {
                "number": number,
                "folder": str(one.folder),
                "of": one.settings.dictionary,
                "dictionary": self._open(one.settings.dictionary),
                "model": one.settings.model,
                "prompt": one.settings.prompt,
                "values": one.settings.values,
                "baseline": json_value(one.baseline),
                "rows": len(table),
                "wanted": len(one.settings.latents) * len(one.settings.values),
            }
            for number, (one, table) in enumerate(zip(self.held, self.tables))
        ]

    def _open(self, name: str) -> str | None:
        books = self.library.books.values()
        same = (book.name for book in books if "error" not in book.about() and name == book.dictionary.name)
        return name if name in self.library.books else next(same, None)

    def table(self, number: int) -> pd.DataFrame:
        if not 0 <= number < len(self.tables):
            raise UnknownName(f"no sweep {number}; monosem explore --sweep FOLDER opens one")
        return self.tables[number]

    def columns(self, number: int) -> dict[str, Any]:
        """The numbers of all rows, best first: each column as the base64 of little-endian float32."""
        table = self.table(number)
        packed = {name: base64.b64encode(table[name].to_numpy(dtype="<f4").tobytes()).decode() for name in NUMBERS}
        return {"width": len(table), "columns": packed}

    def rows(self, number: int, wanted: Sequence[int]) -> list[dict[str, Any]]:
        """What was written, by number of the row."""
        texts = self.table(number)["text"]
        if max(wanted) >= len(texts):
            raise UnknownName(f"the sweep has rows 0 to {len(texts) - 1}")
        return [{"row": row, "text": str(texts.iloc[row])} for row in wanted]
