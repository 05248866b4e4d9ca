"""Everything that a training run carries from step to step, so that it can stop and go on as if nothing happened."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import BadInput
from .config import TrainConfig
from .form import TrainingForm
from .starts import STARTS, started_form

DEAD_EVERY = 10  # steps between looks at which latents are dead: the one place that would make a GPU wait each step
RECENT_BATCHES, RECENT_ROWS = 8, 1024  # what is kept of the stream for the measures at the end: batches, rows of each


@dataclass
class TrainingState:
    form: TrainingForm
    optimizer: torch.optim.Adam
    scale: float  # the form reads x · scale
    variance: float  # mean squared distance of x · scale from its mean, over the calibration batches
    limit: float  # norm of x · scale above which a row is an outlier, which nothing is learned from
    silent: Int[Tensor, "width"]  # tokens since each latent fired
    dead: Int[Tensor, "n"]  # latents in the auxiliary loss
    outliers: Int[Tensor, ""]  # rows that were left out so far
    step: int = 0  # steps done
    pending: list[Float[Tensor, "batch d"]] = field(default_factory=list)  # calibration batches not yet trained on
    recent: list[Float[Tensor, "rows d"]] = field(default_factory=list)  # rows of the last batches, as the form reads

    @classmethod
    def begin(
        cls, config: TrainConfig, batches: list[Float[Tensor, "batch d"]], device: torch.device
    ) -> "TrainingState":
        """Scale, b_dec and first weights from the first batches, which stay to be trained on. Outliers among them,
        such as a token of norm 15,000 among others of 180, decide nothing.

        Raises:
            BadInput: the batches are all zero or not finite.
        """
        x = torch.cat(batches).to(device, torch.float32)
        norms = _norms(x)
        if not bool(norms.isfinite().all()) or not bool(norms.any()):
            raise BadInput(f"cannot train: the first {len(batches)} batches hold only zeros, or NaN or infinity")
        limit = torch.inf if config.outlier is None else config.outlier * float(norms[norms > 0].median())
        _say_outliers(norms, limit)
        x, norms = x[norms <= limit], norms[norms <= limit]
        target = 1.0 if config.mean_square == "one" else float(x.shape[1])
        scale = (target / float(norms.square().mean())) ** 0.5
        x = x * scale
        variance = float((x - x.mean(0)).square().sum(1).mean())
        if variance <= 1e-9 * target:
            raise BadInput("cannot train: the activations of the first batches are all the same")
        form = started_form(config, STARTS[config.b_dec](x), scale)
        return cls(
            form=form,
            optimizer=_optimizer(form, config),
            scale=scale,
            variance=variance,
            limit=limit * scale,
            silent=torch.zeros(config.width, dtype=torch.long, device=device),
            dead=torch.zeros(0, dtype=torch.long, device=device),
            outliers=torch.zeros((), dtype=torch.long, device=device),
            pending=list(batches),
        )

    @classmethod
    def restore(cls, config: TrainConfig, saved: dict[str, Any], device: torch.device) -> "TrainingState":
        """From what `state_dict` gave."""
        form = TrainingForm(config.width, saved["form"]["b_dec"].to(device), config.seed)
        form.load_state_dict(saved["form"])
        optimizer = _optimizer(form, config)
        optimizer.load_state_dict(saved["optimizer"])
        tensors = {name: saved[name].to(device) for name in ("silent", "dead", "outliers")}
        plain = {name: saved[name] for name in ("scale", "variance", "limit", "step", "pending")}
        return cls(form=form, optimizer=optimizer, recent=[x.to(device) for x in saved["recent"]], **tensors, **plain)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only. There is no random state: after the first weights nothing here is random."""
        plain = ("scale", "variance", "limit", "silent", "dead", "outliers", "step", "pending", "recent")
        return {
            "form": self.form.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in plain},
        }

    @torch.no_grad()
    def scaled(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """A raw batch as the form reads it; outliers become b_dec, which has nothing to explain. Some rows are kept, on
        the device, with NaN for outliers. Waits for no GPU."""
        x = x * self.scale
        wild = self._wild(x)[:, None]
        self.outliers += wild.sum()
        stride = -(-len(x) // RECENT_ROWS)
        self.recent = [*self.recent[1 - RECENT_BATCHES :], torch.where(wild, torch.nan, x)[::stride].clone()]
        return torch.where(wild, self.form.b_dec, x)

    @torch.no_grad()
    def note(self, x: Float[Tensor, "batch d"], fired: Bool[Tensor, "width"]) -> None:
        """Count the silence of a batch that was trained on."""
        self.silent = torch.where(fired, 0, self.silent + len(x))

    def find_dead(self, after: int) -> None:
        """Look up which latents have been silent for `after` tokens; every `DEAD_EVERY` steps."""
        if self.step % DEAD_EVERY == 0:
            self.dead = (self.silent >= after).nonzero().flatten()

    def dead_share(self, config: TrainConfig) -> float | None:
        """The share of latents silent for `config.dead_after` tokens; None while so many were not yet seen."""
        if self.step * config.batch_tokens < config.dead_after:
            return None
        return float((self.silent >= config.dead_after).double().mean())

    def _wild(self, x: Float[Tensor, "batch d"]) -> Bool[Tensor, "batch"]:
        norms = _norms(x)
        return (norms > self.limit) & norms.isfinite()  # what is not finite is no outlier but an error, found later


def _norms(x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """In float64: a wild value's square is no infinity there."""
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)


def _say_outliers(norms: Float[Tensor, "n"], limit: float) -> None:
    wild = norms[norms > limit]
    if len(wild):
        warnings.warn(
            f"{len(wild):,} of the first {len(norms):,} activations are outliers, of norm up to "
            f"{float(wild.max()):.3g} where the median is {float(norms.median()):.3g}; such rows are left out, and "
            "counted (outlier: in the config)",
            stacklevel=4,
        )


def _optimizer(form: TrainingForm, config: TrainConfig) -> torch.optim.Adam:
    return torch.optim.Adam(form.parameters(), lr=config.peak_lr, betas=config.betas, fused=True)
