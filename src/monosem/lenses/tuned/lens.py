"""The tuned lens: one affine map a layer, learned so that the state read out early predicts what the model will say.

Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112).
Translator i reads the stream before block i, `resid_pre.i`, and lens(h) = unembed(h + h A_i + b_i); with A = b = 0 it
is the logit lens. The stream after block i is the stream before block i + 1, so `resid_post.i` has translator i + 1,
and the last `resid_post` is the model's own prediction and has none.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import BadInput, Mismatch, UnknownName
from ...models import Model, Positions, Site
from ...models.running.moment import EditLike
from ..read import Targets, look
from ..results import LensResult
from ..states import MEASURES, Translate


class Translator(nn.Module):
    """h + h A + b in float32, right-multiplied. A is a full matrix, a product of two thin ones, or nothing."""

    def __init__(self, d_model: int, rank: int | None):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(d_model))
        if rank is None:
            self.A = nn.Parameter(torch.zeros(d_model, d_model))
        elif rank:
            # down is random and up is zero: A starts at zero and still has a gradient
            self.down = nn.Parameter(torch.randn(d_model, rank) / math.sqrt(d_model))
            self.up = nn.Parameter(torch.zeros(rank, d_model))
        self.rank = rank

    def forward(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        h = h.float()
        moved = h + self.bias
        if self.rank is None:
            return moved + h @ self.A
        return moved + (h @ self.down) @ self.up if self.rank else moved

    @property
    def matrix(self) -> Float[Tensor, "d_model d_model"]:
        """A, whatever its form."""
        if self.rank is None:
            return self.A
        return self.down @ self.up if self.rank else torch.zeros(len(self.bias), len(self.bias)).to(self.bias)

    def begin_at(self, matrix: Float[Tensor, "d_model d_model"], bias: Float[Tensor, "d_model"]) -> None:
        """Set A (of this form's rank) and b."""
        with torch.no_grad():
            self.bias.copy_(bias)
            if self.rank is None:
                self.A.copy_(matrix)
            elif self.rank:
                u, s, v = torch.linalg.svd(matrix, full_matrices=False)
                root = s[: self.rank].sqrt()
                self.down.copy_(u[:, : self.rank] * root)
                self.up.copy_(root[:, None] * v[: self.rank])


class TunedLens(nn.Module):
    """Translators of a model's layers.

    Attributes:
        rank: None for full matrices, 0 for a bias alone, else the rank of every A.
        model_name, unembed_hash: the model it was trained for; the hash is the SHA-256 of its unembedding in float32.
        metadata: how it was made.
    """

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        rank: int | None = None,
        model_name: str = "",
        unembed_hash: str | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__()
        if rank is not None and not 0 <= rank <= d_model:
            raise BadInput(f"rank {rank} is not within 0 (bias alone) and {d_model} (full: leave it None)")
        self.translators = nn.ModuleList(Translator(d_model, rank) for _ in range(n_layers))
        self.d_model, self.rank, self.model_name, self.unembed_hash = d_model, rank, model_name, unembed_hash
        self.metadata = metadata or {}

    @classmethod
    def of(cls, model: Model, rank: int | None = None) -> "TunedLens":
        """An untrained lens of this model: the logit lens."""
        lens = cls(model.cfg.n_layers, model.cfg.d_model, rank, model.name, unembed_hash(model))
        return lens.to(model.device)

    def __len__(self) -> int:
        return len(self.translators)

    def __repr__(self) -> str:
        form = "full" if self.rank is None else f"rank {self.rank}" if self.rank else "bias only"
        return f"TunedLens({self.model_name}: {len(self)} translators, d_model {self.d_model}, {form})"

    def __getitem__(self, layer: int) -> Translator:
        return self.translators[layer]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[Translator]:
        return iter(self.translators)  # type: ignore[arg-type]

    def translate(self, site: Site, h: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_model"]:
        """States at `resid_pre.L` or `resid_post.L`, as the last layer would hold them.

        Raises:
            UnknownName: another site.
        """
        if site.layer is None or site.name not in ("resid_pre", "resid_post"):
            raise UnknownName(f"a tuned lens reads resid_pre or resid_post, not {site}")
        number = site.layer + (site.name == "resid_post")
        return h.float() if number == len(self) else self[number](h)

    def check(self, model: Model) -> None:
        """Raise `Mismatch` when it cannot belong to this model; warn when the unembedding is another one's."""
        own, other = (len(self), self.d_model), (model.cfg.n_layers, model.cfg.d_model)
        if own != other:
            raise Mismatch(
                f"this tuned lens has {own[0]} layers of width {own[1]}, {model.name} has {other[0]} of {other[1]}"
            )
        if self.unembed_hash and not self._made_for(model):
            warnings.warn(
                f"this tuned lens was trained for {self.model_name or 'a model'} with another unembedding than that of "
                f"{model.name}; its predictions may be off",
                stacklevel=3,
            )

    def _made_for(self, model: Model) -> bool:
        """Whether the unembedding is that of the hash, which may have been taken after rounding to a smaller dtype. A
        model that is itself rounded cannot be told from another, and passes."""
        if model.dtype != torch.float32:
            return True
        return any(unembed_hash(model, dtype) == self.unembed_hash for dtype in (None, torch.bfloat16, torch.float16))

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None, published: bool = False) -> Path:
        """Write a folder that `load_tuned` reads: safetensors, or the layout of the tuned-lens package.

        Args:
            dtype: of the stored tensors; default: as they are.
            published: config.json and params.pt with full matrices, as AlignmentResearch/tuned-lens reads them.
        """
        from .files import write

        return write(self, Path(path), dtype, published)


LensLike = TunedLens | Translate | str | os.PathLike[str] | None


def translate_of(model: Model, lens: "LensLike | Any") -> Translate | None:
    """What an analysis sees states through: None is the logit lens; "tuned" the model's shipped tuned lens; a
    `TunedLens` or the folder of one; any lens with a `translate(site, states)`; or such a function itself.

    Raises:
        Mismatch: a lens of another model. UnknownName: no tuned lens of that name. BadInput: no lens at all.
    """
    from .files import load_tuned

    if isinstance(lens, str | os.PathLike):
        lens = load_tuned(model.name if lens == "tuned" else lens)
    if (check := getattr(lens, "check", None)) is not None:
        check(model)
    if isinstance(lens, TunedLens):
        return lens.to(model.device).translate
    found = getattr(lens, "translate", lens)
    if found is not None and not callable(found):
        raise BadInput(f"a lens is None, 'tuned', a folder, or has translate(site, states); {found!r} is none of these")
    return found


def unembed_hash(model: Model, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of the unembedding `vocab d_model` as float32, as the tuned-lens package computes it.

    Args:
        dtype: round the weights to it first, as loading the model in it does.
    """
    weight: Tensor = model.hf.get_output_embeddings().weight
    digest = hashlib.sha256()
    for part in weight.detach().split(max(1, (1 << 24) // weight.shape[1])):
        digest.update(part.to(dtype or part.dtype).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tuned(
    model: Model,
    x: Any,
    lens: TunedLens | str | os.PathLike[str] | None = None,
    site: str = "resid_post",
    layers: Sequence[int] | int | None = None,
    positions: Positions | None = None,
    top: int = 5,
    targets: Targets = None,
    measures: Iterable[str] = tuple(MEASURES),
    edits: EditLike | Iterable[EditLike] = (),
    quiet: bool = False,
) -> LensResult:
    """What each layer already knows of the model's prediction. Arguments as `logit`.

    Args:
        lens: a `TunedLens`, or what `load_tuned` takes; None: the one that is shipped for this model.
        site: "resid_post" or "resid_pre".

    Raises:
        Mismatch: the lens is not of this model. UnknownName: no lens of that name. Others as `logit`.
    """
    translate = translate_of(model, "tuned" if lens is None else lens)
    if site not in ("resid_pre", "resid_post"):
        raise UnknownName(f"a tuned lens reads resid_pre or resid_post, not {site!r}")
    return look(
        model,
        x,
        translate,
        "tuned lens",
        site=site,
        layers=layers,
        positions=positions,
        top=top,
        targets=targets,
        measures=measures,
        edits=edits,
        quiet=quiet,
    )
