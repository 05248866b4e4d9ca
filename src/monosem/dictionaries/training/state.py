"""Everything that a dictionary in training carries from step to step, so that it can stop and go on as if nothing
happened."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import BadInput
from .architectures import ARCHITECTURES
from .config import TrainConfig
from .form import Form
from .starts import STARTS

DEAD_EVERY = 10  # steps between looks at which latents are dead: the one place that would make a GPU wait each step
RECENT_BATCHES, RECENT_ROWS = 8, 1024  # what is kept of the stream for the measures at the end: batches, rows of each

Batch = Tensor | tuple[Tensor, ...]  # [batch, d] of one site, or of each of several (`DictionarySettings.sites`)
_PLAIN = ("widths", "scales", "variance", "limits", "step", "pending", "recent", "tokens")
_TENSORS = ("silent", "outliers")


def sides(batch: Batch) -> tuple[Tensor, ...]:
    """The rows of each site."""
    return batch if isinstance(batch, tuple) else (batch,)


class Scaled(NamedTuple):
    """A batch as the form reads it, what it has to rebuild (one tensor twice where that is the same), and outliers."""

    x: Float[Tensor, "batch d_in"]
    y: Float[Tensor, "batch d_out"]
    wild: Bool[Tensor, "batch 1"]


@dataclass
class TrainingState:
    form: Form
    optimizer: torch.optim.Adam
    reads: int  # number of sites that are read; further ones are rebuilt, where there are any
    widths: list[int]  # of each site
    scales: list[float]  # of each site: the form reads x · scale, and rebuilds it
    variance: float  # mean squared distance of what is rebuilt, scaled, from its mean, over the calibration batches
    limits: list[float]  # of each site: scaled norm above which a row is an outlier, which nothing is learned from
    silent: Int[Tensor, "latents"]  # tokens since each latent fired, layer by layer
    outliers: Int[Tensor, ""]  # rows that were left out so far
    dead: list[Int[Tensor, "n"]] = field(default_factory=list)  # of each layer: latents in the auxiliary loss
    step: int = 0  # steps done
    pending: list[Batch] = field(default_factory=list)  # calibration batches not yet trained on
    recent: list[Batch] = field(default_factory=list)  # rows of the last batches, as the form reads
    tokens: Int[Tensor, "windows context"] | None = None  # the last batch, end to end

    @classmethod
    def begin(cls, config: TrainConfig, batches: list[Batch], device: torch.device) -> "TrainingState":
        """Scale, b_dec and first weights from the first batches, which stay to be trained on. Outliers among them,
        such as a token of norm 15,000 among others of 180, decide nothing.

        Raises:
            BadInput: the batches are all zero or not finite.
        """
        rows = [torch.cat(part).to(device, torch.float32) for part in zip(*map(sides, batches))]
        norms = [_norms(x) for x in rows]
        if not all(bool(norm.isfinite().all()) and bool(norm.any()) for norm in norms):
            raise BadInput(f"cannot train: the first {len(batches)} batches hold only zeros, or NaN or infinity")
        limits = [torch.inf if config.outlier is None else config.outlier * float(n[n > 0].median()) for n in norms]
        for norm, limit in zip(norms, limits):
            _say_outliers(norm, limit)
        kept = torch.stack([norm <= limit for norm, limit in zip(norms, limits)]).all(0)
        targets = [1.0 if config.mean_square == "one" else float(x.shape[1]) for x in rows]
        scales = [(target / float(norm[kept].square().mean())) ** 0.5 for target, norm in zip(targets, norms)]
        rows = [x[kept] * scale for x, scale in zip(rows, scales)]
        variances = [float((y - y.mean(0)).square().sum(1).mean()) for y in rows[-len(config.writes) :]]
        if min(variances) <= 1e-9 * targets[-1]:
            raise BadInput("cannot train: the activations of the first batches are all the same")
        centres = [STARTS[config.b_dec](x) for x in rows]
        form = ARCHITECTURES[config.architecture].started(config, centres, scales, rows)
        latents = sum(layer.form.width for layer in form.layers)
        return cls(
            form=form,
            optimizer=_optimizer(form, config),
            reads=len(config.reads),
            widths=[x.shape[1] for x in rows],
            scales=scales,
            variance=sum(variances),
            limits=[limit * scale for limit, scale in zip(limits, scales)],
            silent=torch.zeros(latents, dtype=torch.long, device=device),
            outliers=torch.zeros((), dtype=torch.long, device=device),
            pending=list(batches),
        )

    @classmethod
    def restore(cls, config: TrainConfig, saved: dict[str, Any], device: torch.device) -> "TrainingState":
        """From what `state_dict` gave."""
        centres = [torch.zeros(width, device=device) for width in saved["widths"]]
        form = ARCHITECTURES[config.architecture].form(config, centres)
        form.load_state_dict(saved["form"])
        optimizer = _optimizer(form, config)
        optimizer.load_state_dict(saved["optimizer"])
        tensors = {name: saved[name].to(device) for name in _TENSORS}
        plain = {name: saved[name] for name in _PLAIN}
        state = cls(form=form, optimizer=optimizer, reads=len(config.reads), **tensors, **plain)
        state.recent = [tuple(x.to(device) for x in batch) for batch in state.recent]
        state.dead = [some.to(device) for some in saved["dead"]]
        return state

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only. There is no random state: after the first weights nothing here is random."""
        return {
            "form": self.form.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in (*_PLAIN, *_TENSORS, "dead")},
        }

    def split(self, rows: Sequence[Float[Tensor, "n d"]]) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """What is read and what is rebuilt, of the rows of all sites; one tensor twice where these are the same."""
        x = _side_by_side(rows[: self.reads])
        return (x, x) if len(rows) == self.reads else (x, _side_by_side(rows[self.reads :]))

    @torch.no_grad()
    def scaled(self, batch: Batch, device: torch.device) -> Scaled:
        """Of a raw batch. Outliers become the centre and b_dec, which have nothing to explain. Some rows are kept, on
        the device, with NaN for outliers. Waits for no GPU."""
        raw = [x.to(device, torch.float32, non_blocking=True) for x in sides(batch)]
        rows = [x * scale for x, scale in zip(raw, self.scales)]
        wild = _wild(rows[0], self.limits[0])
        for x, limit in zip(rows[1:], self.limits[1:]):
            wild = wild | _wild(x, limit)
        self.outliers += wild.sum()
        wild, stride = wild[:, None], -(-len(wild) // RECENT_ROWS)
        some = tuple(torch.where(wild[::stride], torch.nan, x[::stride]) for x in rows)
        self.recent = [*self.recent[1 - RECENT_BATCHES :], some]
        read, rebuilt = self.split(rows)
        x = torch.where(wild, self.form.centre, read)
        return Scaled(x, x if rebuilt is read else torch.where(wild, self.form.b_dec, rebuilt), wild)

    @property
    def unit(self) -> float:
        """Root of the variance of what a layer rebuilds, in the mean over layers: the unit of codes in penalties."""
        return float((self.variance / len(self.form.layers)) ** 0.5)

    @torch.no_grad()
    def note(self, x: Float[Tensor, "batch d"], fired: Bool[Tensor, "width"]) -> None:
        """Count the silence of a batch that was trained on."""
        self.silent = torch.where(fired, 0, self.silent + len(x))

    def find_dead(self, after: int) -> None:
        """Look up which latents have been silent for `after` tokens; every `DEAD_EVERY` steps."""
        if self.step % DEAD_EVERY == 0:
            by_layer = (self.silent >= after).view(len(self.form.layers), -1)
            self.dead = [layer.nonzero().flatten() for layer in by_layer]

    def dead_share(self, config: TrainConfig) -> float | None:
        """The share of latents silent for `config.dead_after` tokens; None while so many were not yet seen."""
        if self.step * config.batch_tokens < config.dead_after:
            return None
        return float((self.silent >= config.dead_after).double().mean())


def _side_by_side(rows: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "n d_of_all"]:
    return rows[0] if len(rows) == 1 else torch.cat([*rows], 1)


def _wild(x: Float[Tensor, "batch d"], limit: float) -> Bool[Tensor, "batch"]:
    """Rows of a norm above the limit. What is not finite is no outlier but an error, found later. A wild value's square
    may be infinity, which is above the limit, too."""
    return (torch.linalg.vector_norm(x, dim=1) > limit) & x.abs().amax(1).isfinite()


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


def _optimizer(form: Form, config: TrainConfig) -> torch.optim.Adam:
    learned = [parameter for parameter in form.parameters() if parameter.requires_grad]
    return torch.optim.Adam(learned, lr=config.peak_lr, betas=config.betas, fused=True)
