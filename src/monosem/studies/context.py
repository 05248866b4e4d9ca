"""What every section of a study works with: the config, the loaded model and dictionary, and how often latents fire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data import PromptPairs
from ..dictionaries import Dictionary
from ..errors import Mismatch, UnknownName
from ..latents import Evidence, Index
from ..models import Model, Run
from ..steering import Outcome, outcome
from .config import StudyConfig

HELD_OUT = 0.5  # share of the pairs that neither the search nor the choice of the target sees
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
    memory: dict[str, Any] = field(default_factory=dict)

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
    def pairs(self) -> tuple[PromptPairs, PromptPairs]:
        """(search half, held-out half)."""
        return PromptPairs(self.config.positive, self.config.negative).split(HELD_OUT, self.config.seed)

    @property
    def openings(self) -> list[str]:
        """Test prompts, then control prompts."""
        return [*self.config.test, *self.config.control]

    @cached_property
    def baseline(self) -> Outcome:
        """What the unedited model does with the openings."""
        options = {"max_new_tokens": self.config.max_new_tokens, "batch_size": self.config.batch_size}
        return outcome(self.model, self.openings, **options)

    @cached_property
    def statistics(self) -> Statistics:
        """From the dictionary's index; without one, from the study's own prompts (few tokens, so only a rough guide)."""
        if self.index is not None:
            return Statistics(self.index.densities, self.index.maxima, "the dictionary's latent index")
        active = self.activations([*self.config.positive, *self.config.negative, *self.openings])
        return Statistics(
            (active > 0).float().mean(0), active.amax(0), "the prompts of this study (the dictionary has no index)"
        )

    def activations(self, prompts: Sequence[str]) -> Float[Tensor, "tokens width"]:
        """Every latent at every counted token of the prompts."""
        parts = []
        for run, counted in self.reads(prompts):
            parts.append(self.dictionary.encode(run[self.dictionary.site][counted]).dense().float().cpu())
        return torch.cat(parts)

    def strongest(self, prompts: Sequence[str], latents: Sequence[int]) -> Float[Tensor, "prompts latents"]:
        """The highest activation of each latent on each prompt, over its counted tokens."""
        parts = []
        for run, counted in self.reads(prompts):
            found = self.dictionary.latent_activations(run[self.dictionary.site], latents).float()
            parts.append(found.masked_fill(~counted[..., None].to(found.device), 0).amax(1).cpu())
        return torch.cat(parts)

    def reads(self, prompts: Sequence[str]) -> list[tuple[Run, Bool[Tensor, "batch pos"]]]:
        """Runs of the unedited model up to the dictionary's site, and which tokens are counted.

        Not counted: padding, special tokens, and the first position, whose activation is an outlier in most models.
        """
        size = self.config.batch_size
        special = torch.tensor(sorted(self.model.special_ids), dtype=torch.long)
        found = []
        for start in range(0, len(prompts), size):
            run = self.model.run(list(prompts[start : start + size]), capture=[self.dictionary.site], logits=False)
            ids = run.tokens.ids.cpu()
            counted = run.tokens.mask.cpu() & ~torch.isin(ids, special) & (run.tokens.positions.cpu() > 0)
            found.append((run, counted.to(run.tokens.ids.device)))
        return found

    def evidence(self, latent: int) -> Evidence | None:
        return None if self.index is None else self.index.evidence(latent)

    def written_tokens(self, latent: int, n: int = 8) -> tuple[list[str], list[str]]:
        """Tokens that the latent's decoder row raises and lowers most, through the final norm's gain and the unembedding.

        The direct effect only, each vocabulary row centred: what later layers make of it is not counted.
        """
        row = self.dictionary.decoder_rows(latent)[0].float().to(self.model.device)
        W_U = self.model.W_U.float()
        effect = (row * self.model.final_gain.float()) @ (W_U - W_U.mean(1, keepdim=True))
        order = effect.argsort(descending=True)
        up, down = order[:n].tolist(), order.flip(0)[:n].tolist()
        return [self.model.str_token(i) for i in up], [self.model.str_token(i) for i in down]
