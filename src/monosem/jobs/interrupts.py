"""Ctrl-C and SIGTERM as a flag that a loop reads where it can stop cleanly."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The user stopped a job that has saved its state; the message says how to go on."""


class Interrupts:
    """`with Interrupts() as interrupts: ... if interrupts.asked: save(); raise Interrupted(...)`.

    A second Ctrl-C stops at once. Handlers are restored at the end. Outside the main thread, where Python allows no
    handlers, nothing is installed and `asked` stays False.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt("stopped at once; work since the last checkpoint is lost")
        self.asked = True
        os.write(2, b"\nstopping after this step, to save (again: at once, without saving)\n")  # print is unsafe here
