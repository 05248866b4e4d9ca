"""Training a tuned lens: gradient descent on what the lens lacks of the model's own prediction.

The recipe of Belrose et al. (arXiv 2303.08112, and their code), with these differences. Adam is warmed up (their test
for it compares an enum with a string and never holds). Gradients are clipped layer by layer, where a joint norm lets a
bad layer slow all others down. Text that is too short is an error at the start, not a training that silently ends. On
request the translators start from least squares, and only some of the cells of a batch are read out, for the
unembedding is what a step costs.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ... import __version__
from ...activations import Schedule, Source
from ...activations.harvesting import as_store
from ...data import TokenStore
from ...errors import BadInput, Mismatch
from ...files import writable_folder
from ...jobs import Checkpoints, Interrupted, Interrupts, Journal
from ...models import Model
from ...progress import Meter
from ..regression import fitted
from ..states import Distribution, chunks
from .lens import TunedLens
from .vocabulary import Vocabulary

Record = dict[str, Any]
NOT_DECISIVE = frozenset({"checkpoint_seconds", "log_every"})


class TuneConfig(BaseModel):
    """A training run of a tuned lens; the defaults are the paper's, 65 million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int | None = Field(default=None, ge=0, description="of the matrices; None: full, 0: a bias alone")
    steps: int = Field(default=250, gt=0, description="optimiser steps")
    batch_tokens: int = Field(default=1 << 18, gt=0, description="tokens of text a step")
    cells: int | None = Field(
        default=None, gt=0, description="tokens of a batch that are read out, drawn anew; None: all"
    )
    vocab_sample: int | None = Field(
        default=None,
        gt=1,
        description="tokens of the vocabulary in a step's loss: the likeliest ones and a weighted sample of the "
        "rest; None: all. A tenth is several times faster",
    )
    context: int = Field(default=2048, gt=1, description="tokens a window")
    loss: Literal["kl", "ce"] = Field(
        default="kl", description="kl: KL(model‖lens) of each prediction; ce: cross-entropy of the text's next token"
    )
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="SGD with Nesterov momentum, or Adam")
    lr: float | None = Field(
        default=None,
        gt=0,
        description="None: 1.0 for sgd (multiplied by 1 - momentum, as in the paper), 1e-3 for adam (in units of the "
        "sizes of the states: a layer of small states takes larger steps in A)",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd; Adam has betas 0.9 and 0.999")
    weight_decay: float = Field(default=1e-3, ge=0, description="towards the logit lens (sgd: L2; adam: decoupled)")
    warmup_steps: int | None = Field(
        default=None, ge=0, description="None: none for sgd, a tenth of the steps for adam"
    )
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm of a layer")
    init: Literal["zero", "regression"] = Field(
        default="zero", description="zero: the logit lens; regression: least squares"
    )
    init_tokens: int = Field(default=65_536, gt=0, description="tokens for the regression")
    repeat: bool = Field(default=False, description="read the text again and again if it is too short")
    seed: int = Field(default=0, description="of the order of the windows and of the cells")
    windows_at_once: int = Field(default=8, gt=0, description="windows a forward pass")
    checkpoint_seconds: float = Field(default=300.0, gt=0, description="seconds between checkpoints")
    log_every: int = Field(default=10, gt=0, description="steps between lines of metrics.jsonl")

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """A config from plain values. Raises `BadInput`: an unknown field, or a value out of its range."""
        try:
            return cls(**values)
        except ValidationError as error:
            told = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()} (got {e['input']!r})" for e in error.errors())
            raise BadInput("tuned lens: " + "; ".join(told)) from error

    @property
    def peak_lr(self) -> float:
        if self.optimizer == "sgd":
            return (1.0 if self.lr is None else self.lr) * (1 - self.momentum)
        return 1e-3 if self.lr is None else self.lr

    def share_at(self, step: int) -> float:
        """Learning rate of a 0-based step over the peak: linear warm-up, then linearly to zero."""
        default = self.steps // 10 if self.optimizer == "adam" else 0
        warmup = default if self.warmup_steps is None else self.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        return (self.steps - step) / max(self.steps - warmup, 1)

    @property
    def windows(self) -> int:
        """Windows a step."""
        return max(1, self.batch_tokens // self.context)


def train_tuned(
    model: Model,
    texts: Source,
    config: TuneConfig | None = None,
    folder: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    on_step: Callable[[Record], None] | None = None,
) -> TunedLens:
    """Train a tuned lens for a model.

    With a folder, checkpoints go to `folder/checkpoints`, a line every few steps to `folder/metrics.jsonl`, and the
    lens so far to `folder/lens`; the same call goes on where it stopped, with the same result.

    Args:
        texts: documents, a `TokenStore`, or windows of token ids.
        on_step: called with each logged record: step, tokens, lr, and the loss of every layer in nats.

    Raises:
        BadInput: too little text (and no `repeat`), a loss that is not finite.
        Mismatch: the folder holds a run with another config, text or model.
        Interrupted: (a KeyboardInterrupt) stopped by the user, after saving: the same call goes on.
    """
    config = config or TuneConfig()
    store = as_store(model, texts, config.context)
    training = Training(model, store, config, folder)
    with Interrupts() as interrupts:
        if not training.resume():
            training.begin(quiet, interrupts)
        total, done = config.steps * config.batch_tokens, training.step * config.batch_tokens
        with Meter(f"tune lens of {model.name}", total, "tok", quiet, start=done) as meter:
            saved = time.monotonic()
            while training.step < config.steps:
                losses = training.advance()
                meter.advance(config.batch_tokens, loss=float(losses.mean()))
                if training.step % config.log_every == 0 or training.step == config.steps:
                    record = training.record(losses)
                    if on_step:
                        on_step(record)
                last = training.step == config.steps
                if last or interrupts.asked or time.monotonic() - saved > config.checkpoint_seconds:
                    training.save()
                    saved = time.monotonic()
                if interrupts.asked and not last:
                    kept = f"saved in {folder}" if folder else "nothing was saved, for no folder was given"
                    raise Interrupted(f"stopped after step {training.step}; {kept}")
    return training.exported()


class Training:
    """A lens, its optimiser, and where it is in the text."""

    def __init__(self, model: Model, store: TokenStore, config: TuneConfig, folder: str | os.PathLike[str] | None):
        if config.vocab_sample is not None and config.loss != "kl":
            raise BadInput("vocab_sample works with loss='kl' only: the text's next token may not be in the sample")
        if store.context != config.context:
            raise BadInput(
                f"the windows have {store.context} tokens, the config says context={config.context}; set it so"
            )
        wanted = config.steps * config.windows
        if len(store) < wanted and not config.repeat:
            raise BadInput(
                f"the text has {len(store):,} windows of {store.context} tokens, {config.steps} steps of "
                f"{config.windows} need {wanted:,}; give more text, fewer steps, or repeat=True"
            )
        self.model, self.store, self.config, self.step = model, store, config, 0
        self.schedule = Schedule(len(store), config.seed, math.ceil(wanted / len(store)))
        self.lens = TunedLens.of(model, config.rank)
        self.sites = [f"resid_pre.{layer}" for layer in range(len(self.lens))]
        self.folder = None if folder is None else writable_folder(folder)
        self.optimizer: torch.optim.Optimizer | None = None
        self.tokens_read = 0

    # ------------------------------------------------------------------ begin, resume, save
    def begin(self, quiet: bool, interrupts: Interrupts) -> None:
        """Translators and optimiser of a new run. Raises `Interrupted`."""
        draw = torch.Generator().manual_seed(self.config.seed)
        for translator in self.lens:
            if translator.rank:
                translator.down.data.copy_(torch.randn(translator.down.shape, generator=draw) / self.lens.d_model**0.5)
        if self.config.init == "regression":
            starts = fitted(self._initial(quiet, interrupts), len(self.lens), self.lens.d_model, self.config.rank)
            for translator, (matrix, bias) in zip(self.lens, starts, strict=True):
                translator.begin_at(matrix, bias)
        self.optimizer = self._optimizer(self._sizes())

    def resume(self) -> bool:
        """Take up the run in the folder, if there is one. Raises `Mismatch` when it is another."""
        saved = self._checkpoints.newest() if self.folder else None
        if saved is None:
            return False
        mine = self._identity()
        different = [name for name in mine if saved["identity"].get(name) != mine[name] and name not in NOT_DECISIVE]
        if different:
            told = "; ".join(f"{name}: {saved['identity'].get(name)!r}, now {mine[name]!r}" for name in different)
            raise Mismatch(f"{self.folder} holds a run with other settings ({told}); use these, or another folder")
        self.lens.load_state_dict(saved["lens"])
        self.optimizer = self._optimizer(saved["sizes"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.tokens_read = saved["step"], saved["tokens_read"]
        Journal(self.folder / "metrics.jsonl").truncate(self.step)  # type: ignore[operator]
        return True

    def save(self) -> None:
        """A checkpoint, and the lens as it is now; nothing without a folder."""
        if self.folder is None:
            return
        assert self.optimizer is not None
        content = {
            "identity": self._identity(),
            "step": self.step,
            "tokens_read": self.tokens_read,
            "lens": self.lens.state_dict(),
            "sizes": self.sizes,
            "optimizer": self.optimizer.state_dict(),
        }
        self._checkpoints.save(self.step, content)
        self.exported().save(self.folder / "lens")

    def exported(self) -> TunedLens:
        """The lens as it is now, with its history, apart from the training."""
        model, config = self.model, self.config
        lens = TunedLens(len(self.lens), self.lens.d_model, config.rank, model.name, self.lens.unembed_hash)
        lens.load_state_dict(self.lens.state_dict())
        lens.metadata = {
            "training": config.model_dump(mode="json"),
            "steps": self.step,
            "tokens_read": self.tokens_read,
            "text_tokens": self.store.tokens,
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "monosem_version": __version__,
        }
        return lens.eval().requires_grad_(False).to(model.device)

    @property
    def _checkpoints(self) -> Checkpoints:
        assert self.folder is not None
        return Checkpoints(self.folder / "checkpoints")

    def _identity(self) -> Record:
        config = self.config.model_dump(mode="json")
        return config | {"model": self.model.name, "text": self.store.fingerprint, "layers": len(self.lens)}

    # ------------------------------------------------------------------ one step
    def advance(self) -> Float[Tensor, "layer"]:
        """One optimiser step; the mean loss of every layer before it, in nats."""
        config, optimizer = self.config, self.optimizer
        assert optimizer is not None
        states, final, following = self._batch()
        losses = torch.zeros(len(states))
        moved = [translator(h) for translator, h in zip(self.lens, states, strict=True)]
        leaves = [h.detach().requires_grad_() for h in moved]
        counted = len(final) if config.loss == "kl" else max(int((following >= 0).sum()), 1)
        vocabulary = self._vocabulary(final)
        for part in chunks(len(final), len(vocabulary)):
            with torch.no_grad():
                model_says = Distribution(vocabulary.logits(final[part], norm=False))
            for layer, leaf in enumerate(leaves):
                lens_says = Distribution(vocabulary.logits(leaf[part]))
                loss = LOSSES[config.loss](lens_says, model_says, following[part]) / counted
                loss.backward()
                losses[layer] += loss.detach().cpu()
            if config.loss == "kl":  # the gradient needs the cross-entropy only; the entropy of p makes it a KL
                losses -= float(model_says.entropy.sum()) / counted
        if not bool(losses.isfinite().all()):
            bad = int((~losses.isfinite()).nonzero()[0])
            raise BadInput(f"the loss of translator {bad} is not finite at step {self.step}; use a smaller lr")
        torch.autograd.backward(moved, [leaf.grad for leaf in leaves])
        for translator in self.lens:
            torch.nn.utils.clip_grad_norm_(translator.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.peak_lr * config.share_at(self.step) * group["size"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return losses

    def _vocabulary(self, final: Float[Tensor, "cell d_model"]) -> Vocabulary:
        """The tokens that this step's loss is over."""
        if self.config.vocab_sample is None:
            return Vocabulary(self.model)
        return Vocabulary.sampled(self.model, final, self.config.vocab_sample, self.config.seed * 1_000_003 + self.step)

    def record(self, losses: Float[Tensor, "layer"]) -> Record:
        """The line of metrics.jsonl for the step that was just made."""
        lr = self.config.peak_lr * self.config.share_at(self.step - 1)
        shown = {"step": self.step, "tokens": self.tokens_read, "lr": lr, "loss": float(losses.mean())}
        line = shown | {"layers": [round(value, 5) for value in losses.tolist()]}
        if self.folder is not None:
            Journal(self.folder / "metrics.jsonl").append(line)
        return line

    def _batch(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Some cells of this step's windows: states a layer, what the unembedding read, and the next tokens."""
        windows = self.schedule.take(self.step * self.config.windows, self.config.windows)
        count = len(windows) * self.store.context
        keep = torch.arange(count)
        if self.config.cells is not None and self.config.cells < count:
            draw = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
            keep = torch.randperm(count, generator=draw)[: self.config.cells].sort().values
        self.tokens_read += count
        parts = list(self._states(windows, keep))
        states = [torch.cat(layer) for layer in zip(*(states for states, _, _ in parts))]
        return states, torch.cat([final for _, final, _ in parts]), torch.cat([ids for _, _, ids in parts])

    def _states(
        self, windows: Tensor, keep: Tensor | None = None, last: str = "final_norm"
    ) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        """States of all layers, the last one, and the next token (-1: none), of some of the windows' tokens."""
        context, size = self.store.context, self.config.windows_at_once
        for start in range(0, len(windows), size):
            ids = self.store[windows[start : start + size].numpy()].to(self.model.device)
            low, high = start * context, (start + len(ids)) * context
            mine = torch.arange(high - low) if keep is None else keep[(keep >= low) & (keep < high)] - low
            if not len(mine):
                continue
            mine = mine.to(ids.device)
            run = self.model.run(ids, capture=[*self.sites, last], logits=False)
            following = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-1).flatten()
            yield [run[site].flatten(0, 1)[mine] for site in self.sites], run[last].flatten(0, 1)[mine], following[mine]

    def _initial(self, quiet: bool, interrupts: Interrupts) -> Iterator[tuple[list[Tensor], Tensor]]:
        """States of all layers and the last one, for the regression."""
        count = max(1, min(self.config.init_tokens // self.store.context, len(self.store)))
        windows, size = self.schedule.take(0, count), self.config.windows_at_once
        with Meter("least squares", count * self.store.context, "tok", quiet) as meter:
            for start in range(0, count, size):
                for states, final, _ in self._states(
                    windows[start : start + size], last=f"resid_post.{len(self.lens) - 1}"
                ):
                    yield states, final
                meter.advance(min(size, count - start) * self.store.context)
                if interrupts.asked:
                    raise Interrupted("stopped before the first step; nothing was trained yet")

    # ------------------------------------------------------------------ the optimiser
    def _sizes(self) -> list[float]:
        """Median root mean square of the states of each layer, and of the last one."""
        count = min(self.config.windows_at_once, len(self.store))
        windows = self.schedule.take(0, count)
        states, final, _ = next(self._states(windows, last=f"resid_post.{len(self.lens) - 1}"))
        return [float(h.float().square().mean(-1).sqrt().median()) for h in (*states, final)]

    def _optimizer(self, sizes: list[float]) -> torch.optim.Optimizer:
        """One group a parameter. Adam's step does not know the scale of what it changes, so it is told: A maps states
        of a layer's size to changes of the last one's size."""
        self.sizes = sizes
        adam = self.config.optimizer == "adam"
        *own, last = sizes
        scale = {"bias": lambda h: last, "A": lambda h: last / h, "down": lambda h: (last / h) ** 0.5}
        scale["up"] = scale["down"]
        groups = [
            {"params": [parameter], "size": scale[name](h) if adam else 1.0}
            for translator, h in zip(self.lens, own, strict=True)
            for name, parameter in translator.named_parameters()
        ]
        if adam:
            # decoupled decay multiplies by lr * decay, and lr holds the size: divide it out
            for group in groups:
                group["weight_decay"] = self.config.weight_decay / group["size"]  # type: ignore[operator]
            return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))
        config = self.config
        return torch.optim.SGD(
            groups, lr=0.0, momentum=config.momentum, nesterov=config.momentum > 0, weight_decay=config.weight_decay
        )


def _kl(lens: Distribution, model: Distribution, following: Tensor) -> Tensor:
    """Σ cells H(p, q); KL but for the entropy of p, which has no gradient."""
    return -(model.probability * lens.log).sum()


def _ce(lens: Distribution, model: Distribution, following: Tensor) -> Tensor:
    """Σ cells -log q(next token)."""
    found = lens.log.gather(-1, following.clamp_min(0)[:, None])[:, 0]
    return -torch.where(following >= 0, found, 0.0).sum()


LOSSES: dict[str, Callable[[Distribution, Distribution, Tensor], Tensor]] = {"kl": _kl, "ce": _ce}
