"""Training sparse dictionaries from a stream of activations: the loop, from first batch to saved dictionaries."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...activations.second import any_site
from ...errors import BadInput
from ...files import writable_folder
from ...jobs import Checkpoints, Interrupted, Interrupts, claim, keep_freed_memory
from ...models.loading.precision import choose_device
from ...models.turns import refuse_inference_mode
from ..dictionary import Dictionary
from ..several import SeveralSites
from .config import CHECKPOINTS, FIRST_CHECKPOINT, AnyConfig, SeveralConfig, TrainConfig, sites_of
from .end_to_end import EndToEnd
from .member import TOKENS, Member
from .pace import Pace
from .precisions import precision_of
from .step import Record

Rows = dict[str, Tensor]  # site -> [batch_tokens, d]


class Stream(Protocol):
    """Batches of activations, and where it is in them: from a loaded state on it gives the same batches again.

    A batch is a tensor [batch_tokens, d] of one site, or {site: tensor} with aligned rows of several; end to end, the
    ids of windows (`TokenStream`). A stream that takes its time for a batch may have `on_read`, which it calls with the
    number of rows whenever some were read and its state could be saved, and `wanted` and `unread`, the rows to read in
    all and from there on.
    """

    def __next__(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def train_on(
    stream: Stream,
    config: TrainConfig,
    *,
    folder: str | os.PathLike[str],
    resume: bool = True,
    quiet: bool = False,
    on_step: Callable[[Record], None] | None = None,
) -> Dictionary | SeveralSites:
    """Train a dictionary on a stream of your own and save it in `folder/dictionary` (SAELens layout), with the config
    and metrics beside it. `train` makes the stream as well.

    Run again with the same folder, config and stream, it goes on after the newest checkpoint and gives the same losses
    and weights as a run that was never stopped (same machine and thread count). Ctrl-C and SIGTERM save first. With
    every checkpoint the dictionary is saved as it is, so that the latest state of a killed run can be loaded; its card
    says whether the run is `finished`.

    Args:
        stream: gives `[batch_tokens, d]` activations, in raw units, of all sites of the dictionary.
        resume: False refuses a folder that already holds a run.
        on_step: called with each record that goes to metrics.jsonl (see `train_step`).

    Raises:
        BadInput: the folder cannot be written to or is taken, a batch of the wrong shape, NaN in a batch or the loss;
            or what was made is no use (FVE below 0, most latents dead, a file that is not what was trained): it is
            saved, as not finished.
        Mismatch: the folder holds a run with another config (every field that differs is named), or `start` does not
            fit the stream.
        Interrupted: (a KeyboardInterrupt) stopped by the user, after saving: the same call goes on.
    """
    given = None if on_step is None else lambda name, record: on_step(record)
    return trained_on(stream, config, folder, resume, quiet, given)[""]


def train_several_on(
    stream: Stream,
    config: SeveralConfig,
    *,
    folder: str | os.PathLike[str],
    resume: bool = True,
    quiet: bool = False,
    on_step: Callable[[str, Record], None] | None = None,
) -> dict[str, Dictionary | SeveralSites]:
    """Train several dictionaries on the batches of one stream: `train_on` for each, in `folder/NAME`, in step.

    The stream gives the activations of all their sites. Checkpoints are of all together, in `folder/checkpoints`, so
    that the run goes on exactly.

    Args:
        on_step: called with the name of a dictionary and its record.

    Raises:
        BadInput, Mismatch, Interrupted: as `train_on`; what was made of the others is kept.
    """
    return trained_on(stream, config, folder, resume, quiet, on_step)


def trained_on(
    stream: Stream,
    config: AnyConfig,
    folder: str | os.PathLike[str],
    resume: bool,
    quiet: bool,
    on_step: Callable[[str, Record], None] | None,
) -> dict[str, Dictionary | SeveralSites]:
    """`train_on` for each config of a run; the only name is "" for a run of one dictionary."""
    refuse_inference_mode("training a dictionary")
    device = _device(config)
    rows = [one.precision for one in config.each.values()]
    if device.type == "cpu":
        keep_freed_memory()
    claimed = claim(folder, config, work=f"{CHECKPOINTS}/*.pt", resume=resume)
    with claimed as target, Interrupts() as interrupts, precision_of(rows, device):
        run = _Run(config, stream, target, interrupts, device)
        with Pace(config, stream, run.step, quiet) as pace, run.told_of_reading(pace):
            for records in run.steps(pace):
                for member, record in records:
                    record["tokens_per_second"] = pace.meter.rate
                    member.journal.append(record)
                    if on_step:
                        on_step(member.name, record)
        return run.finish(quiet)


class _Run:
    """A run in its folder: what has been read and trained on, and when it is saved."""

    def __init__(self, config: AnyConfig, stream: Stream, target: Path, interrupts: Interrupts, device: torch.device):
        self.config, self.stream, self.target, self.interrupts = config, stream, target.resolve(), interrupts
        self.end_to_end = EndToEnd(stream, config) if config.end_to_end else None
        self.members = [
            Member(name, one, self.target / name, device, self.end_to_end) for name, one in config.each.items()
        ]
        self.checkpoints, self.device, self.sites = Checkpoints(target / CHECKPOINTS), device, sites_of(config)
        self.saved_step, self.saved_at, self.wait = -1, time.monotonic(), FIRST_CHECKPOINT
        self.first: list[Rows] = []  # calibration batches, until there is a state
        self.widths: dict[str, int] = {}  # of each site
        if saved := self.checkpoints.newest():
            stream.load_state_dict(saved["stream"])
            self.first = [self._by_site(batch) for batch in saved["first"]]
            for member in self.members:
                member.restore(saved["state"] and (saved["state"][member.name] if member.name else saved["state"]))
                self.widths |= member.widths
            self.saved_step = self.step
        for member in self.members:
            writable_folder(member.folder)
            member.journal.truncate(self.step)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.members[0].step

    @contextlib.contextmanager
    def told_of_reading(self, pace: Pace) -> Iterator[None]:
        """While it lasts, the stream says when it has read something: the user sees it, and the run can be saved."""
        if not hasattr(self.stream, "on_read"):
            yield
            return

        def noted(rows: int) -> None:
            pace.noted(rows)
            self.pause(self._due())

        self.stream.on_read = noted
        try:
            yield
        finally:
            self.stream.on_read = None

    def steps(self, pace: Pace) -> Iterator[list[tuple[Member, Record]]]:
        """Train to the end, step by step, with checkpoints; gives the records of each logged step, else nothing.

        A record is given before the checkpoint of its step is made, so that metrics.jsonl lacks no step of a resumed
        run.
        """
        config = self.config
        self._begin(pace)
        while self.step < config.steps:
            waiting = self.members[0].waiting  # calibration batches, of each member or of none
            rows = None if waiting else self._read(pace)
            if not waiting and rows is None:
                self._warn_of_end()
                break
            logged = (self.step + 1) % config.log_every == 0
            records = [(member, member.stepped(rows, logged)) for member in self.members]
            due = self._due(stepped=True)
            if logged or due or self.device.type == "cpu":  # on a GPU this waits
                self._check_health()
            pace.stepped([record for _, record in records])
            yield records if logged else []
            if self.step < config.steps:
                self.pause(due)
        if self.saved_step != self.step:
            self._save()

    def pause(self, due: bool) -> None:
        """Between two steps, or two passes of the model: save what is due, and stop where the user asked for it."""
        stop = self.interrupts.asked  # read once: a signal may come at any line
        if due or stop:
            self._save()
            if self.step:
                for member in self.members:
                    member.save_outcome(self.stream)
        if stop:
            raise Interrupted(f"stopped after step {self.step} and saved in {self.target}")

    def finish(self, quiet: bool) -> dict[str, Dictionary | SeveralSites]:
        """Save and measure the results. Raises `BadInput` when one is none, after all were saved."""
        made, failed = {}, []
        for member in self.members:
            try:
                made[member.name] = member.finish(self.stream, quiet)
            except BadInput as error:
                failed.append(error)
        if failed:
            raise failed[0] if len(self.members) == 1 else BadInput("; ".join(map(str, failed)))
        return made

    def _begin(self, pace: Pace) -> None:
        """A new run is calibrated on the stream's first batches."""
        if self.members[0].state is not None:
            return
        while len(self.first) < min(self.config.calibration_batches, self.config.steps):
            rows = self._read(pace)
            if rows is None:
                break
            self.first.append({site: x.clone() for site, x in rows.items()})
            if self.interrupts.asked:
                self.pause(due=True)
        if not self.first:
            raise BadInput("the stream is empty: it gave no batch; give it more text or make batch_tokens smaller")
        for member in self.members:
            member.begin(self.first)
        self.first = []

    def _read(self, pace: Pace) -> Rows | None:
        """The next batch, checked; None at the end of the stream."""
        with pace.reading():
            try:
                rows = self._by_site(next(self.stream))
            except StopIteration:
                return None
        if self.end_to_end is not None:
            return rows
        for site, x in rows.items():
            d, n = self.widths.setdefault(site, x.shape[-1]), self.config.batch_tokens
            if x.ndim != 2 or x.shape != (n, d):
                at = f" at {site}" if len(rows) > 1 else ""
                expected = f"[{n}, {d if self.step or self.first else 'd'}] (batch_tokens × width)"
                raise BadInput(f"the stream gave a batch of shape {list(x.shape)}{at}, expected {expected}")
        return rows

    def _by_site(self, batch: Any) -> Rows:
        """A tensor is of the one site, or holds the tokens. Raises `BadInput` for what is none, or lacks a site."""
        if self.end_to_end is not None:
            return {TOKENS: batch[TOKENS] if isinstance(batch, Mapping) else batch}
        if isinstance(batch, Tensor) and len(self.sites) == 1:
            return {self.sites[0]: batch}
        given = {str(any_site(site)): x for site, x in batch.items()} if isinstance(batch, Mapping) else {}
        if missing := [site for site in self.sites if not isinstance(given.get(site), Tensor)]:
            has = f"activations of {', '.join(given)}" if given else f"a {type(batch).__name__}"
            raise BadInput(f"the stream gave {has}; this run needs {', '.join(missing)}")
        return {site: given[site] for site in self.sites}

    def _save(self) -> None:
        self._check_health()
        self.config.write(self.target / "config.yaml")
        states = {member.name: member.state and member.state.state_dict() for member in self.members}
        state = states.get("", states)  # of a run of one, that state
        self.checkpoints.save(self.step, {"state": state, "first": self.first, "stream": self.stream.state_dict()})
        self.saved_step, self.saved_at, self.wait = self.step, time.monotonic(), self.config.checkpoint_seconds

    def _check_health(self) -> None:
        for member in self.members:
            member.check_health(self.checkpoints.last)

    def _due(self, stepped: bool = False) -> bool:
        """Whether a checkpoint is due, by time or (after a step) by tokens."""
        if time.monotonic() - self.saved_at >= min(self.wait, self.config.checkpoint_seconds):
            return True
        every, n = self.config.checkpoint_tokens, self.config.batch_tokens
        return stepped and every is not None and self.step * n // every > (self.step - 1) * n // every

    def _warn_of_end(self) -> None:
        warnings.warn(
            f"the stream ended after {self.step * self.config.batch_tokens:,} of {self.config.tokens:,} tokens, before "
            "the learning rate had fallen; set tokens to what the stream holds, or give it more epochs",
            stacklevel=4,
        )


def _device(config: AnyConfig) -> torch.device:
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return choose_device(automatic if config.device == "auto" else config.device)
