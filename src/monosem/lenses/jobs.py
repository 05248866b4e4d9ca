"""Lenses of the kinds beside the tuned one, as jobs that own a folder: what `monosem lens train --kind` makes."""

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ..jobs import JobConfig, claim, fingerprint
from ..jobs.config import Seed
from ..models import Model
from .copying.heads import copying_effects
from .copying.lens import HeadLens
from .corpus import traits
from .fitted import Fitted, load_any
from .future.linear import FutureLens
from .future.soft_prompt import CONTEXT, SoftPrompt
from .jacobian import JacobianLens

Windows = list[list[int]]


class LensJob(JobConfig):
    """The text that a lens is fitted on, as token windows; a subclass adds the settings of its kind."""

    windows: int = Field(gt=1, description="of text, at most")
    length: int = Field(gt=1, description="tokens of a window")
    seed: Seed = Field(default=0, description="of the order of the text and of what is drawn")

    @abstractmethod
    def run(self, model: Model, texts: Windows, folder: str | os.PathLike[str], quiet: bool) -> Fitted:
        """The lens, in `folder/lens`; taken from there where the same job made it.

        Raises:
            Mismatch: the folder holds such a lens with other settings, text or model. BadFile: it is of another job.
        """

    def _options(self, *but: str) -> dict[str, Any]:
        return self.model_dump(exclude={"windows", *but})


class WholeLensJob(LensJob):
    """Of a lens that is made in one go, without checkpoints."""

    def run(self, model: Model, texts: Windows, folder: str | os.PathLike[str], quiet: bool) -> Fitted:
        place = Path(folder) / "lens"
        made_with = traits(model) | {"text": fingerprint(str(texts))}
        with claim(folder, self, work="lens/*", made_with=made_with):
            if place.exists():
                return load_any(place)
            lens = self.fitted(model, texts, quiet)
            lens.save(place)
            return lens

    @abstractmethod
    def fitted(self, model: Model, texts: Windows, quiet: bool) -> Fitted:
        """The lens; errors as its own call."""


class JacobianJob(LensJob):
    """As `JacobianLens.fit`."""

    job: ClassVar[str] = "jacobian lens"

    windows: int = Field(default=100, gt=1)
    length: int = Field(default=128, gt=1)
    layers: list[int] | None = None
    skip_first: int = Field(default=16, ge=0)
    probes: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, gt=0)

    def run(self, model: Model, texts: Windows, folder: str | os.PathLike[str], quiet: bool) -> Fitted:
        return JacobianLens.fit(model, texts, folder=folder, quiet=quiet, **self._options())  # which claims the folder


class FutureJob(WholeLensJob):
    """As `FutureLens.fit`."""

    job: ClassVar[str] = "future lens"

    windows: int = Field(default=200, gt=1)
    length: int = Field(default=256, gt=1)
    layers: list[int] | None = None
    offsets: list[int] = Field(default=[1, 2, 3])
    ridge: float = Field(default=1e-2, ge=0)
    skip_first: int = Field(default=1, ge=0)
    batch_size: int = Field(default=8, gt=0)

    def fitted(self, model: Model, texts: Windows, quiet: bool) -> Fitted:
        return FutureLens.fit(model, texts, quiet=quiet, **self._options("seed"))


class HeadJob(WholeLensJob):
    """As `copying_effects` and `HeadLens.of`."""

    job: ClassVar[str] = "head lens"

    windows: int = Field(default=20, gt=1)
    length: int = Field(default=128, gt=1)
    copying: Literal["token", "concept"] = "token"
    prompts: int = Field(default=32, gt=0)
    heads: int | None = Field(default=None, gt=0)
    fold: bool | None = None

    def fitted(self, model: Model, texts: Windows, quiet: bool) -> Fitted:
        effects = copying_effects(model, self.copying, self.prompts, texts=texts, seed=self.seed, quiet=quiet)
        return HeadLens.of(model, effects, n=self.heads, fold=self.fold)


class SoftPromptJob(WholeLensJob):
    """As `SoftPrompt.fit`; the middle layer by default."""

    job: ClassVar[str] = "soft-prompt lens"

    windows: int = Field(default=50, gt=1)
    length: int = Field(default=128, gt=1)
    layer: int | None = None
    target_layer: int | None = None
    text: str = CONTEXT
    offsets: list[int] = Field(default=[0, 1, 2, 3])
    steps: int = Field(default=200, gt=0)
    batch_size: int = Field(default=16, gt=0)
    lr: float = Field(default=0.02, gt=0)
    per_text: int = Field(default=16, gt=0)
    skip_first: int = Field(default=1, ge=0)

    def fitted(self, model: Model, texts: Windows, quiet: bool) -> Fitted:
        layer = model.cfg.n_layers // 2 if self.layer is None else self.layer
        return SoftPrompt.fit(model, texts, layer, quiet=quiet, **self._options("layer"))


KINDS: dict[str, type[LensJob]] = {
    job.job.removesuffix(" lens"): job for job in (JacobianJob, FutureJob, HeadJob, SoftPromptJob)
}
