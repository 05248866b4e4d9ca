"""Progress with rate and ETA for anything that may take more than two seconds."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .terminal import notice, printable

FIRST_SECONDS, EVERY_SECONDS = 1.0, 10.0  # when a line is printed where there is no terminal: first, and then


def say(line: str, quiet: bool = False) -> None:
    """One line for the user, on stderr."""
    if not quiet:
        notice(f"monosem: {line}")


class Meter:
    """`with Meter("harvest", total=1_000_000, unit="tok") as meter: meter.advance(4096, loss=0.31)`.

    Draws a bar on a terminal; prints a line every ten seconds elsewhere (logs, CI); silent with `quiet=True`.
    Everything goes to stderr, so that stdout stays machine-readable.

    Attributes:
        seconds_left: what the job itself expects; None: all that is left at the rate so far.
    """

    def __init__(self, description: str, total: float | None, unit: str = "it", quiet: bool = False, start: float = 0):
        self.description, self.total, self.unit, self.quiet = printable(description), total, unit, quiet
        self.done = self.first = start
        self.stats: dict[str, object] = {}
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.seconds_left: float | None = None

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self.printed = self.began + FIRST_SECONDS - EVERY_SECONDS
        if not self.quiet and self.console.is_terminal:
            # names of models and dictionaries are no markup
            columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn()]
            note = TextColumn("{task.fields[note]}", markup=False)
            extra = [note, TimeElapsedColumn(), TextColumn("ETA {task.fields[eta]}")]
            self.bar = Progress(*columns, *extra, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.description, total=self.total, completed=int(self.done), note="", eta="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        if not self.quiet and kind is None and time.monotonic() - self.began > 2:
            notice(f"{self.description}: {self._note()} in {time.monotonic() - self.began:.0f} s")

    @property
    def rate(self) -> float:
        """Units a second since this meter began."""
        return (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)

    def advance(self, amount: float = 1, **stats: object) -> None:
        self.done += amount
        self.stats.update(stats)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, note=self._note(), eta=self._eta())
        elif not self.quiet and time.monotonic() - self.printed > EVERY_SECONDS:
            self.printed = time.monotonic()
            notice(f"{self.description}: {self.line()}")

    def line(self) -> str:
        """How far it is, what is left, and how fast it goes."""
        of = f"/{self.total:,.0f}, ETA {self._eta()}" if self.total else ""
        return f"{self.done:,.0f}{of} {self._note()}"

    def _eta(self) -> str:
        if self.total is None or (self.seconds_left is None and self.rate <= 0):
            return "-:--:--"
        seconds = int((self.total - self.done) / self.rate if self.seconds_left is None else self.seconds_left)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _note(self) -> str:
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.stats.items())
        return "  ".join([self._speed(), *shown])

    def _speed(self) -> str:
        """Units a second, or where one takes longer than that, seconds a unit."""
        if 0 < self.rate < 1:
            return f"{1 / self.rate:,.1f} s/{self.unit}"
        return f"{self.rate:,.1f} {self.unit}/s" if self.rate < 100 else f"{self.rate:,.0f} {self.unit}/s"
