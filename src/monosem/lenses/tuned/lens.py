"""The tuned lens: one affine map a layer, learned so that the state read out early predicts what the model will say.

Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112).
Translator i reads the stream before block i, `resid_pre.i`, and lens(h) = unembed(h + h A_i + b_i); with A = b = 0 it
is the logit lens. The stream after block i is the stream before block i + 1, so `resid_post.i` has translator i + 1,
and the last `resid_post` is the model's own prediction and needs no translator.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...data import TextSource
from ...errors import UnknownName, did_you_mean
from ...files import ASSETS
from ...models import Model, Site
from ...reading import existing
from ..fitted import Fitted, read_fitted, write_fitted
from .config import TuneConfig
from .evaluation import evaluate
from .files import PARAMETERS, TunedHeader, filled, made_for, read_published, write_published
from .training import Record, train
from .translators import Translator, Translators

FOLDER = "tuned_lens"


@dataclass(frozen=True, eq=False)
class TunedLens(Fitted):
    """Translators of a model's layers; `lens[3]` is one of them."""

    kind: ClassVar[str] = "tuned"
    name: ClassVar[str] = "tuned lens"

    header: TunedHeader
    translators: Translators = field(repr=False)

    @classmethod
    def of(cls, model: Model, rank: int | None = None) -> Self:
        """An untrained lens of this model: the logit lens.

        Raises:
            BadInput: a rank below 0 or above the width.
        """
        translators = Translators(model.cfg.n_layers, model.cfg.d_model, rank).to(model.device)
        return cls(TunedHeader.of(model, rank), translators)

    @classmethod
    def fit(
        cls,
        model: Model,
        texts: TextSource,
        config: TuneConfig | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        quiet: bool = False,
        on_step: Callable[[Record], None] | None = None,
    ) -> Self:
        """Train a tuned lens for a model.

        With a folder, checkpoints go to `folder/checkpoints`, a line every few steps to `folder/metrics.jsonl`, and the
        lens so far to `folder/lens`; the same call goes on where it stopped, with the same result.

        Args:
            texts: documents, a `TokenStore`, or windows of token ids.
            config: the recipe; the paper's by default.
            on_step: called with each logged record: step, tokens, lr, and the loss of every layer in nats.

        Raises:
            BadInput: too little text (and no `repeat`), a loss that is not finite.
            Mismatch: the folder holds a run with another config, text or model.
            Interrupted: (a KeyboardInterrupt) stopped by the user, after saving: the same call goes on.
        """

        def keep(header: TunedHeader, translators: Translators, path: Path) -> None:
            cls(header, translators).save(path)

        header, translators = train(
            model, texts, config or TuneConfig(), folder, keep=keep, quiet=quiet, on_step=on_step
        )
        return cls(header, translators)

    @staticmethod
    def shipped() -> list[str]:
        """Names of the models whose tuned lens is inside the package."""
        return sorted(config.parents[1].name for config in ASSETS.glob(f"*/{FOLDER}/config.json"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """A tuned lens: the one shipped for a model ("smollm2"), or a folder, ours or of the tuned-lens package.

        Raises:
            UnknownName: neither a shipped name nor a folder.
            BadFile: the folder holds no tuned lens, or a broken or hostile one.
        """
        name, shipped = os.fspath(path), cls.shipped()
        folder = ASSETS / name / FOLDER if name in shipped else existing(name) or Path(name)
        if not folder.is_dir():
            raise UnknownName(
                f"no tuned lens {name!r}{did_you_mean(name, shipped)}; shipped for: {', '.join(shipped) or 'none'}; "
                "else give a folder, or train one: monosem lens train"
            )
        published = (folder / PARAMETERS).exists()
        config, numbers = read_published(folder) if published else read_fitted(folder, cls.kind)
        header, translators = filled(folder, config, numbers)
        return cls(header, translators)

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None, published: bool = False) -> Path:
        """Write a folder that `load` reads: safetensors, or the layout of the tuned-lens package.

        Args:
            dtype: of the stored tensors; default: as they are.
            published: config.json and params.pt with full matrices, as AlignmentResearch/tuned-lens reads them.
        """
        if published:
            return write_published(Path(path), self.header, self.translators, dtype or torch.float32)
        numbers = {name: value.to(dtype or value.dtype) for name, value in self.numbers().items()}
        return write_fitted(path, self.kind, self.header, numbers)

    def numbers(self) -> dict[str, Tensor]:
        return self.translators.state_dict()

    def __len__(self) -> int:
        return len(self.translators)

    def __getitem__(self, layer: int) -> Translator:
        return self.translators[layer]

    def __repr__(self) -> str:
        about, rank = self.header, self.header.rank
        form = "full" if rank is None else f"rank {rank}" if rank else "bias only"
        return f"TunedLens({about.model_name}: {len(self)} translators, d_model {about.d_model}, {form})"

    def to(self, device: torch.device | str) -> Self:
        """Move the translators, in place."""
        self.translators.to(device)
        return self

    @classmethod
    def claims(cls, path: Path) -> bool:
        return (path / PARAMETERS).is_file() or super().claims(path)

    def on(self, model: Model) -> Self:
        """Checked, and on the model's device. Errors as `check`."""
        return super().on(model).to(model.device)

    def translate(self, site: Site, h: Float[Tensor, "cell d_model"]) -> Float[Tensor, "cell d_model"]:
        """States at `resid_pre.L` or `resid_post.L`, as the last layer would hold them.

        Raises:
            UnknownName: another site.
        """
        return self.translators.translate(site, h)

    def check(self, model: Model) -> None:
        """Raise `Mismatch` when it cannot belong to this model; warn when it was trained for another unembedding."""
        super().check(model)
        if not made_for(model, self.header):
            warnings.warn(
                f"this tuned lens was trained for {self.header.model_name or 'a model'} with another unembedding than "
                f"the one of {model.name}; its predictions may be off",
                stacklevel=3,
            )

    evaluate = evaluate
