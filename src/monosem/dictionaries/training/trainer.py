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

from ... import __version__
from ...activations import SkipRule
from ...errors import BadInput
from ...files import replacing_folder
from ...jobs import Checkpoints, Health, Interrupted, Interrupts, Journal, claim
from ...models import Site
from ...models.loading.precision import choose_device
from ...models.turns import refuse_inference_mode
from ...progress import Meter
from ..dictionary import Dictionary
from ..trained_on import KEY, written
from .config import TrainConfig
from .form import export
from .forward import BEST_ON, FORWARDS, auxiliary_loss, reconstruction_loss
from .state import TrainingState

Record = dict[str, float]
_SHOWN = ("loss", "fve", "l0", "dead")  # of a record, beside the progress bar


class Stream(Protocol):
    """Batches of activations, and where it is in them: from a loaded state on it gives the same batches again."""

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
    and weights as a run that was never stopped (same machine and thread count). Ctrl-C and SIGTERM save first.

    Args:
        stream: gives `[batch_tokens, d]` activations, in raw units.
        resume: False refuses a folder that already holds a run.
        on_step: called with each record that goes to metrics.jsonl (see `train_step`).

    Raises:
        BadInput: the folder cannot be written to or is taken, a batch of the wrong shape, NaN in a batch or the loss.
        Mismatch: the folder holds a run with another config; every field that differs is named.
        Interrupted: (a KeyboardInterrupt) stopped by the user, after saving: the same call goes on.
    """
    refuse_inference_mode("training a dictionary")
    device = _device(config)
    claimed = claim(folder, config, work="checkpoints/*.pt", resume=resume)
    with claimed as target, Interrupts() as interrupts, _precision(config, device):
        checkpoints, journal = Checkpoints(target / "checkpoints"), Journal(target / "metrics.jsonl")
        if saved := checkpoints.newest():
            stream.load_state_dict(saved["stream"])
            state = TrainingState.restore(config, saved["state"], device)
        else:
            state = _begun(config, stream, device, interrupts)
        journal.truncate(state.step)
        config.write(target / "config.yaml")
        n = config.batch_tokens
        with Meter(f"train {config.site}", config.steps * n, "tok", quiet, start=state.step * n) as meter:
            for record in _steps(config, state, stream, checkpoints, interrupts):
                meter.advance(n, **{name: record[name] for name in _SHOWN if record})
                if record:
                    record["tokens_per_second"] = meter.rate
                    journal.append(record)
                    if on_step:
                        on_step(record)
        return _finish(config, state, stream, target)


def _steps(
    config: TrainConfig, state: TrainingState, stream: Stream, checkpoints: Checkpoints, interrupts: Interrupts
) -> Iterator[Record]:
    """Train to the end, step by step, with checkpoints; gives the record of every step that is logged, else nothing.

    A record is given before the checkpoint of its step is made, so that metrics.jsonl lacks no step of a resumed run.
    """
    device = state.silent.device
    health, saved_step, saved_at = Health(device), state.step, time.monotonic()

    def save() -> None:
        health.check(checkpoints.last)
        checkpoints.save(state.step, {"state": state.state_dict(), "stream": stream.state_dict()})

    while state.step < config.steps:
        x = _next(state, stream, config)
        if x is None:
            break
        record = train_step(state, config, x, device, health, logged=(state.step + 1) % config.log_every == 0)
        due = _due(config, state.step, saved_at)
        if record or due or device.type == "cpu":  # on a GPU this waits
            health.check(checkpoints.last)
        yield record
        stop = interrupts.asked and state.step < config.steps  # read once: a signal may come at any line
        if due or stop:
            save()
            saved_step, saved_at = state.step, time.monotonic()
        if stop:
            raise Interrupted(f"stopped after step {state.step} and saved in {checkpoints.folder.parent}")
    if saved_step != state.step:
        save()


def train_step(
    state: TrainingState, config: TrainConfig, x: Tensor, device: torch.device, health: Health, logged: bool
) -> Record:
    """One optimiser step on a raw batch; gives its record when `logged`, else an empty one and waits for no GPU.

    A record holds this step's numbers (not means over steps, so that a resumed run logs the same). loss: what was
    minimised; auxk: its auxiliary part; fve: 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖² over the batch; l0: mean positive codes a token;
    dead: share of latents silent for `dead_after` tokens; lr: the rate of this step.
    """
    form, optimizer = state.form, state.optimizer
    forward = FORWARDS[BEST_ON.get(device.type, "dense") if config.kernels == "auto" else config.kernels]
    x = x.to(device, torch.float32, non_blocking=True) * state.scale
    state.find_dead(config.dead_after)

    done = forward(form, x, config.kind, config.k, config.precision == "fast")
    residual = x - done.reconstruction
    loss = unexplained = reconstruction_loss(residual, state.variance)
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
    state.note(done.fired, done.floor, len(x))
    state.step += 1
    if not logged:
        return {}
    with torch.no_grad():
        spread = (x - x.mean(0)).square().sum()
        dead = (state.silent >= config.dead_after).float().mean()
        values = [loss, loss - unexplained, 1 - residual.square().sum() / spread, done.active / len(x), dead]
        numbers = dict(zip(("loss", "auxk", "fve", "l0", "dead"), torch.stack(values).tolist()))
    step = state.step
    return {"step": step, "tokens": step * config.batch_tokens, **numbers, "lr": config.lr_at(step - 1)}


def _next(state: TrainingState, stream: Stream, config: TrainConfig) -> Tensor | None:
    """The next batch, checked; None at the end of the stream."""
    if state.pending:
        return state.pending.pop(0)
    try:
        return _checked(next(stream), config, state.form.W_dec.shape[1])
    except StopIteration:
        done, wanted = state.step * config.batch_tokens, config.tokens
        warnings.warn(
            f"the stream ended after {done:,} of {wanted:,} tokens, before the learning rate had fallen; "
            "set tokens to what the stream holds, or give it more epochs",
            stacklevel=3,
        )
        return None


def _checked(x: Any, config: TrainConfig, d: int | None = None) -> Tensor:
    if not isinstance(x, Tensor):
        raise BadInput(
            f"the stream gave a {type(x).__name__}; training needs a stream of one site, which gives tensors"
        )
    if x.ndim != 2 or len(x) != config.batch_tokens or d not in (None, x.shape[1]):
        expected = f"[{config.batch_tokens}, {d or 'd'}]"
        raise BadInput(f"the stream gave a batch of shape {list(x.shape)}, expected {expected} (batch_tokens × width)")
    return x


def _begun(config: TrainConfig, stream: Stream, device: torch.device, interrupts: Interrupts) -> TrainingState:
    """A new run, calibrated on the stream's first batches."""
    batches: list[Tensor] = []
    for _ in range(min(config.calibration_batches, config.steps)):
        if interrupts.asked:
            raise Interrupted("stopped before the first step; nothing was trained yet")
        try:
            batches.append(_checked(next(stream), config, batches[0].shape[1] if batches else None).clone())
        except StopIteration:
            break
    if not batches:
        raise BadInput("the stream is empty: it gave no batch; give it more text or make batch_tokens smaller")
    if config.k > config.width:
        raise BadInput(f"k is {config.k}, but there are only {config.width} latents")
    return TrainingState.begin(config, batches, device)


def _due(config: TrainConfig, step: int, saved_at: float) -> bool:
    """Whether a checkpoint is due after this step, by tokens or by time."""
    if time.monotonic() - saved_at >= config.checkpoint_seconds:
        return True
    every = config.checkpoint_tokens
    return every is not None and step * config.batch_tokens // every > (step - 1) * config.batch_tokens // every


def _finish(config: TrainConfig, state: TrainingState, stream: Stream, target: Path) -> Dictionary:
    metadata: dict[str, Any] = {
        "context_size": config.context,
        "seed": config.seed,
        "training_tokens": state.step * config.batch_tokens,
        "monosem_version": __version__,
        "training": config.model_dump(mode="json"),
    }
    if hasattr(stream, "skipped"):
        metadata["skipped"] = dict(stream.skipped)
    if isinstance(rule := getattr(stream, "skip", None), SkipRule):
        metadata[KEY] = written(rule, getattr(stream, "thresholds", {}).get(str(Site.parse(config.site))))
    dictionary = export(state.form, config, state.scale, float(state.threshold), metadata)
    with replacing_folder(target / "dictionary") as temporary:
        dictionary.save(temporary)
    return dictionary


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
