"""The recipe of a tuned lens."""

from typing import ClassVar, Literal

from pydantic import Field

from ...jobs import JobConfig
from ...jobs.config import Seed


class TuneConfig(JobConfig):
    """A training run of a tuned lens; the defaults are the paper's, 65 million tokens."""

    job: ClassVar[str] = "tuned lens"
    not_decisive: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds", "log_every"})

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
    warmup_steps: int | None = Field(default=None, ge=0, description="None: 0 for sgd, a tenth of the steps for adam")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm of a layer")
    init: Literal["zero", "regression"] = Field(
        default="zero", description="zero: the logit lens; regression: least squares"
    )
    init_tokens: int = Field(default=65_536, gt=0, description="tokens for the regression")
    repeat: bool = Field(default=False, description="read the text again and again if it is too short")
    seed: Seed = Field(default=0, description="of the order of the windows and of the cells")
    windows_at_once: int = Field(default=8, gt=0, description="windows a forward pass")
    checkpoint_seconds: float = Field(default=300.0, gt=0, description="seconds between checkpoints")
    log_every: int = Field(default=10, gt=0, description="steps between lines of metrics.jsonl")

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

    def seed_at(self, step: int) -> int:
        """Of what a 0-based step draws."""
        return self.seed * 1_000_003 + step

    @property
    def windows(self) -> int:
        """Windows a step."""
        return max(1, self.batch_tokens // self.context)
