"""What a training run is: every number that decides its result, one described field each, saved beside the result."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ...data.tally import MOST_SKIPPED
from ...jobs import JobConfig
from ...jobs.config import Seed

Beta = Annotated[float, Field(ge=0, lt=1)]
FIRST_CHECKPOINT = 30.0  # seconds after which a run makes its first one, between two passes or steps: within a minute


class TrainConfig(JobConfig):
    """A training run of a TopK (arXiv 2406.04093) or BatchTopK (arXiv 2412.06410) sparse autoencoder."""

    job: ClassVar[str] = "training run"
    not_decisive: ClassVar[frozenset[str]] = frozenset(
        {"most_skipped", "checkpoint_tokens", "checkpoint_seconds", "log_every"}
    )

    model: str = Field(description="model that the activations come from (its monosem name or hub id)")
    site: str = Field(description="where they were read, e.g. resid_post.15")
    width: int = Field(gt=0, description="number of latents")
    k: int = Field(gt=0, description="active latents a token (their mean over the batch for batchtopk)")
    kind: Literal["topk", "batchtopk"] = Field(
        default="topk",
        description="k largest of each token, or k·batch largest of the batch (exported with one threshold)",
    )
    tokens: int = Field(gt=0, description="activations to train on in all, repeats counted")
    batch_tokens: int = Field(default=4096, gt=0, description="activations a step")
    seed: Seed = Field(default=0, description="of the initial weights and of the shuffling")
    start: str | None = Field(
        default=None,
        description="dictionary whose weights training starts from: the folder of a run, another folder or a name; "
        "None: random weights",
    )

    texts: list[str] = Field(default_factory=list, description="files or folders that the text comes from")
    field: str | None = Field(default=None, description="column of the text; None: text, or a conversation's columns")
    most_skipped: float = Field(
        default=MOST_SKIPPED, ge=0, le=1, description="share of a path's rows without text above which reading stops"
    )
    context: int = Field(default=256, gt=0, description="tokens a window when the activations are read")
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

    lr: float | None = Field(
        default=None, gt=0, description="peak learning rate; None: by width, batch_tokens and steps (`peak_lr`)"
    )
    warmup_steps: int | None = Field(
        default=None, ge=0, description="linear from zero; None: 1000, or a tenth of a short run"
    )
    decay_share: float = Field(default=0.2, ge=0, le=1, description="last share of the steps, linear to zero")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm over all parameters")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="Adam's")

    auxk: int | None = Field(
        default=None, ge=0, description="dead latents a token in the auxiliary loss; None: d_in / 2; 0: off"
    )
    auxk_coefficient: float = Field(default=1 / 32, ge=0, description="weight of the auxiliary loss")
    dead_tokens: int | None = Field(
        default=None,
        gt=0,
        description="a latent silent for so many tokens is dead; None: a tenth of the run, at most 10 million",
    )

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
    b_dec: Literal["median", "mean", "zero"] = Field(
        default="median", description="start of b_dec: geometric median, mean or 0"
    )

    device: str = Field(default="auto", description="auto: a GPU where there is one")
    kernels: Literal["auto", "sparse", "dense"] = Field(
        default="auto", description="auto: sparse on a CPU, dense on a GPU"
    )
    precision: Literal["exact", "fast"] = Field(
        default="exact",
        description="fast: the encoder's product is bfloat16 on a CPU (candidates only, values stay float32) and "
        "TF32 on a GPU; exact: float32",
    )

    checkpoint_tokens: int | None = Field(
        default=None, gt=0, description="tokens between checkpoints; None: only by time"
    )
    checkpoint_seconds: float = Field(
        default=300.0, gt=0, description="seconds between checkpoints; the first is made within a minute"
    )
    log_every: int = Field(default=10, gt=0, description="steps between lines of metrics.jsonl")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.k > self.width:
            raise ValueError(f"k is {self.k:,}, but there are only {self.width:,} latents; make k smaller")
        return self

    @property
    def steps(self) -> int:
        return max(self.tokens // self.batch_tokens, 1)

    @property
    def peak_lr(self) -> float:
        """2e-4 · √(2^14 / width) · √(batch / 4096) · √(100,000 / steps), unless the config says another.

        The width's law and the constant, which peers use for long runs, are of Gao et al. (arXiv 2406.04093, figure 3).
        Shorter runs want more, up to ten times as much, as measured in docs/dictionaries.md. The batch counts up to
        4096, the steps from 1,000 to 100,000; the rate is never above 0.01.
        """
        if self.lr is not None:
            return self.lr
        batch, steps = min(self.batch_tokens, 4096), min(max(self.steps, 1000), 100_000)
        return min(2e-4 * (2**14 / self.width * batch / 4096 * 100_000 / steps) ** 0.5, 0.01)

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

    def auxk_of(self, d_in: int) -> int:
        return d_in // 2 if self.auxk is None else self.auxk
