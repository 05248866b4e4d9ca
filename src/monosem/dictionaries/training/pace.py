"""How far a run is, and how long it will take: what is read and what is trained on each have their own rate."""

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from ...progress import Meter
from .config import AnyConfig

_SHOWN = ("loss", "fve", "l0", "dead")  # of a record, beside the progress bar


class Pace:
    """`with Pace(...) as pace:`, `with pace.reading(): ...` around what reads, `pace.stepped(record)` after a step."""

    def __init__(self, config: AnyConfig, stream: Any, step: int, quiet: bool):
        self.stream, self.batch, several = stream, config.batch_tokens, len(config.each)
        name = f"train {several} dictionaries" if several > 1 else f"train {next(iter(config.each.values())).site}"
        self.meter = Meter(name, config.steps * self.batch, "tok", quiet, start=step * self.batch)
        self.read, self.read_seconds = 0, 0.0

    def __enter__(self) -> Self:
        self.meter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.meter.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around the making of one batch."""
        self.since, before = time.monotonic(), self.read
        try:
            yield
        finally:
            self.noted(0 if self.read > before or hasattr(self.stream, "on_read") else self.batch)

    def noted(self, rows: int) -> None:
        """So many rows more were read: all that the stream tells, or a batch."""
        now = time.monotonic()
        self.read += rows
        self.read_seconds += now - self.since
        self.since = now
        if rows:
            self._show(0)

    def stepped(self, records: list[dict[str, Any]]) -> None:
        """One step, with the record of each dictionary, empty where none was made."""
        shown: dict[str, Any] = {}
        for name in _SHOWN:
            values = [record[name] for record in records if record.get(name) is not None]
            if values:
                shown[name] = values[0] if len(values) == 1 else f"{min(values):.3g} to {max(values):.3g}"
        self._show(self.batch, **shown)

    def _show(self, amount: int, **stats: Any) -> None:
        meter, unread = self.meter, getattr(self.stream, "unread", None)
        left = (meter.total or 0) - meter.done - amount
        stepped = meter.done + amount - meter.first
        seconds = time.monotonic() - meter.began - self.read_seconds
        meter.seconds_left = seconds / stepped * left if stepped else 0.0
        if self.read:
            meter.seconds_left += self.read_seconds / self.read * (left if unread is None else unread)
        read = {} if unread is None else {"read": f"{self.stream.wanted - unread:,}"}
        meter.advance(amount, **read, **stats)
