"""Training a sparse dictionary from a stream of activations: the loop, from first batch to saved dictionary."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import BadInput
from ...jobs import Checkpoints, Health, Interrupted, Interrupts, Journal, claim
from ...models.loading.precision import choose_device
from ...models.turns import refuse_inference_mode
from ...progress import say
from ..dictionary import Dictionary
from .config import FIRST_CHECKPOINT, TrainConfig
from .forward import auxiliary_loss, forward_of, unexplained
from .outcome import FOLDER, save_outcome
from .pace import Pace
from .state import TrainingState

Record = dict[str, float | None]


class Stream(Protocol):
    """Batches of activations, and where it is in them: from a loaded state on it gives the same batches again.

    A stream that takes its time for a batch may have `on_read`, which it calls with the number of rows whenever some
    were read and its state could be saved, and `wanted` and `unread`, the rows to read in all and from there on.
    """

    def __next__(self) -> Any: ...  # Float[Tensor, "batch d"]; streams of several sites give something else

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
) -> Dictionary:
    """Train a dictionary on a stream of your own and save it in `folder/dictionary` (SAELens layout), with the config
    and metrics beside it. `train` makes the stream as well.

    Run again with the same folder, config and stream, it goes on after the newest checkpoint and gives the same losses
    and weights as a run that was never stopped (same machine and thread count). Ctrl-C and SIGTERM save first. With
    every checkpoint the dictionary is saved as it is, so that the latest state of a killed run can be loaded; its card
    says whether the run is `finished`.

    Args:
        stream: gives `[batch_tokens, d]` activations, in raw units.
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
    refuse_inference_mode("training a dictionary")
    device = _device(config)
    claimed = claim(folder, config, work="checkpoints/*.pt", resume=resume)
    with claimed as target, Interrupts() as interrupts, _precision(config, device):
        run = _Run(config, stream, target, interrupts, device)
        with Pace(config, stream, run.step, quiet) as pace, run.told_of_reading(pace):
            for record in run.steps(pace):
                if record:
                    record["tokens_per_second"] = pace.meter.rate
                    run.journal.append(record)
                    if on_step:
                        on_step(record)
        return run.finish(quiet)


class _Run:
    """A run in its folder: what has been read and trained on, and when it is saved."""

    def __init__(self, config: TrainConfig, stream: Stream, target: Path, interrupts: Interrupts, device: torch.device):
        self.config, self.stream, self.target, self.interrupts = config, stream, target.resolve(), interrupts
        self.checkpoints, self.journal = Checkpoints(target / "checkpoints"), Journal(target / "metrics.jsonl")
        self.health, self.device = Health(device), device
        self.saved_step, self.saved_at, self.wait = -1, time.monotonic(), FIRST_CHECKPOINT
        self.first: list[Tensor] = []  # calibration batches, until there is a state
        self.state: TrainingState | None = None
        if saved := self.checkpoints.newest():
            stream.load_state_dict(saved["stream"])
            self.first = saved["first"]
            self.state = saved["state"] and TrainingState.restore(config, saved["state"], device)
            self.saved_step = self.step
        self.journal.truncate(self.step)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step if self.state else 0

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

    def steps(self, pace: Pace) -> Iterator[Record]:
        """Train to the end, step by step, with checkpoints; gives the record of each logged step, else nothing.

        A record is given before the checkpoint of its step is made, so that metrics.jsonl lacks no step of a resumed
        run.
        """
        config, state = self.config, self._begun(pace)
        while state.step < config.steps:
            x = state.pending.pop(0) if state.pending else self._read(pace, state.form.W_dec.shape[1])
            if x is None:
                self._warn_of_end()
                break
            logged = (state.step + 1) % config.log_every == 0
            record = train_step(state, config, x, self.device, self.health, logged)
            due = self._due(stepped=True)
            if record or due or self.device.type == "cpu":  # on a GPU this waits
                self.health.check(self.checkpoints.last)
            pace.stepped(record)
            yield record
            if state.step < config.steps:
                self.pause(due)
        if self.saved_step != state.step:
            self._save()

    def pause(self, due: bool) -> None:
        """Between two steps, or two passes of the model: save what is due, and stop where the user asked for it."""
        stop = self.interrupts.asked  # read once: a signal may come at any line
        if due or stop:
            self._save()
            if self.state and self.state.step:
                save_outcome(self.config, self.state, self.stream, self.target, finished=False)
        if stop:
            raise Interrupted(f"stopped after step {self.step} and saved in {self.target}")

    def finish(self, quiet: bool) -> Dictionary:
        """Save and measure the result. Raises `BadInput` when it is none."""
        assert self.state is not None
        outcome = save_outcome(self.config, self.state, self.stream, self.target, finished=True)
        if outcome is None:
            raise BadInput(
                "training ended, but no latent fires, so there is no dictionary; train for longer, or raise lr"
            )
        self.journal.append({"step": self.step, "end": outcome.measured})
        if outcome.problems:
            raise BadInput(
                f"training ended, but the dictionary is not finished: {'; '.join(outcome.problems)}. It is saved in "
                f"{self.target / FOLDER}, marked as unfinished"
            )
        fit, left_out = outcome.saved, int(self.state.outliers)
        out = f"; {left_out:,} outliers were left out" if left_out else ""
        share = "too few steps to say how many" if outcome.dead is None else f"{outcome.dead:.1%}"
        say(f"as saved: FVE {fit.fve:.3f} at L0 {fit.l0:.1f}, {share} of the latents dead{out}", quiet)
        return outcome.dictionary

    def _begun(self, pace: Pace) -> TrainingState:
        """The state, of a new run calibrated on the stream's first batches."""
        if self.state is None:
            while len(self.first) < min(self.config.calibration_batches, self.config.steps):
                x = self._read(pace, self.first[0].shape[1] if self.first else None)
                if x is None:
                    break
                self.first.append(x.clone())
                if self.interrupts.asked:
                    self.pause(due=True)
            if not self.first:
                raise BadInput("the stream is empty: it gave no batch; give it more text or make batch_tokens smaller")
            self.state, self.first = TrainingState.begin(self.config, self.first, self.device), []
        return self.state

    def _read(self, pace: Pace, d: int | None) -> Tensor | None:
        """The next batch, checked; None at the end of the stream."""
        with pace.reading():
            try:
                return _checked(next(self.stream), self.config, d)
            except StopIteration:
                return None

    def _save(self) -> None:
        self.health.check(self.checkpoints.last)
        self.config.write(self.target / "config.yaml")
        state = self.state and self.state.state_dict()
        self.checkpoints.save(self.step, {"state": state, "first": self.first, "stream": self.stream.state_dict()})
        self.saved_step, self.saved_at, self.wait = self.step, time.monotonic(), self.config.checkpoint_seconds

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


