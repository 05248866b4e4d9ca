"""Everything that a training run carries from step to step, so that it can stop and go on as if nothing happened."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput
from .config import TrainConfig
from .form import TrainingForm

THRESHOLD_RATE = 0.01  # of the moving average of the smallest active code: about the last hundred batches
MEDIAN_SAMPLES = 16_384
DEAD_EVERY = 10  # steps between looks at which latents are dead: the one place that would make a GPU wait each step


@dataclass
class TrainingState:
    form: TrainingForm
    optimizer: torch.optim.Adam
    scale: float  # the form reads x · scale
    variance: float  # mean squared distance of x · scale from its mean, over the calibration batches
    threshold: Float[Tensor, ""]  # in the form's units; infinity before the first code
    silent: Int[Tensor, "width"]  # tokens since each latent fired
    dead: Int[Tensor, "n"]  # latents in the auxiliary loss
    step: int = 0  # steps done
    pending: list[Float[Tensor, "batch d"]] = field(default_factory=list)  # calibration batches not yet trained on

    @classmethod
    def begin(
        cls, config: TrainConfig, batches: list[Float[Tensor, "batch d"]], device: torch.device
    ) -> "TrainingState":
        """Scale, b_dec and first weights from the first batches, which stay to be trained on.

        Raises:
            BadInput: the batches are all zero or not finite.
        """
        x = torch.cat(batches).to(device, torch.float32)
        mean_square = float(x.double().square().sum(1).mean())
        if not 0 < mean_square < float("inf"):
            raise BadInput(f"cannot train: the first {len(batches)} batches hold only zeros, or NaN or infinity")
        target = 1.0 if config.mean_square == "one" else float(x.shape[1])
        scale = (target / mean_square) ** 0.5
        x = x * scale
        variance = float((x - x.mean(0)).square().sum(1).mean())
        if variance <= 1e-9 * target:
            raise BadInput("cannot train: the activations of the first batches are all the same")
        form = TrainingForm(config.width, _STARTS[config.b_dec](x), config.seed)
        return cls(
            form=form,
            optimizer=_optimizer(form, config),
            scale=scale,
            variance=variance,
            threshold=torch.tensor(torch.inf, device=device),
            silent=torch.zeros(config.width, dtype=torch.long, device=device),
            dead=torch.zeros(0, dtype=torch.long, device=device),
            pending=list(batches),
        )

    @classmethod
    def restore(cls, config: TrainConfig, saved: dict[str, Any], device: torch.device) -> "TrainingState":
        """From what `state_dict` gave."""
        form = TrainingForm(config.width, saved["form"]["b_dec"].to(device), config.seed)
        form.load_state_dict(saved["form"])
        optimizer = _optimizer(form, config)
        optimizer.load_state_dict(saved["optimizer"])
        tensors = {name: saved[name].to(device) for name in ("threshold", "silent", "dead")}
        plain = {name: saved[name] for name in ("scale", "variance", "step", "pending")}
        return cls(form=form, optimizer=optimizer, **tensors, **plain)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only. There is no random state: after the first weights nothing here is random."""
        plain = ("scale", "variance", "threshold", "silent", "dead", "step", "pending")
        return {
            "form": self.form.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in plain},
        }

    @torch.no_grad()
    def note(self, fired: Tensor, floor: Tensor, tokens: int) -> None:
        """Count silence and follow the threshold, on the device."""
        self.silent = torch.where(fired, 0, self.silent + tokens)
        seen = torch.where(torch.isinf(self.threshold), floor, self.threshold)
        moved = seen + THRESHOLD_RATE * (floor - seen)
        self.threshold = torch.where(torch.isinf(floor), self.threshold, moved)

    def find_dead(self, after: int) -> None:
        """Look up which latents have been silent for `after` tokens; every `DEAD_EVERY` steps."""
        if self.step % DEAD_EVERY == 0:
            self.dead = (self.silent >= after).nonzero().flatten()


def _optimizer(form: TrainingForm, config: TrainConfig) -> torch.optim.Adam:
    return torch.optim.Adam(form.parameters(), lr=config.peak_lr, betas=config.betas, fused=True)


@torch.no_grad()
def geometric_median(x: Float[Tensor, "n d"], tolerance: float = 1e-5, most: int = 100) -> Float[Tensor, "d"]:
    """The point with the least summed distance to all rows, by Weiszfeld's iteration (Weiszfeld 1937).

    On at most `MEDIAN_SAMPLES` rows, evenly taken.
    """
    x = x[:: max(len(x) // MEDIAN_SAMPLES, 1)]
    point = x.mean(0)
    size = float(x.square().sum(1).mean()) ** 0.5
    for _ in range(most):
        weights = 1 / torch.linalg.vector_norm(x - point, dim=1).clamp(min=1e-8 * size)
        moved = (weights / weights.sum()) @ x
        distance = float(torch.linalg.vector_norm(moved - point))
        point = moved
        if distance < tolerance * size:
            break
    return point


_STARTS = {"median": geometric_median, "mean": lambda x: x.mean(0), "zero": lambda x: torch.zeros_like(x[0])}
