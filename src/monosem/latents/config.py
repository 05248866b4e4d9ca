"""What an index is made of, beside the dictionary, the model and the text."""

import re
from typing import ClassVar

from pydantic import Field, field_validator

from ..jobs import JobConfig


class IndexConfig(JobConfig):
    """How a latent index is made. Its text and weights are recorded by fingerprint."""

    job: ClassVar[str] = "latent index"
    # `tokens` and `context` decide by the windows that they give, which are recorded; the others change no number
    not_decisive: ClassVar[frozenset[str]] = frozenset({"tokens", "context", "corpus", "batch_size", "save_tokens"})

    tokens: int | None = Field(default=None, gt=0, description="read about so many tokens (whole windows); None: all")
    context: int = Field(default=256, gt=1, description="tokens a window, where documents are given")
    examples: int = Field(default=20, gt=0, description="examples kept for each latent")
    bands: int = Field(default=5, gt=0, description="intervals of equal width, from 0 to a latent's maximum")
    band_examples: int = Field(default=2, ge=0, description="examples drawn from each interval")
    decile_examples: int = Field(
        default=1, ge=0, description="examples drawn from each tenth of a latent's activations"
    )
    uniform: int = Field(default=5, ge=0, description="examples drawn from all of a latent's activations alike")
    near: int = Field(default=5, ge=0, description="examples of tokens at which a latent is silent by the least")
    silent: int = Field(default=100, ge=0, description="places drawn from the whole corpus, for latents silent there")
    pairs: int = Field(default=12, ge=0, description="latents kept for each that fire with it; by each of two measures")
    pair_memory: float = Field(default=2.5, gt=0, description="GiB that counting pairs of latents may take")
    neurons: int = Field(
        default=0,
        ge=0,
        description="neurons of the block's MLP kept for each latent, those that correlate most with it; counting them "
        "takes longer, and 4 bytes for each latent and neuron; 0: none",
    )
    left: int = Field(default=24, ge=0, description="tokens shown before the strongest one of an example")
    right: int = Field(default=8, ge=0, description="tokens shown after it")
    leave_out: str = Field(
        default="", description="regular expression: documents whose id it finds are neither counted nor quoted"
    )
    corpus: str = Field(default="", description="what the text is, with its licence; kept in the index")
    batch_size: int = Field(default=16, gt=0, description="windows a forward pass")
    save_tokens: int = Field(default=250_000, gt=0, description="tokens between saves of an unfinished index")

    @field_validator("leave_out")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value
