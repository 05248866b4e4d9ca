"""What every section of a study works with: the config, the loaded model and dictionary, and how often latents fire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import PromptPairs
from ..dictionaries import Dictionary
from ..errors import Mismatch, UnknownName
from ..latents.effects import extreme_tokens
from ..latents.evidence import Evidence
from ..latents.index import Index
from ..latents.pooling import pooled, prompt_runs
from ..models import Model
from .config import StudyConfig
from .prompts import Split, split

Say = Callable[[str], None]


@dataclass(frozen=True)
class Statistics:
    """How often each latent fires and how high, and where that was measured."""

    densities: Float[Tensor, "width"]
    maxima: Float[Tensor, "width"]
    source: str


@dataclass
class Context:
    config: StudyConfig
    model: Model
    dictionary: Dictionary
    index: Index | None
    folder: Path
    say: Say
    quiet: bool = False
    memory: dict[Any, Any] = field(default_factory=dict)  # what sections share within one run

    def check(self) -> None:
        """Raise `Mismatch` or `UnknownName` when config, model and dictionary do not belong together."""
        self.dictionary.check(self.model)
        if self.config.site is not None and self.model.site(self.config.site) != self.dictionary.site:
            raise Mismatch(
                f"the study is about site {self.config.site}, dictionary {self.dictionary.name} "
                f"reads {self.dictionary.site}; leave site out or choose another dictionary"
            )
        if self.config.latent is not None and self.config.latent >= self.dictionary.width:
            raise UnknownName(
                f"no latent {self.config.latent} in {self.dictionary.name}: it has 0 to {self.dictionary.width - 1}"
            )

    @cached_property
    def split(self) -> Split:
        """The pairs by what they are for."""
        return split(self.config.pairs, self.config.seed)

    @property
    def pairs(self) -> tuple[PromptPairs, PromptPairs]:
        """(search, held out)."""
        return self.split.search, self.split.held_out

    @property
    def openings(self) -> list[str]:
        """Test prompts, then control prompts."""
        return [*self.config.test, *self.config.control]

    @cached_property
    def statistics(self) -> Statistics:
        """From the dictionary's index; without one from the study's own prompts (few tokens: only a rough guide)."""
        if self.index is not None:
            return Statistics(self.index.densities, self.index.maxima, "the dictionary's latent index")
        prompts = [*self.config.positive, *self.config.negative, *self.openings]
        codes = [
            self.dictionary.encode(run[self.dictionary.site][counted]).dense().float().cpu()
            for run, counted in prompt_runs(self.model, self.dictionary, prompts, batch_size=self.config.batch_size)
        ]
        active = torch.cat(codes)
        source = "the prompts of this study (the dictionary has no index)"
        return Statistics((active != 0).float().mean(0), active.abs().amax(0), source)

    def strongest(self, prompts: Sequence[str]) -> Float[Tensor, "prompts width"]:
        """The activation of each latent that is largest in magnitude on each prompt, over its counted tokens."""
        return pooled(self.model, self.dictionary, prompts, "max", batch_size=self.config.batch_size)

    def evidence(self, latent: int) -> Evidence | None:
        return None if self.index is None else self.index.evidence(latent)

    def written_tokens(self, latent: int, n: int = 8) -> tuple[list[str], list[str]]:
        """Tokens whose logits the latent's decoder row raises and lowers most; none for sites off the stream."""
        if self.dictionary.d_out != self.model.cfg.d_model:
            return [], []
        up, _, down, _ = extreme_tokens(self.model, self.dictionary, torch.tensor([latent]), n=n)
        name = self.model.str_token
        return [name(i) for i in up[0].tolist()], [name(i) for i in down[0].tolist()]
