"""The average Jacobian of the last stream by the streams before it: the sums behind a Jacobian lens, as a job."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from ..jobs import Checkpoints, Interrupted, Interrupts, JobConfig, claim
from ..jobs.config import Seed
from ..models import Model, TokenBatch
from ..progress import Meter
from .corpus import traits


class JacobianConfig(JobConfig):
    """The settings of a fit; see `JacobianLens.fit`."""

    job: ClassVar[str] = "Jacobian lens"
    not_decisive: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds"})

    layers: list[int] = Field(description="whose output is read")
    skip_first: int = Field(description="tokens left out at the start of a prompt")
    skip_last: int = Field(description="tokens left out at its end")
    length: int = Field(description="tokens of a prompt")
    probes: int = Field(description="directions a prompt")
    batch_size: int = Field(description="sequences in a batch")
    seed: Seed = Field(description="of the probes")
    checkpoint_seconds: float = Field(default=60.0, gt=0, description="seconds between checkpoints")


class Average:
    """Σ_prompts Σ_probes q qᵀJ of some layers, and where in the prompts the sums stand.

    Attributes:
        total: layer -> `out in`. done: prompts that are in the sums; step: of the next batch's probes, those that are.
    """

    def __init__(self, model: Model, prompts: list[list[int]], config: JacobianConfig):
        self.model, self.prompts, self.config = model, prompts, config
        d, self.last = model.cfg.d_model, model.cfg.n_layers - 1
        self.total = {layer: torch.zeros(d, d, device=model.device) for layer in config.layers if layer != self.last}
        self.done, self.step = 0, 0
        self.draw = torch.Generator().manual_seed(config.seed)

    @property
    def matrices(self) -> dict[int, Float[Tensor, "d_model d_model"]]:
        """J of every layer that was asked for, on the CPU."""
        d = self.model.cfg.d_model
        scale = d / self.config.probes / len(self.prompts)
        return {
            layer: (self.total[layer] * scale).cpu() if layer in self.total else torch.eye(d)
            for layer in self.config.layers
        }

    def run(self, folder: str | os.PathLike[str] | None, quiet: bool) -> None:
        """Sum up all prompts, from the checkpoint in the folder on. Raises `Interrupted`, and as `claim`."""
        checkpoints = None if folder is None else Checkpoints(Path(folder) / "checkpoints")
        made_with = traits(self.model) | {"layers": self.last + 1, "prompts": self._fingerprint}
        claimed = claim(folder, self.config, work="checkpoints/*.pt", made_with=made_with) if folder else nullcontext()
        vjps = self.config.probes
        with claimed, Interrupts() as interrupts:
            self._resume(checkpoints)
            start = self.done * vjps
            with Meter("fit Jacobian lens", len(self.prompts) * vjps, "vjp", quiet, start=start) as meter:
                saved = time.monotonic()
                for state, made in self._steps():
                    meter.advance(made)
                    if checkpoints and (interrupts.asked or time.monotonic() - saved > self.config.checkpoint_seconds):
                        self._save(checkpoints, state)
                        saved = time.monotonic()
                    if interrupts.asked:
                        raise Interrupted(f"stopped; {f'saved in {folder}' if folder else 'nothing was saved'}")
            if checkpoints:
                self._save(checkpoints, self.draw.get_state())

    @property
    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:16]

    def _resume(self, checkpoints: Checkpoints | None) -> None:
        if checkpoints is None or (held := checkpoints.newest()) is None:
            return
        self.total = {int(layer): matrix.to(self.model.device) for layer, matrix in held["total"].items()}
        self.done, self.step = held["done"], held["step"]
        self.draw.set_state(held["draw"])

    def _save(self, checkpoints: Checkpoints, state: Tensor) -> None:
        total = {layer: matrix.cpu() for layer, matrix in self.total.items()}
        content = {"total": total, "done": self.done, "step": self.step, "draw": state}
        checkpoints.save(self.done * self.config.probes + self.step, content)

    def _steps(self) -> Iterator[tuple[Tensor, int]]:
        """Batch by batch and probe by probe; yields the generator's state before the batch's probes were drawn, and how
        many vector-Jacobian products were made."""
        config = self.config
        while self.total and self.done < len(self.prompts):
            state = self.draw.get_state()
            rows = self.prompts[self.done : self.done + config.batch_size]
            tokens = TokenBatch.of(rows, self.model.pad).to(self.model.device)
            d = self.model.cfg.d_model
            basis = torch.stack([_probes(config.probes, d, self.draw) for _ in rows]).to(self.model.device)
            copies = max(1, min(config.batch_size // len(rows), config.probes))
            steps = -(-config.probes // copies)
            for made in self._accumulated(tokens, basis, copies, steps):
                self.step += 1
                if self.step == steps:
                    self.done, self.step, state = self.done + len(rows), 0, self.draw.get_state()
                yield state, made

    def _accumulated(
        self, tokens: TokenBatch, basis: Float[Tensor, "prompt probe d"], copies: int, steps: int
    ) -> Iterator[int]:
        """Add Σ_prompts Σ_probes q qᵀJ to the sums, all layers in one backward pass, from `step` on.

        The cotangent is q at every position of V, so that the gradient at t is Σ_{t' >= t} (∂h_final,t' / ∂h_l,t)ᵀ q:
        a causal model has no other terms.
        """
        count = basis.shape[1]
        padded = torch.nn.functional.pad(basis, (0, 0, 0, steps * copies - count))
        cotangents = padded.unflatten(1, (steps, copies)).transpose(0, 1).flatten(1, 2)  # step (prompt copy) d
        valid = _valid(tokens, self.config.skip_first, self.config.skip_last).repeat_interleave(copies, 0)
        tokens = TokenBatch(tokens.ids.repeat_interleave(copies, 0), tokens.mask.repeat_interleave(copies, 0))
        share = (valid / valid.sum(1, keepdim=True))[..., None]

        layers = list(self.total)
        names = [f"resid_post.{layer}" for layer in [*layers, self.last]]
        run = self.model.run(tokens, capture=names, logits=False, grad=True)
        *sources, final = (run[name] for name in names)
        for step in range(self.step, steps):
            q = cotangents[step]
            everywhere = (q[:, None] * valid[..., None]).to(final.dtype)
            gradients = torch.autograd.grad(final, sources, everywhere, retain_graph=step < steps - 1)
            for layer, gradient in zip(layers, gradients):
                self.total[layer] += q.T @ (gradient.float() * share).sum(1)
            yield len(basis) * min(copies, count - step * copies)


def _probes(count: int, d: int, draw: torch.Generator) -> Float[Tensor, "count d"]:
    """Orthonormal rows: all of the standard basis, or random ones."""
    if count == d:
        return torch.eye(d)
    return torch.linalg.qr(torch.randn(d, count, generator=draw)).Q.T


def _valid(tokens: TokenBatch, skip_first: int, skip_last: int) -> Bool[Tensor, "batch pos"]:
    """The positions V of each prompt."""
    behind = tokens.positions < tokens.lengths[:, None] - skip_last
    return tokens.mask & (tokens.positions >= skip_first) & behind
