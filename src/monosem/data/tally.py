"""The account of a corpus's rows: which columns made the texts, which rows gave none, and when these are too many."""

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BadFile, MonosemError
from ..progress import say
from .rows import BadRow

MOST_SKIPPED = 0.1
FEW = 10  # so many rows may be skipped of any number
EVERY = 1000  # rows between checks of the share: skipped rows come in runs
SHAPES = 5  # of rows, that are said
REASONS = 3  # that a message names


class SkippedRows(UserWarning):
    """Rows of a corpus gave no text and were left out."""


class Tally:
    """The rows of one path. Attributes: rows, documents: how many were read, and gave a text that is not blank."""

    def __init__(self, path: Path, most_skipped: float, quiet: bool):
        self.path, self.most_skipped, self.quiet = path, most_skipped, quiet
        self.rows = self.documents = 0
        self._stopped = False
        self._shapes: set[tuple[str, ...]] = set()
        self._reasons: Counter[str] = Counter()
        self._first: dict[str, tuple[str, type[MonosemError]]] = {}

    @property
    def skipped(self) -> int:
        return self._reasons.total()

    def use(self, row: str | Mapping[str, Any], columns: tuple[str, ...]) -> None:
        """Count a row that gave a text; say its columns when they are the first such ones."""
        self._count()
        if isinstance(row, str) or columns in self._shapes:
            return
        self._shapes.add(columns)
        if len(self._shapes) <= SHAPES:
            left = [str(name) for name in row if name not in columns and row[name] is not None]
            rest = f"; not used: {', '.join(left[:12])}{', ...' if len(left) > 12 else ''}" if left else ""
            say(f"{self.path}: texts from {', '.join(columns)}{rest}", self.quiet)

    def skip(self, bad: BadRow, where: str) -> None:
        why = str(bad)
        self._reasons[why] += 1
        self._first.setdefault(why, (where, bad.error))
        self._count()

    def _count(self) -> None:
        self.rows += 1
        if self.rows % EVERY == 0 or not self.most_skipped:
            self.check()

    def check(self, ended: bool = False) -> None:
        """Raises `BadInput` or `BadFile`: too many rows were skipped, or, at the end of the path, there was no text."""
        allowed = max(FEW, self.most_skipped * self.rows) if self.most_skipped else 0
        if self.skipped > allowed or (ended and not self.documents and self.skipped):
            self._stopped = True
            error = self._first[self._reasons.most_common(1)[0][0]][1]
            most = f"at most {self.most_skipped:.0%} may be skipped (most_skipped)"
            raise error(f"{self._account()}; {most if self.documents else 'no text is left'}")
        if ended and not self.documents:
            raise BadFile(f"{self.path} holds no text")

    def warn(self) -> None:
        if self.skipped and not self._stopped:
            warnings.warn(self._account(), SkippedRows, stacklevel=2)

    def _account(self) -> str:
        named = [
            f"{self._first[why][0]}: {why}" + (f" ({count:,} such rows)" if count > 1 else "")
            for why, count in self._reasons.most_common(REASONS)
        ]
        other = f"; {len(self._reasons) - REASONS:,} other reasons" if len(self._reasons) > REASONS else ""
        return f"{self.path}: {self.skipped:,} of {self.rows:,} rows skipped; {'; '.join(named)}{other}"
