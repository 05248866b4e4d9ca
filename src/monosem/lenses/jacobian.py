"""The Jacobian lens: a state is read through its average first-order effect on the last residual stream.

    J_l = E_prompts [ 1/|V| Σ_{t in V} Σ_{t' in V, t' >= t} ∂h_final,t' / ∂h_l,t ],   lens(h) = W_U norm(J_l h)

V are the positions of a prompt without its first `skip_first` (attention sinks) and its last `skip_last`; h_l is the
output of block l, h_final that of the last block, before the final norm. Gurnee et al. 2026, "Verbalizable
Representations Form a Global Workspace in Language Models"; the positions are those of its reference code. The logit
lens is the case J = I.
"""

import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import BadFile, BadInput, Mismatch
from ..models import Model, Site, TokenBatch
from ..models.loading.checkpoint import one_line
from ..progress import Meter
from .corpus import batches, prompts_of
from .fitted import load_lens, save_lens
from .read import look
from .results import LensResult

# what torch.load and a dictionary of another shape were seen to raise
_BROKEN = (OSError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError)


@dataclass(frozen=True)
class JacobianFit:
    """How a Jacobian lens was fitted.

    Attributes:
        n_layers: None for a published lens, which does not say.
        prompts: prompts averaged over.
        length: prompts are cut to this many tokens.
        probes: vector-Jacobian products a prompt; d_model is exact, fewer are an unbiased estimate.
    """

    model_name: str
    d_model: int
    n_layers: int | None
    prompts: int
    skip_first: int = 16
    skip_last: int = 1
    length: int = 128
    probes: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class JacobianLens:
    """One matrix a layer; `lens(model, "a prompt")` reads a prompt.

    Attributes:
        jacobians: layer -> J, `out in`, float32: J @ h is in the basis of the last stream. The last layer's is I.
    """

    jacobians: dict[int, Float[Tensor, "d_model d_model"]] = field(repr=False)
    fit: JacobianFit

    @property
    def layers(self) -> list[int]:
        return sorted(self.jacobians)

    def __call__(
        self, model: Model, x: Any, layers: Sequence[int] | int | None = None, quiet: bool = True, **options: Any
    ) -> LensResult:
        """What each layer's state disposes the model to say, now or later.

        Args:
            layers: some of the fitted ones; all by default.
            options: `positions`, `top`, `targets`, `measures`, `edits` as in `monosem.lenses.logit`.

        Raises:
            Mismatch: the lens belongs to a model of another shape. BadInput: a layer that was not fitted.
        """
        self.check(model)
        wanted = self.layers if layers is None else model.layers(layers)
        return look(model, x, self.translate, "Jacobian lens", layers=wanted, quiet=quiet, **options)

    def translate(self, site: Site, h: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_model"]:
        """J_l h of states at `resid_post.l`. Raises `BadInput` for another site, or a layer that was not fitted."""
        if site.name != "resid_post" or site.layer not in self.jacobians:
            raise BadInput(f"no Jacobian was fitted for {site}; there are those of resid_post at layers {self.layers}")
        return h.float() @ self.jacobians[site.layer].to(h.device).T

    def check(self, model: Model) -> None:
        """Raises `Mismatch` when the model has another shape."""
        width, layers = self.fit.d_model, self.fit.n_layers or model.cfg.n_layers
        if (model.cfg.d_model, model.cfg.n_layers) != (width, layers) or max(self.jacobians) >= layers:
            raise Mismatch(
                f"this lens, of {self.fit.model_name}, has width {width} and {layers} layers, {model.name} has "
                f"{model.cfg.d_model} and {model.cfg.n_layers}; fit one with monosem.lenses.fit_jacobian"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """A folder with `config.json` and `lens.safetensors`."""
        return save_lens(path, "jacobian", asdict(self.fit), {str(i): j for i, j in self.jacobians.items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote, or a published `.pt` file (matrices and the number of prompts), read without running code
        in it. Raises `BadFile` for anything else."""
        if Path(path).is_file():
            return cls._published(Path(path))
        config, tensors = load_lens(path, "jacobian")
        try:
            lens = cls({int(name): value.float() for name, value in tensors.items()}, JacobianFit(**config))
        except (TypeError, ValueError) as error:
            raise BadFile(f"{path} is not a Jacobian lens: {error}") from error
        return lens._sound(path)

    @classmethod
    def _published(cls, path: Path) -> Self:
        """The format of the reference code: {"J": {layer: d x d, half precision}, "n_prompts", "d_model", ...}."""
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
            jacobians = {int(layer): matrix.float() for layer, matrix in held["J"].items()}
            fit = JacobianFit(path.stem, int(held["d_model"]), None, int(held.get("n_prompts", 0)))
        except _BROKEN as error:
            raise BadFile(f"{path} is not a published Jacobian lens: {one_line(error)}") from error
        return cls(jacobians, fit)._sound(path)

    def _sound(self, path: Any) -> Self:
        d = self.fit.d_model
        if bad := [i for i, j in self.jacobians.items() if j.shape != (d, d)]:
            raise BadFile(f"{path}: the matrices of layers {bad} are not {d} x {d}")
        return self


def fit_jacobian(
    model: Model,
    texts: Any,
    layers: Iterable[int] | int | None = None,
    n_prompts: int | None = None,
    *,
    skip_first: int = 16,
    skip_last: int = 1,
    length: int = 128,
    probes: int | None = None,
    rows: int = 16,
    seed: int = 0,
    quiet: bool = False,
) -> JacobianLens:
    """The average Jacobian of the last stream by the streams before it, exact or estimated.

    Every vector-Jacobian product costs about two forward passes over the prompt and serves all layers at once. The
    exact lens takes d_model of them a prompt. With fewer `probes`, each prompt draws k random orthonormal directions q
    and the estimate is d/k Σ q qᵀ J: unbiased, exact at k = d_model, and its error falls with prompts x probes.

    Args:
        texts: an iterable of texts or of token ids, at least `n_prompts` of them, each longer than skip_first +
            skip_last tokens.
        layers: whose output to read; all by default. The last layer's matrix is the identity.
        n_prompts: how many of the texts to use; all by default.
        length: tokens of each prompt to use.
        probes: directions a prompt; None is all of them (exact).
        rows: sequences in a batch; with fewer prompts than rows, several directions of a prompt go at once.
        seed: of the probes.

    Raises:
        BadInput: too short a prompt (it is named), fewer prompts than asked for, a probe count outside 1..d_model.
    """
    d, last = model.cfg.d_model, model.cfg.n_layers - 1
    wanted = model.layers(layers)
    count = d if probes is None else probes
    if not 1 <= count <= d or rows < 1 or length < 2 or min(skip_first, skip_last) < 0:
        raise BadInput(f"need probes within 1..{d}, rows >= 1, length >= 2 and no negative skips")
    prompts = prompts_of(model, texts, n_prompts, length, skip_first + skip_last)
    below = [layer for layer in wanted if layer != last]
    total = {layer: torch.zeros(d, d, device=model.device) for layer in below}
    draw = torch.Generator().manual_seed(seed)
    with Meter("fit Jacobian lens", total=len(prompts) * count, unit="vjp", quiet=quiet) as meter:
        for tokens in batches(model, prompts if below else [], rows):
            basis = torch.stack([_probes(count, d, draw) for _ in range(len(tokens))]).to(model.device)
            _accumulate(model, tokens, basis, total, skip_first, skip_last, rows // len(tokens), meter)
    scale = d / count / len(prompts)
    jacobians = {layer: (total[layer] * scale).cpu() if layer != last else torch.eye(d) for layer in wanted}
    return JacobianLens(
        jacobians,
        JacobianFit(model.name, d, last + 1, len(prompts), skip_first, skip_last, length, count, seed),
    )


def _probes(count: int, d: int, draw: torch.Generator) -> Float[Tensor, "count d"]:
    """Orthonormal rows: all of the standard basis, or random ones."""
    if count == d:
        return torch.eye(d)
    return torch.linalg.qr(torch.randn(d, count, generator=draw)).Q.T


def _accumulate(
    model: Model,
    tokens: TokenBatch,
    basis: Float[Tensor, "prompt probe d"],
    total: dict[int, Tensor],
    skip_first: int,
    skip_last: int,
    copies: int,
    meter: Meter,
) -> None:
    """Add Σ_prompts Σ_probes q qᵀJ to `total`, a layer at a time, all layers in one backward pass.

    The cotangent is q at every position of V, so that the gradient at t is Σ_{t' >= t} (∂h_final,t' / ∂h_l,t)ᵀ q:
    causal attention leaves out t' < t by itself.
    """
    copies = max(1, min(copies, basis.shape[1]))
    steps = -(-basis.shape[1] // copies)
    padded = torch.nn.functional.pad(basis, (0, 0, 0, steps * copies - basis.shape[1]))
    cotangents = padded.unflatten(1, (steps, copies)).transpose(0, 1).flatten(1, 2)  # step (prompt copy) d
    tokens = TokenBatch(tokens.ids.repeat_interleave(copies, 0), tokens.mask.repeat_interleave(copies, 0))
    valid = _valid(tokens, skip_first, skip_last)
    share = (valid / valid.sum(1, keepdim=True))[..., None]

    layers = list(total)
    names = [f"resid_post.{layer}" for layer in [*layers, model.cfg.n_layers - 1]]
    run = model.run(tokens, capture=names, logits=False, grad=True)
    *sources, final = (run[name] for name in names)
    for step, q in enumerate(cotangents):
        everywhere = (q[:, None] * valid[..., None]).to(final.dtype)
        gradients = torch.autograd.grad(final, sources, everywhere, retain_graph=step < steps - 1)
        for layer, gradient in zip(layers, gradients):
            total[layer] += q.T @ (gradient.float() * share).sum(1)
        meter.advance(len(basis) * min(copies, basis.shape[1] - step * copies))


def _valid(tokens: TokenBatch, skip_first: int, skip_last: int) -> Bool[Tensor, "batch pos"]:
    behind = tokens.positions < tokens.lengths[:, None] - skip_last
    return tokens.mask & (tokens.positions >= skip_first) & behind
