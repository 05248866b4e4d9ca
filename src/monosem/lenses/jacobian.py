"""The Jacobian lens: a state is read through its average first-order effect on the last residual stream.

    J_l = E_prompts [ 1/|V| Σ_{t in V} Σ_{t' in V, t' >= t} ∂h_final,t' / ∂h_l,t ],   lens(h) = W_U norm(J_l h)

V are the positions of a prompt without its first `skip_first` (attention sinks) and its last `skip_last`; h_l is the
output of block l, h_final the output of the last block, before the final norm. Gurnee et al. 2026, "Verbalizable
Representations Form a Global Workspace in Language Models"; the positions are as in its reference code. The logit
lens is the case J = I.
"""

import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadFile, BadInput, Mismatch, cause
from ..files import replacing
from ..models import Layers, Model, Site
from .average_jacobian import Average, JacobianConfig
from .corpus import prompts_of
from .fitted import Fitted, Header
from .read import ReadOptions, read
from .results import LensResult

# what torch.load and a dictionary of another shape were seen to raise
_BROKEN = (OSError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError)
_BROKEN_SUMS = (ArithmeticError, StopIteration)

SHIFTS = {
    "resid_post": 0,
    "resid_pre": 1,
}  # blocks before a state of this name, less its layer's number, from the first


