"""What one dictionary of a training run is: the settings that its form, its encoder and its losses read."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ...jobs import JobConfig
from ...jobs.config import Seed
from .sites import sites_named

Beta = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(gt=0)]


class DictionarySettings(JobConfig):
    """Fields of a config that belong to one dictionary; `TrainConfig` adds what the run that makes it has."""

    job: ClassVar[str] = "training run"

    site: str = Field(
        description="where the activations are read, e.g. resid_post.15; several, e.g. resid_post.5,10,15 or "
        "resid_post.15,second:resid_post.15: a crosscoder"
    )
    site_out: str | None = Field(
        default=None,
        description="for a transcoder: where its output belongs, e.g. mlp_out.15; of several layers, e.g. mlp_out.0-5 "
        "with site mlp_input.0-5: a cross-layer transcoder; None: at site",
    )
    skip_connection: bool = Field(
        default=False, description="of a transcoder: its input also adds to its output, by a matrix"
    )
    width: int = Field(gt=0, description="number of latents; of a cross-layer transcoder, of each layer")
    kind: str = Field(default="topk", description="how latents are chosen: a row of `KINDS`")
    k: int | None = Field(
        default=None,
        gt=0,
        description="active latents a token (their mean over the batch for batchtopk, matryoshka; steps of "
        "matching_pursuit); relu, gated and jumprelu have none",
    )
    matryoshka_widths: list[Width] | None = Field(
        default=None,
        description="first latents that rebuild the activations alone, of kind matryoshka; None: a 16th, an 8th, a 4th "
        "and half of the width; the width itself is always the last",
    )
    sparsity: float | None = Field(
        default=None, ge=0, description="weight of the penalty of relu, gated, jumprelu; None: the kind's own"
    )
    sparsity_warmup: float | None = Field(
        default=None, ge=0, le=1, description="first share of the run, over which that weight rises from 0; None: 0.1"
    )
    p_end: float | None = Field(
        default=None, gt=0, le=1, description="of relu, gated: exponent of the penalty at the end of the run; None: 1"
    )
    penalty: Literal["quadratic", "step", "tanh"] | None = Field(
        default=None, description="of jumprelu: (L0 / target_l0 - 1)², L0, or its smooth form; None: quadratic"
    )
    target_l0: float | None = Field(default=None, gt=0, description="of jumprelu: active latents a token to aim at")
    bandwidth: float | None = Field(
        default=None, gt=0, description="of jumprelu: width of the window in which thresholds learn; None: 0.02"
    )
    first_threshold: float | None = Field(default=None, ge=0, description="of jumprelu, of all latents; None: 0.02")
    straight_through: Literal["threshold", "both"] | None = Field(
        default=None, description="of jumprelu: what learns from the window; both: pre-activations, too"
    )
    later_sites: str | None = Field(
        default=None,
        description="of loss ce or kl: places behind the dictionary, e.g. resid_post.20,25, where activations should "
        "stay as they are, too",
    )
    later_weight: float = Field(default=1.0, ge=0, description="weight of the error at later_sites")
    seed: Seed = Field(default=0, description="of the initial weights and of the shuffling")
    start: str | None = Field(
        default=None,
        description="dictionary whose weights training starts from: the folder of a run, another folder or a name; "
        "None: random weights. The first latents are its own, more than it has begin at random",
    )

    lr: float | None = Field(
        default=None, gt=0, description="peak learning rate; None: by width, batch_tokens, steps and start (`peak_lr`)"
    )
    warmup_steps: int | None = Field(
        default=None, ge=0, description="linear from zero; None: 1000, or a tenth of a short run"
    )
    decay_share: float = Field(default=0.2, ge=0, le=1, description="last share of the steps, linear to zero")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm over all parameters")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="Adam's")

    auxk: int | None = Field(
        default=None,
        ge=0,
        description="dead latents a token in the auxiliary loss; None: d_in / 2, for relu, gated, jumprelu 0; 0: off",
    )
    auxk_coefficient: float = Field(default=1 / 32, ge=0, description="weight of the auxiliary loss")
    dead_tokens: int | None = Field(
        default=None,
        gt=0,
        description="a latent silent for so many tokens is dead; None: a tenth of the run, at most 10 million",
    )
    b_dec: Literal["median", "mean", "zero"] = Field(
        default="median", description="start of b_dec: geometric median, mean or 0"
    )
    kernels: Literal["auto", "sparse", "dense"] = Field(
        default="auto", description="auto: sparse on a CPU, dense on a GPU"
    )
    precision: Literal["exact", "fast", "bf16"] = Field(
        default="exact",
        description="exact: float32; fast: TF32 products on a GPU, on a CPU as exact; bf16: dense kernels multiply in "
        "bfloat16 (sums, weights and Adam stay float32)",
    )

    @property
    def reads(self) -> list[str]:
        """Where it reads."""
        return sites_named(self.site)

    @property
    def writes(self) -> list[str]:
        """What it rebuilds."""
        return self.reads if self.site_out is None else sites_named(self.site_out)

    @property
    def sites(self) -> list[str]:
        """Where it reads and, where that is another place, what it rebuilds."""
        return self.reads if self.site_out is None else [*self.reads, *self.writes]

    @property
    def architecture(self) -> str:
        """What it is, by where it reads and writes: a row of `ARCHITECTURES`."""
        several = len(self.reads) > 1 or len(self.writes) > 1
        if self.site_out is None:
            return "crosscoder" if several else "sae"
        return "cross_layer" if several else "transcoder"