def train_step(
    state: TrainingState, config: TrainConfig, x: Tensor, device: torch.device, health: Health, logged: bool
) -> Record:
    """One optimiser step on a raw batch; gives its record when `logged`, else an empty one and waits for no GPU.

    A record holds this step's numbers (not means over steps, so that a resumed run logs the same). loss: what was
    minimised; auxk: its auxiliary part; fve: 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖² over the batch; l0: mean positive codes a token;
    dead: share of latents silent for `dead_after` tokens, None before so many; lr: the rate of this step.
    """
    form, optimizer = state.form, state.optimizer
    x = state.scaled(x.to(device, torch.float32, non_blocking=True))
    state.find_dead(config.dead_after)

    done = forward_of(config, device)(form, x, config)
    residual = x - done.reconstruction
    loss = rebuilding = unexplained(form, done, x, config, state.variance)
    k_aux = config.auxk_of(x.shape[1])
    if len(state.dead) and k_aux and config.auxk_coefficient:
        loss = loss + config.auxk_coefficient * auxiliary_loss(form, x, residual, state.dead, k_aux)
    loss.backward()
    health.watch(state.step + 1, x, loss)

    form.project_decoder_gradient()
    torch.nn.utils.clip_grad_norm_(form.parameters(), config.clip)
    for group in optimizer.param_groups:
        group["lr"] = config.lr_at(state.step)
    optimizer.step()
    optimizer.zero_grad()
    form.normalise_decoder()
    state.note(x, done.fired)
    state.step += 1
    if not logged:
        return {}
    with torch.no_grad():
        spread = (x - x.mean(0)).square().sum()
        values = [loss, loss - rebuilding, 1 - residual.square().sum() / spread, done.active / len(x)]
        numbers = dict(zip(("loss", "auxk", "fve", "l0"), torch.stack(values).tolist()))
    step = state.step
    about = {"step": step, "tokens": step * config.batch_tokens}
    return about | numbers | {"dead": state.dead_share(config), "lr": config.lr_at(step - 1)}


def _checked(x: Any, config: TrainConfig, d: int | None = None) -> Tensor:
    if not isinstance(x, Tensor):
        raise BadInput(
            f"the stream gave a {type(x).__name__}; training needs a stream of one site, which gives tensors"
        )
    if x.ndim != 2 or len(x) != config.batch_tokens or d not in (None, x.shape[1]):
        expected = f"[{config.batch_tokens}, {d or 'd'}]"
        raise BadInput(f"the stream gave a batch of shape {list(x.shape)}, expected {expected} (batch_tokens × width)")
    return x


def _device(config: TrainConfig) -> torch.device:
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return choose_device(automatic if config.device == "auto" else config.device)


@contextlib.contextmanager
def _precision(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """TF32 matrix products on a GPU while a `fast` run lasts."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.precision == "fast" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