@dataclass(frozen=True)
class JacobianHeader(Header):
    """How a Jacobian lens was fitted.

    Attributes:
        n_layers: None for a published lens, which does not say.
        prompts: prompts averaged over.
        length: prompts are cut to this many tokens.
        probes: vector-Jacobian products a prompt; d_model is exact, fewer are an unbiased estimate.
    """

    prompts: int
    skip_first: int = 16
    skip_last: int = 1
    length: int = 128
    probes: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class JacobianLens(Fitted):
    """One matrix a layer; `lens(model, "a prompt")` reads a prompt.

    Attributes:
        jacobians: layer -> J, `out in`, float32: J @ h is in the basis of the last stream. The last layer's is I.
    """

    kind: ClassVar[str] = "jacobian"
    name: ClassVar[str] = "Jacobian lens"

    header: JacobianHeader
    jacobians: dict[int, Float[Tensor, "d_model d_model"]] = field(repr=False)

    @property
    def layers(self) -> list[int]:
        return sorted(self.jacobians)

    def __call__(self, model: Model, x: Any, **options: Unpack[ReadOptions]) -> LensResult:
        """What each layer's state disposes the model to say, now or later. Options and errors as `monosem.lenses.read`;
        the layers are the fitted ones by default.

        Raises:
            Mismatch: the lens belongs to a model of another shape. BadInput: a layer that was not fitted.
        """
        options.setdefault("quiet", True)
        return read(model, x, lens=self, **options)

    def translate(self, site: Site, h: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_model"]:
        """J_l h of states after block l, `resid_post.l` or `resid_pre.l+1`. Raises `BadInput` for another place, or a
        layer that was not fitted."""
        after = None if site.layer is None or site.name not in SHIFTS else site.layer - SHIFTS[site.name]
        if after not in self.jacobians:
            raise BadInput(f"no Jacobian was fitted for {site}; there are Jacobians of resid_post at {self.layers}")
        return h.float() @ self.jacobians[after].to(h.device).T

    def layers_at(self, site: str) -> list[int] | None:
        """The layers of a site that it reads; None for a site that it does not know."""
        if site not in SHIFTS:
            return None
        last = self.header.n_layers
        shifted = [layer + SHIFTS[site] for layer in self.layers]
        return [layer for layer in shifted if last is None or layer < last]

    @classmethod
    def claims(cls, path: Path) -> bool:
        return (path.is_file() and path.suffix == ".pt") or super().claims(path)

    def on(self, model: Model) -> Self:
        """With the identity at the model's last layer, which published files leave out. Errors as `check`."""
        lens, last = super().on(model), model.cfg.n_layers - 1
        header = replace(lens.header, n_layers=last + 1)
        return replace(lens, header=header, jacobians={last: torch.eye(self.header.d_model)} | lens.jacobians)

    def numbers(self) -> dict[str, Tensor]:
        return {str(layer): matrix for layer, matrix in self.jacobians.items()}

    @classmethod
    def of_parts(cls, header: JacobianHeader, numbers: dict[str, Tensor]) -> Self:
        jacobians = {int(name): matrix.float() for name, matrix in numbers.items()}
        size = header.d_model
        if not jacobians or min(jacobians) < 0 or any(matrix.is_complex() for matrix in numbers.values()):
            raise ValueError(f"it needs a real matrix for each of some layers from 0 on, not for {sorted(jacobians)}")
        if bad := [layer for layer, matrix in jacobians.items() if matrix.shape != (size, size)]:
            raise ValueError(f"the matrices of layers {bad} are not {size} x {size}")
        return cls(header, jacobians)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote, or a `.pt` file of the reference code (a published lens, a checkpoint of a fit), read
        without running code in it. Raises `BadFile` for anything else."""
        if not Path(path).is_file():
            return super().load(path)
        # the format of the reference code: {"J": {layer: d x d, half precision}, "n_prompts", "d_model", ...}
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
            done = int(held.get("n_done", held.get("n_prompts", 0)))
            if "jacobian_sum" in held:  # its checkpoint, a sum over the prompts done
                matrices = {layer: matrix.float() / done for layer, matrix in held["jacobian_sum"].items()}
                held |= {"J": matrices, "d_model": len(next(iter(matrices.values())))}
            header = JacobianHeader(Path(path).stem, int(held["d_model"]), None, done)
            lens = cls.of_parts(header, held["J"])
            lens.check_numbers()
        except (*_BROKEN, *_BROKEN_SUMS) as error:
            raise BadFile(f"{path} is not a published Jacobian lens: {cause(error)}") from error
        return lens

    def save(self, path: str | os.PathLike[str], published: bool = False) -> Path:
        """Write a folder that `load` reads, or, published, a `.pt` file that the reference code reads: matrices in half
        precision without the last layer's, and the number of prompts."""
        if not published:
            return super().save(path)
        last = None if self.header.n_layers is None else self.header.n_layers - 1
        held = {layer: matrix.half() for layer, matrix in self.jacobians.items() if layer != last}
        counted = {"n_prompts": self.header.prompts, "source_layers": sorted(held), "d_model": self.header.d_model}
        with replacing(path) as temporary:
            torch.save({"J": held} | counted, temporary)
        return Path(path)

    @classmethod
    def merge(cls, lenses: Iterable[Self]) -> Self:
        """One lens of several that were fitted on different prompts: their mean, weighted by the prompts of each.

        Raises:
            BadInput: no lens, something else, or one that does not say how many prompts it is of.
            Mismatch: lenses of other models, layers or settings (only seeds may differ).
        """
        lenses = list(lenses) if isinstance(lenses, Iterable) else [lenses]
        if not lenses or any(not isinstance(lens, cls) or lens.header.prompts < 1 for lens in lenses):
            raise BadInput(
                "give Jacobian lenses to merge, each with the number of its prompts; JacobianLens.load reads a file"
            )
        first = lenses[0]
        for other in lenses[1:]:
            same = replace(other.header, prompts=first.header.prompts, seed=first.header.seed)
            if same != first.header or other.layers != first.layers:
                raise Mismatch(f"lenses of different models, layers or settings: {first.header} and {other.header}")
        total = sum(lens.header.prompts for lens in lenses)
        merged = {
            layer: sum(
                (lens.jacobians[layer] * (lens.header.prompts / total) for lens in lenses[1:]),
                first.jacobians[layer] * (first.header.prompts / total),
            )
            for layer in first.layers
        }
        return cls(replace(first.header, prompts=total), merged)

    def check(self, model: Model) -> None:
        """Raises `Mismatch` when the model has another shape than the one that the lens was fitted on."""
        super().check(model)
        if max(self.jacobians) >= model.cfg.n_layers:
            raise Mismatch(f"this lens reads layer {max(self.jacobians)}; {model.name} has {model.cfg.n_layers} layers")

    @classmethod
    def fit(
        cls,
        model: Model,
        texts: Any,
        *,
        layers: Layers = None,
        n: int | None = None,
        skip_first: int = 16,
        skip_last: int = 1,
        length: int = 128,
        probes: int | None = None,
        batch_size: int = 16,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        quiet: bool = False,
    ) -> Self:
        """The average Jacobian of the last stream by the streams before it, exact or estimated.

        Every vector-Jacobian product costs about two forward passes over the prompt and serves all layers at once. The
        exact lens takes d_model of them a prompt. With fewer `probes`, each prompt draws k random orthonormal
        directions q and the estimate is d/k Σ q qᵀ J: unbiased, exact at k = d_model, and its error falls with prompts
        x probes.

        Args:
            texts: an iterable of texts or of token ids, at least `n` of them, each longer than skip_first + skip_last
                tokens.
            layers: whose output to read; all by default. The last layer's matrix is the identity.
            n: how many of the texts to use; all by default.
            length: tokens of each prompt to use.
            probes: directions a prompt; None is all of them (exact).
            batch_size: sequences in a batch; with fewer prompts, several directions of a prompt go at once.
            seed: of the probes.
            folder: keep checkpoints here; the same call goes on where it stopped, with the same result, which is then
                in `folder/lens`.

        Raises:
            Interrupted: (a KeyboardInterrupt) stopped by the user, after saving. Mismatch: the folder holds a fit with
                other settings, prompts or of another model.
            BadInput: too short a prompt (it is named), fewer prompts than asked for, a probe count outside 1..d_model.
        """
        d, last = model.cfg.d_model, model.cfg.n_layers - 1
        wanted = model.layers(layers)
        count = d if probes is None else probes
        if not 1 <= count <= d or batch_size < 1 or length < 2 or min(skip_first, skip_last) < 0:
            raise BadInput(f"need probes within 1..{d}, batch_size >= 1, length >= 2 and no negative skips")
        prompts = prompts_of(model, texts, n, length, skip_first + skip_last)
        settings = {"skip_first": skip_first, "skip_last": skip_last, "length": length, "seed": seed}
        config = JacobianConfig.parse(settings | {"layers": wanted, "probes": count, "batch_size": batch_size})
        average = Average(model, prompts, config)
        average.run(folder, quiet)
        header = JacobianHeader(model.name, d, last + 1, len(prompts), skip_first, skip_last, length, count, seed)
        lens = cls(header, average.matrices)
        if folder is not None:
            lens.save(Path(folder) / "lens")
        return lens
