"""Work with the model, one job at a time: a queue, progress that can be followed, and cancelling."""

import itertools
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import BadInput, MonosemError, UnknownName
from ..terminal import notice, one_line
from .words import spoken

State = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
MOST_WAITING, KEPT = 20, 50  # jobs in the queue; jobs of which the result is kept


class Cancelled(Exception):
    """The job was cancelled while it ran."""


@dataclass
class Job:
    """One piece of work. `events` grow only; a reader takes those that it has not seen yet.

    Attributes:
        kind, title: what it is, for the user. events: each with its `type`: progress, tokens, done, failed, cancelled.
        files: pages that it made, by name, as whole HTML.
    """

    id: str
    kind: str
    title: str
    work: Callable[["Job"], Any]
    state: State = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def tell(self, type: str, **values: Any) -> None:
        self.events.append({"type": type, **values})

    def progress(self, words: str) -> None:
        """What it does now. Raises `Cancelled` where it was asked to stop."""
        self.check()
        self.tell("progress", words=words)

    def check(self) -> None:
        if self.stop.is_set():
            raise Cancelled

    def about(self) -> dict[str, Any]:
        """What a list of jobs shows."""
        running = time.monotonic() - self.began if self.state == "running" else self.seconds
        return {"id": self.id, "kind": self.kind, "title": self.title, "state": self.state, "seconds": running}


class Jobs:
    """The queue, and the one thread that works it off."""

    def __init__(self) -> None:
        self.all: dict[str, Job] = {}
        self.numbers = itertools.count(1)
        self.waiting: queue.Queue[Job] = queue.Queue()
        self.lock = threading.Lock()
        threading.Thread(target=self._work, daemon=True, name="monosem-jobs").start()

    def add(self, kind: str, title: str, work: Callable[[Job], Any]) -> Job:
        """Raises `BadInput` when too many wait."""
        with self.lock:
            if sum(one.state == "waiting" for one in self.all.values()) >= MOST_WAITING:
                raise BadInput(f"{MOST_WAITING} jobs are waiting; cancel some, or wait")
            job = Job(str(next(self.numbers)), kind, title, work)
            if (other := next((one for one in self.all.values() if one.state == "running"), None)) is not None:
                job.progress(f"waiting until this is done: {other.title}")
            self.all[job.id] = job
            for old in [one.id for one in self.all.values() if one.state in ENDED][:-KEPT]:
                del self.all[old]
        self.waiting.put(job)
        return job

    def get(self, id: str) -> Job:
        """Raises `UnknownName` for none, or one that is no longer kept."""
        if id not in self.all:
            raise UnknownName(f"no job {id}; the last {KEPT} are kept")
        return self.all[id]

    def cancel(self, id: str) -> Job:
        """A job that waits never runs; one that runs ends at its next forward pass."""
        job = self.get(id)
        job.stop.set()
        with self.lock:
            if job.state == "waiting":
                job.tell("cancelled")
                job.state = "cancelled"
        return job

    def list(self) -> list[dict[str, Any]]:
        """The newest first."""
        return [job.about() for job in reversed(list(self.all.values()))]

    def _work(self) -> None:
        while True:
            job = self.waiting.get()
            with self.lock:
                if job.state != "waiting":
                    continue
                job.state, job.began = "running", time.monotonic()
            try:
                end = ("done", {"result": job.work(job)})
            except Cancelled:
                end = ("cancelled", {})
            except MonosemError as error:
                end = ("failed", {"words": spoken(error)})
            except Exception as error:
                notice(f"a job ({job.kind}) failed:\n{traceback.format_exc()}")
                end = ("failed", {"words": one_line(f"a fault in monosem: {type(error).__name__}: {error}")})
            job.seconds = time.monotonic() - job.began
            job.tell(end[0], **end[1])
            job.state = end[0]  # type: ignore[assignment]
