"""Everything that a dictionary in training carries from step to step, so that it can stop and go on as if nothing
happened."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import BadInput
from .config import TrainConfig
from .form import TrainingForm
from .kinds import KINDS
from .starts import STARTS, started_form

DEAD_EVERY = 10  # steps between looks at which latents are dead: the one place that would make a GPU wait each step
RECENT_BATCHES, RECENT_ROWS = 8, 1024  # what is kept of the stream for the measures at the end: batches, rows of each

Batch = Tensor | tuple[Tensor, Tensor]  # [batch, d] of one site; of a transcoder [batch, d_in] and [batch, d_out]
_PLAIN = ("scale", "scale_out", "variance", "limit", "limit_out", "step", "pending", "recent")
_TENSORS = ("silent", "dead", "outliers")


def sides(batch: Batch) -> tuple[Tensor, ...]:
    """What is read and, where that is another activation, what is rebuilt."""
    return batch if isinstance(batch, tuple) else (batch,)


@dataclass
class TrainingState:
    form: TrainingForm
    optimizer: torch.optim.Adam
    scale: float  # the form reads x · scale
    scale_out: float  # and rebuilds y · scale_out
    variance: float  # mean squared distance of y · scale_out from its mean, over the calibration batches
    limit: float  # norm of x · scale above which a row is an outlier, which nothing is learned from
    limit_out: float  # the same of y · scale_out
    silent: Int[Tensor, "width"]  # tokens since each latent fired
    dead: Int[Tensor, "n"]  # latents in the auxiliary loss
    outliers: Int[Tensor, ""]  # rows that were left out so far
    step: int = 0  # steps done
    pending: list[Batch] = field(default_factory=list)  # calibration batches not yet trained on
    recent: list[Batch] = field(default_factory=list)  # rows of the last batches, as the form reads

    @classmethod
    def begin(cls, config: TrainConfig, batches: list[Batch], device: torch.device) -> "TrainingState":
        """Scale, b_dec and first weights from the first batches, which stay to be trained on. Outliers among them,
        such as a token of norm 15,000 among others of 180, decide nothing.

        Raises:
            BadInput: the batches are all zero or not finite.
        """
        both = [torch.cat(part).to(device, torch.float32) for part in zip(*map(sides, batches))]
        norms = [_norms(x) for x in both]
        if not all(bool(norm.isfinite().all()) and bool(norm.any()) for norm in norms):
            raise BadInput(f"cannot train: the first {len(batches)} batches hold only zeros, or NaN or infinity")
        limits = [torch.inf if config.outlier is None else config.outlier * float(n[n > 0].median()) for n in norms]
        for norm, limit in zip(norms, limits):
            _say_outliers(norm, limit)
        kept = torch.stack([norm <= limit for norm, limit in zip(norms, limits)]).all(0)
        targets = [1.0 if config.mean_square == "one" else float(x.shape[1]) for x in both]
        scales = [(target / float(norm[kept].square().mean())) ** 0.5 for target, norm in zip(targets, norms)]
        both = [x[kept] * scale for x, scale in zip(both, scales)]
        y = both[-1]
        variance = float((y - y.mean(0)).square().sum(1).mean())
        if variance <= 1e-9 * targets[-1]:
            raise BadInput("cannot train: the activations of the first batches are all the same")
        form = started_form(config, [STARTS[config.b_dec](x) for x in both], scales, both)
        limits = [limit * scale for limit, scale in zip(limits, scales)]
        return cls(
            form=form,
            optimizer=_optimizer(form, config),
            scale=scales[0],
            scale_out=scales[-1],
            variance=variance,
            limit=limits[0],
            limit_out=limits[-1],
            silent=torch.zeros(config.width, dtype=torch.long, device=device),
            dead=torch.zeros(0, dtype=torch.long, device=device),
            outliers=torch.zeros((), dtype=torch.long, device=device),
            pending=list(batches),
        )

    @classmethod
    def restore(cls, config: TrainConfig, saved: dict[str, Any], device: torch.device) -> "TrainingState":
        """From what `state_dict` gave."""
        weights = saved["form"]
        b_in, own = weights.get("b_in"), KINDS[config.kind].own_parameters(config)
        b_in = None if b_in is None else b_in.to(device)
        form = TrainingForm(
            config.width, weights["b_dec"].to(device), config.seed, b_in=b_in, skip=config.skip_connection, own=own
        )
        form.load_state_dict(weights)
        optimizer = _optimizer(form, config)
        optimizer.load_state_dict(saved["optimizer"])
        tensors = {name: saved[name].to(device) for name in _TENSORS}
        state = cls(form=form, optimizer=optimizer, **tensors, **{name: saved[name] for name in _PLAIN})
        state.recent = [_each(batch, lambda x: x.to(device)) for batch in state.recent]
        return state

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only. There is no random state: after the first weights nothing here is random."""
        return {
            "form": self.form.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in (*_PLAIN, *_TENSORS)},
        }

    @torch.no_grad()
    def scaled(
        self, batch: Batch, device: torch.device
    ) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_out"]]:
        """A raw batch as the form reads it, and what it has to rebuild; one tensor twice for an SAE. Outliers become
        the centre and b_dec, which have nothing to explain. Some rows are kept, on the device, with NaN for outliers.
        Waits for no GPU."""
        raw = [x.to(device, torch.float32, non_blocking=True) for x in sides(batch)]
        both = [x * scale for x, scale in zip(raw, (self.scale, self.scale_out))]
        wild = _wild(both[0], self.limit)
        if len(both) == 2:
            wild = wild | _wild(both[1], self.limit_out)
        self.outliers += wild.sum()
        wild, stride = wild[:, None], -(-len(wild) // RECENT_ROWS)
        rows = tuple(torch.where(wild, torch.nan, x)[::stride].clone() for x in both)
        self.recent = [*self.recent[1 - RECENT_BATCHES :], rows[0] if len(rows) == 1 else (rows[0], rows[1])]
        x = torch.where(wild, self.form.centre, both[0])
        return (x, x) if len(both) == 1 else (x, torch.where(wild, self.form.b_dec, both[1]))

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


def _each(batch: Batch, change: Any) -> Batch:
    return (change(batch[0]), change(batch[1])) if isinstance(batch, tuple) else change(batch)


def _wild(x: Float[Tensor, "batch d"], limit: float) -> Bool[Tensor, "batch"]:
    norms = _norms(x)
    return (norms > limit) & norms.isfinite()  # what is not finite is no outlier but an error, found later


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
