"""What a training run is: every number that decides its result, one described field each, saved beside the result."""

import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from ...data.tally import MOST_SKIPPED
from ...errors import BadInput, did_you_mean
from ...jobs import JobConfig
from ...jobs.config import Seed
from ...reading import read_yaml
from .architectures import ARCHITECTURES
from .kinds import KINDS, OWN
from .settings import DictionarySettings
from .sites import of_second

CHECKPOINTS = "checkpoints"  # folder in the run's
ONE_SITE = ("sae", "transcoder")  # architectures that read one place and write to one
LONG_RUN = 100_000  # steps from which the default learning rate falls no more
FIRST_CHECKPOINT = 30.0  # seconds after which a run makes its first one, between two passes or steps: within a minute


class RunSettings(JobConfig):
    """What the dictionaries of a run share: text, activations, device, checkpoints."""

    job: ClassVar[str] = "training run"
    not_decisive: ClassVar[frozenset[str]] = frozenset(
        {"most_skipped", "checkpoint_tokens", "checkpoint_seconds", "log_every"}
    )

    model: str = Field(description="model that the activations come from (its monosem name or hub id)")
    second_model: str | None = Field(
        default=None,
        description="a second model that reads the same tokens; its sites are written second:resid_post.15",
    )
    tokens: int = Field(gt=0, description="activations to train on in all, repeats counted")
    batch_tokens: int = Field(default=4096, gt=0, description="activations a step")
    texts: list[str] = Field(default_factory=list, description="files or folders that the text comes from")
    meta_of: str | None = Field(
        default=None, description="a dictionary whose decoder rows are trained on instead of activations: a meta-SAE"
    )
    loss: Literal["reconstruction", "ce", "kl"] = Field(
        default="reconstruction",
        description="what is minimised: the error of the reconstruction, or, end to end, the cross-entropy of the next "
        "tokens or the KL from the unedited model with the reconstruction spliced in",
    )
    field: str | None = Field(default=None, description="column of the text; None: text, or a conversation's columns")
    most_skipped: float = Field(
        default=MOST_SKIPPED, ge=0, le=1, description="share of a path's rows without text above which reading stops"
    )
    context: int = Field(default=256, gt=0, description="tokens a window when the activations are read")
    apart: bool = Field(
        default=False,
        description="no window holds two documents; short ones are filled up with separators, which are left out",
    )
    batch_size: int = Field(default=16, gt=0, description="windows a forward pass when the activations are read")
    dtype: str | None = Field(default=None, description="the model's; None: as load_model chooses")
    source: Literal["stream", "shards"] = Field(
        default="stream",
        description="stream: the model runs while the dictionary trains; shards: it runs once, its activations are "
        "kept on disk and shuffled over the whole text",
    )
    buffer_tokens: int = Field(
        default=262_144, gt=0, description="most activations in the shuffle buffer of a stream, never more than tokens"
    )
    held_out: list[str] = Field(
        default_factory=list, description="files or folders of other text; the evaluation on each goes into the card"
    )
    held_out_tokens: int = Field(default=100_000, gt=0, description="tokens of each held-out text")

    calibration_batches: int = Field(
        default=4, gt=0, description="first batches that fix the scale and b_dec; trained on too"
    )
    outlier: float | None = Field(
        default=10.0,
        gt=1,
        description="activations whose norm is above so many medians of the first batches are left out; None: kept",
    )
    mean_square: Literal["one", "d_in"] = Field(
        default="one", description="activations are divided by one number so that their mean squared norm is this"
    )
    device: str = Field(default="auto", description="auto: a GPU where there is one")
    checkpoint_tokens: int | None = Field(
        default=None, gt=0, description="tokens between checkpoints; None: only by time"
    )
    checkpoint_seconds: float = Field(
        default=300.0, gt=0, description="seconds between checkpoints; the first is made within a minute"
    )
    log_every: int = Field(default=10, gt=0, description="steps between lines of metrics.jsonl")

    @property
    def end_to_end(self) -> bool:
        return self.loss != "reconstruction"

    @property
    def steps(self) -> int:
        return max(self.tokens // self.batch_tokens, 1)


class TrainConfig(RunSettings, DictionarySettings):
    """A training run of one dictionary."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"no kind {kind!r}{did_you_mean(kind, KINDS)}; known: {', '.join(KINDS)}")
        return kind

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.k is not None and self.k > self.width:
            raise ValueError(f"k is {self.k:,}, but there are only {self.width:,} latents; make k smaller")
        kind = KINDS[self.kind]
        if foreign := [name for name in sorted(OWN.difference(kind.own)) if getattr(self, name) is not None]:
            owner = " or ".join(name for name, other in KINDS.items() if foreign[0] in other.own)
            raise ValueError(f"{foreign[0]} is of kind {owner}, not of {self.kind}; leave it out")
        if missing := [name for name in kind.needed if getattr(self, name) is None]:
            raise ValueError(f"{missing[0]}: kind {self.kind} needs it")
        if useless := [name for name in kind.refused if getattr(self, name) is not None]:
            raise ValueError(f"{useless[0]}: kind {self.kind} has no use for it; leave it out")
        if self.kernels not in ("auto", *kind.forward):
            raise ValueError(f"kernels: kind {self.kind} has only {' and '.join(kind.forward)} ones")
        if wrong := kind.complaint(self):
            raise ValueError(wrong)
        self._fits_its_architecture()
        return self

    def _fits_its_architecture(self) -> None:
        made, kind = ARCHITECTURES[self.architecture], KINDS[self.kind]
        fits = {name: not made.holds or other.saved in made.holds for name, other in KINDS.items()}
        if made.layered:
            fits = {name: held and KINDS[name].plain for name, held in fits.items()}
        if not fits[self.kind]:
            others = " or ".join(name for name, held in fits.items() if held)
            why = "no file format holds" if kind.plain or not made.layered else "there is not"
            raise ValueError(f"kind: {why} {made.what} of kind {self.kind}; take {others}")
        if self.skip_connection and self.architecture != "transcoder":
            give = "leave it out" if len(self.sites) > 2 else "give site_out, or leave it out"
            raise ValueError(f"skip_connection is of a transcoder; {give}")
        if self.start is not None and self.architecture not in ONE_SITE:
            raise ValueError(f"start: {made.what} starts anew; leave it out")
        if of_second(self.sites) and self.second_model is None:
            raise ValueError(f"second_model: {of_second(self.sites)[0]} is of a second model; name that model")
        if self.architecture == "sae" and of_second(self.sites):
            raise ValueError(f"site: {self.site} alone is of one model; name that model as model, without second:")
        if self.site_out is not None and of_second(self.sites):
            raise ValueError(
                f"site_out: {made.what} reads and writes one model, not {self.site} and {self.site_out}; leave it out "
                "for a crosscoder of both"
            )
        if self.meta_of is not None and self.architecture != "sae":
            raise ValueError(f"meta_of: decoder rows have one site, and this is {made.what}; leave meta_of out")
        if self.meta_of is not None and self.held_out:
            raise ValueError("held_out: a meta-SAE codes decoder rows and is measured on no text; leave held_out out")
        if wrong := made.complaint(self):
            raise ValueError(wrong)

    @model_validator(mode="after")
    def _fits_its_loss(self) -> Self:
        if not self.end_to_end:
            if self.later_sites is not None:
                raise ValueError("later_sites is of loss ce or kl; give such a loss, or leave it out")
            return self
        loss, what = f"loss {self.loss}", ARCHITECTURES[self.architecture].what
        if self.architecture not in ONE_SITE:
            raise ValueError(f"loss: {loss} is of a dictionary that writes to one place, not of {what}; leave loss out")
        if not KINDS[self.kind].plain:
            others = " or ".join(name for name, kind in KINDS.items() if kind.plain)
            raise ValueError(f"kind: {self.kind} has a loss of its own beside {loss}; take {others}")
        if of_second(self.sites) or self.meta_of is not None or self.source != "stream":
            what = "meta_of" if self.meta_of else f"source {self.source}" if self.source != "stream" else "second_model"
            raise ValueError(f"{what}: {loss} runs the model on the text as it trains; leave {what.split()[0]} out")
        if self.batch_tokens % self.context:
            raise ValueError(
                f"batch_tokens: {loss} trains on whole windows, and {self.batch_tokens:,} is no multiple of context "
                f"{self.context}"
            )
        return self

    @property
    def peak_lr(self) -> float:
        """2e-4 · √(2^14 / width) · √(batch / 4096) · √(100,000 / steps), unless the config says another.

        The width's law and the constant, which peers use for long runs, are of Gao et al. (arXiv 2406.04093, figure 3).
        Shorter runs want more, up to ten times as much, as measured in docs/training.md. The batch counts up to
        4096, the steps from 1,000 to 100,000; the rate is never above 0.01. A run that goes on from a dictionary
        (`start`) has the rate of a long run, however short it is: with more, it undoes what it starts from.
        """
        if self.lr is not None:
            return self.lr
        batch, steps = min(self.batch_tokens, 4096), min(max(self.steps, 1000), LONG_RUN)
        if self.start is not None:
            steps = LONG_RUN
        return min(2e-4 * (2**14 / self.width * batch / 4096 * LONG_RUN / steps) ** 0.5, 0.01)

    def auxk_of(self, d_in: int) -> int:
        """Dead latents a token in the auxiliary loss; 0: there is none."""
        kind = KINDS[self.kind]
        return (d_in // 2 if kind.revives and "auxk" not in kind.refused else 0) if self.auxk is None else self.auxk

    @property
    def dead_after(self) -> int:
        """Tokens of silence after which a latent counts as dead."""
        return self.dead_tokens or min(max(self.tokens // 10, 10 * self.batch_tokens), 10_000_000)

    def lr_at(self, step: int) -> float:
        """Learning rate of a 0-based step: linear warm-up, flat, linear decay."""
        warmup = self.warmup_steps if self.warmup_steps is not None else min(1000, self.steps // 10)
        decay = self.decay_share * self.steps
        rise = (step + 1) / warmup if step < warmup else 1.0
        fall = (self.steps - step) / decay if self.steps - step < decay else 1.0
        return self.peak_lr * min(rise, fall)

    @property
    def each(self) -> dict[str, "TrainConfig"]:
        return {"": self}


class SeveralConfig(RunSettings):
    """A training run of several dictionaries, from one pass of the model.

    Fields of a dictionary may stand beside `dictionaries`: they are for all that do not say otherwise, and whose kind
    has such a field.
    """

    shorthands: ClassVar[frozenset[str]] = frozenset(DictionarySettings.model_fields)

    seed: Seed = Field(default=0, description="of the shuffling, and of the weights of dictionaries that have none")
    dictionaries: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name (and folder) of each dictionary, and the fields that are its own"
    )

    @model_validator(mode="before")
    @classmethod
    def _for_all(cls, values: Any) -> Any:
        common: dict[str, Any] = {"seed": 0} | {name: values[name] for name in cls.shorthands if name in values}
        entries = values.get("dictionaries")
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            return values
        own = {str(name): _common_to(common, entry) | entry for name, entry in entries.items()}
        return {name: value for name, value in values.items() if name == "seed" or name not in common} | {
            "dictionaries": own
        }

    @model_validator(mode="after")
    def _each_fits(self) -> Self:
        for name, entry in self.dictionaries.items():
            if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name) or name == CHECKPOINTS:
                raise ValueError(f"dictionaries: {name!r} is no name for a folder; use letters, digits, . _ -")
            if shared := sorted(entry.keys() & RunSettings.model_fields.keys()):
                raise ValueError(f"dictionaries.{name}.{shared[0]}: all dictionaries of a run share {shared[0]}")
        for name in self.dictionaries:
            try:
                self._config(name)
            except BadInput as error:
                raise ValueError(f"dictionaries.{name}: {str(error).removeprefix(f'{self.job}: ')}") from error
        return self

    def _config(self, name: str) -> TrainConfig:
        shared = {field: getattr(self, field) for field in [*RunSettings.model_fields, "seed"]}
        return TrainConfig.parse(shared | self.dictionaries[name])

    @property
    def each(self) -> dict[str, TrainConfig]:
        """Name -> config of that dictionary alone."""
        return {name: self._config(name) for name in self.dictionaries}


def _common_to(common: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields for all that the kind of this one has."""
    kind = KINDS.get(str(entry.get("kind", common.get("kind", "topk"))))
    foreign = OWN.difference(kind.own) if kind else ()
    return {name: value for name, value in common.items() if name not in foreign}


AnyConfig = TrainConfig | SeveralConfig


def sites_of(config: AnyConfig) -> list[str]:
    """All sites that a run reads, in the order in which they are named first."""
    return list(dict.fromkeys(site for one in config.each.values() for site in one.sites))


def config_of(values: Mapping[str, Any]) -> AnyConfig:
    """The config of plain values: of several dictionaries where they have `dictionaries`. Raises `BadInput`."""
    return (SeveralConfig if "dictionaries" in values else TrainConfig).parse(values)


def read_config(path: str | os.PathLike[str]) -> AnyConfig:
    """The config of a YAML file, of one dictionary or of several. Raises `BadFile`, `BadInput`."""
    values = read_yaml(path)
    several = isinstance(values, dict) and "dictionaries" in values
    return (SeveralConfig if several else TrainConfig).read(path)
