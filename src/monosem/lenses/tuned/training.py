"""Training a tuned lens: gradient descent on what the lens lacks of the model's own prediction.

The recipe of Belrose et al. (arXiv 2303.08112, and their code), with these differences. Adam is warmed up (their test
for it compares an enum with a string and never holds). Gradients are clipped layer by layer, where a joint norm lets a
bad layer slow all others down. Text that is too short is an error at the start, not a training that silently ends. On
request the translators start from least squares, and only some of the cells of a batch are read out, for the
unembedding is what a step costs.
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ... import __version__
from ...data import TextSource, TokenStore, as_store
from ...errors import BadInput
from ...jobs import Checkpoints, Interrupted, Interrupts, Journal, claim
from ...models import Model
from ...models.turns import refuse_inference_mode
from ...progress import Meter
from ..corpus import traits
from ..measures import Distribution
from ..states import chunks
from .batches import Batches
from .config import TuneConfig
from .files import TunedHeader
from .optimizer import optimizer_of
from .starts import least_squares
from .translators import Translators
from .vocabulary import Vocabulary

Record = dict[str, Any]
Keep = Callable[[TunedHeader, Translators, Path], None]


def train(
    model: Model,
    texts: TextSource,
    config: TuneConfig,
    folder: str | os.PathLike[str] | None,
    *,
    keep: Keep,
    quiet: bool = False,
    on_step: Callable[[Record], None] | None = None,
) -> tuple[TunedHeader, Translators]:
    """See `TunedLens.fit`. `keep` writes the lens so far into a folder."""
    refuse_inference_mode("TunedLens.fit")
    store = as_store(model, texts, config.context)
    training = Training(model, store, config, folder, keep)
    made_with = traits(model) | {"text": store.fingerprint, "layers": model.cfg.n_layers}
    claimed = claim(folder, config, work="checkpoints/*.pt", made_with=made_with) if folder else nullcontext()
    with claimed, Interrupts() as interrupts:
        if not training.resume():
            training.begin(quiet, interrupts)
        total, done = config.steps * config.batch_tokens, training.step * config.batch_tokens
        with Meter(f"tune lens of {model.name}", total, "tok", quiet, start=done) as meter:
            saved = time.monotonic()
            while training.step < config.steps:
                losses = training.advance()
                meter.advance(config.batch_tokens, loss=float(losses.mean()))
                last = training.step == config.steps
                if last or training.step % config.log_every == 0:
                    record = training.record(losses)
                    if on_step:
                        on_step(record)
                if last or interrupts.asked or time.monotonic() - saved > config.checkpoint_seconds:
                    training.save()
                    saved = time.monotonic()
                if interrupts.asked and not last:
                    kept = f"saved in {folder}" if folder else "nothing was saved, because no folder was given"
                    raise Interrupted(f"stopped after step {training.step}; {kept}")
    return training.exported()


class Training:
    """Translators, their optimiser, and the place in the text.

    Raises:
        BadInput: too little text, windows of another length than the config's, a sampled vocabulary with another loss
            than KL.
    """

    def __init__(
        self,
        model: Model,
        store: TokenStore,
        config: TuneConfig,
        folder: str | os.PathLike[str] | None,
        keep: Keep,
    ):
        if config.vocab_sample is not None and config.loss != "kl":
            raise BadInput("vocab_sample works with loss='kl' only: the text's next token may not be in the sample")
        self.model, self.config, self.keep, self.step = model, config, keep, 0
        self.translators = Translators(model.cfg.n_layers, model.cfg.d_model, config.rank).to(model.device)
        self.header = TunedHeader.of(model, config.rank)
        self.batches = Batches(model, store, config)
        self.folder = None if folder is None else Path(folder)
        self.tokens_read = 0

    # ------------------------------------------------------------------ begin, resume, save
    def begin(self, quiet: bool, interrupts: Interrupts) -> None:
        """Translators and optimiser of a new run. Raises `Interrupted`."""
        draw = torch.Generator().manual_seed(self.config.seed)
        for translator in self.translators:
            if translator.rank:
                start = torch.randn(translator.down.shape, generator=draw) / self.translators.d_model**0.5
                translator.down.data.copy_(start)
        if self.config.init == "regression":
            starts = least_squares(self.batches.first(quiet, interrupts), len(self.translators), self.config.rank)
            for translator, (matrix, bias) in zip(self.translators, starts, strict=True):
                translator.begin_at(matrix, bias)
        self.sizes = self.batches.sizes()
        self.optimizer = optimizer_of(self.translators, self.config, self.sizes)

    def resume(self) -> bool:
        """Take up the run in the folder, if there is one."""
        if self.folder is None or (saved := self._checkpoints.newest()) is None:
            return False
        self.translators.load_state_dict(saved["translators"])
        self.sizes = saved["sizes"]
        self.optimizer = optimizer_of(self.translators, self.config, self.sizes)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.tokens_read = saved["step"], saved["tokens_read"]
        Journal(self.folder / "metrics.jsonl").truncate(self.step)
        return True

    def save(self) -> None:
        """A checkpoint, and the lens as it is now; nothing without a folder."""
        if self.folder is None:
            return
        content = {
            "step": self.step,
            "tokens_read": self.tokens_read,
            "translators": self.translators.state_dict(),
            "sizes": self.sizes,
            "optimizer": self.optimizer.state_dict(),
        }
        self._checkpoints.save(self.step, content)
        self.keep(*self.exported(), self.folder / "lens")

    def exported(self) -> tuple[TunedHeader, Translators]:
        """The lens as it is now, with its history, apart from the training."""
        model, config = self.model, self.config
        translators = Translators(model.cfg.n_layers, model.cfg.d_model, config.rank)
        translators.load_state_dict(self.translators.state_dict())
        metadata = {
            "training": config.model_dump(mode="json"),
            "steps": self.step,
            "tokens_read": self.tokens_read,
            "text_tokens": self.batches.store.tokens,
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "monosem_version": __version__,
        }
        return replace(self.header, metadata=metadata), translators.eval().requires_grad_(False).to(model.device)

    @property
    def _checkpoints(self) -> Checkpoints:
        assert self.folder is not None
        return Checkpoints(self.folder / "checkpoints")

    # ------------------------------------------------------------------ one step
    def advance(self) -> Float[Tensor, "layer"]:
        """One optimiser step; the mean loss of every layer before it, in nats."""
        config = self.config
        states, final, following = self.batches.take(self.step)
        self.tokens_read += config.windows * self.batches.store.context
        moved = [translator(h) for translator, h in zip(self.translators, states, strict=True)]
        leaves = [h.detach().requires_grad_() for h in moved]
        losses = self._losses(leaves, final, following)
        if not bool(losses.isfinite().all()):
            bad = int((~losses.isfinite()).nonzero()[0])
            raise BadInput(f"the loss of translator {bad} is not finite at step {self.step}; use a smaller lr")
        torch.autograd.backward(moved, [leaf.grad for leaf in leaves])
        for translator in self.translators:
            torch.nn.utils.clip_grad_norm_(translator.parameters(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = config.peak_lr * config.share_at(self.step) * group["size"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return losses

    def _losses(self, leaves: list[Tensor], final: Tensor, following: Tensor) -> Float[Tensor, "layer"]:
        """The mean loss of every layer; its gradient goes to the leaves, what the translators gave."""
        config = self.config
        losses = torch.zeros(len(leaves))
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
        return losses

    def _vocabulary(self, final: Float[Tensor, "cell d_model"]) -> Vocabulary:
        """The tokens that this step's loss is over."""
        if self.config.vocab_sample is None:
            return Vocabulary(self.model)
        return Vocabulary.sampled(self.model, final, self.config.vocab_sample, self.config.seed_at(self.step))

    def record(self, losses: Float[Tensor, "layer"]) -> Record:
        """The line of metrics.jsonl for the step that was just made."""
        lr = self.config.peak_lr * self.config.share_at(self.step - 1)
        logged = {"step": self.step, "tokens": self.tokens_read, "lr": lr, "loss": float(losses.mean())}
        line = logged | {"layers": [round(value, 5) for value in losses.tolist()]}
        if self.folder is not None:
            Journal(self.folder / "metrics.jsonl").append(line)
        return line


def _kl(lens: Distribution, model: Distribution, following: Tensor) -> Tensor:
    """Σ cells H(p, q); KL but for the entropy of p, which has no gradient."""
    return -(model.probability * lens.log).sum()


def _ce(lens: Distribution, model: Distribution, following: Tensor) -> Tensor:
    """Σ cells -log q(next token)."""
    values = lens.log.gather(-1, following.clamp_min(0)[:, None])[:, 0]
    return -torch.where(following >= 0, values, 0.0).sum()


LOSSES: dict[str, Callable[[Distribution, Distribution, Tensor], Tensor]] = {"kl": _kl, "ce": _ce}
