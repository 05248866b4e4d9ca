"""What every section of a study works with: the config, the loaded model and dictionary, and how often latents fire."""

from collections import Counter
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
    """How often each latent fires and how high, and where that was measured.

    Attributes:
        densities: share of tokens. usual: the same on text that is not about the concept. tokens: how many there were.
        maxima: the largest magnitude. signs: -1 for latents whose codes are negative on the whole (abstopk), else 1.
    """

    densities: Float[Tensor, "width"]
    usual: Float[Tensor, "width"]
    maxima: Float[Tensor, "width"]
    signs: Float[Tensor, "width"]
    tokens: int
    source: str

    @property
    def tops(self) -> Float[Tensor, "width"]:
        """The maximum of each latent with its sign: what a dose of 1 clamps it to."""
        return self.maxima * self.signs


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
        if self.dictionary.transcoder:
            raise Mismatch(
                f"{self.dictionary.name} is a transcoder, and a study compares latents with directions of the site "
                "where they are read: take a dictionary of one site (clamp, generate and splice take transcoders)"
            )
        if self.config.site is not None and self.model.site(self.config.site) != self.dictionary.site:
            raise Mismatch(
                f"the study is about site {self.config.site}, dictionary {self.dictionary.name} "
                f"reads {self.dictionary.site}; leave site out or choose another dictionary"
            )
        if self.config.directions and self.dictionary.d_in != self.model.cfg.d_model:
            raise Mismatch(
                f"directions are of the stream, and cannot be added at {self.dictionary.site}; leave them out"
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

    @cached_property
    def statistics(self) -> Statistics:
        """From the dictionary's index; without one from the study's own prompts (few tokens: only a rough guide)."""
        if self.index is not None:
            densities, read = self.index.densities, int(self.index.meta["tokens"])
            source, index = "the dictionary's latent index", self.index
            return Statistics(densities, densities, index.maxima, index.signs, read, source)
        about = self.codes([*self.config.positive, *self.config.test])
        other = self.codes([*self.config.negative, *self.config.control])
        active, usual = torch.cat([about, other]) != 0, (other != 0).float().mean(0)
        maxima = torch.maximum(about.abs().amax(0), other.abs().amax(0))
        source = "the prompts of this study (the dictionary has no index)"
        signs = torch.where(about.sum(0) + other.sum(0) < 0, -1.0, 1.0)
        return Statistics(active.float().mean(0), usual, maxima, signs, len(active), source)

    @cached_property
    def decoder_lengths(self) -> Float[Tensor, "width"]:
        """Of each latent's decoder row: what one unit of its activation writes."""
        return self.dictionary.decoder_rows(torch.arange(self.dictionary.width)).float().norm(dim=-1).cpu()

    def codes(self, prompts: Sequence[str]) -> Float[Tensor, "tokens width"]:
        """The activation of each latent at every counted token of some prompts."""
        runs = prompt_runs(self.model, self.dictionary, prompts, batch_size=self.config.batch_size)
        site = self.dictionary.site
        return torch.cat([self.dictionary.encode(run[site][counted]).dense().float().cpu() for run, counted in runs])

    def along(self, prompts: Sequence[str], latent: int) -> list[list[tuple[str, float]]]:
        """(token, activation of the latent) of every counted token, prompt by prompt, turned as in `strongest`."""
        sign = float(self.statistics.signs[latent])
        wanted, texts = torch.tensor([latent], device=self.model.device), []
        for run, counted in prompt_runs(self.model, self.dictionary, prompts, batch_size=self.config.batch_size):
            for ids, x, mask in zip(run.tokens.ids, run[self.dictionary.site], counted):
                values = self.dictionary.latent_activations(x[mask.to(x.device)], wanted)[:, 0].tolist()
                texts.append(
                    [(self.model.str_token(int(i)), sign * v) for i, v in zip(ids[mask.to(ids.device)], values)]
                )
        return texts

    def fires_on(self, latent: int, n: int = 8) -> list[str]:
        """The tokens that the latent is most active on: of the index's text, without an index of the study's pairs."""
        evidence = self.evidence(latent)
        if evidence is not None:
            return [token for token, _, _ in evidence.tokens[:n]]
        tokens, codes = self.own
        mass = Counter[str]()
        for token, value in zip(tokens, codes[:, latent].abs().tolist()):
            mass[token] += value
        return [token for token, value in mass.most_common(n) if value]

    @cached_property
    def own(self) -> tuple[list[str], Float[Tensor, "tokens width"]]:
        """Every counted token of the pairs, and the activation of each latent at it."""
        prompts, tokens = [*self.config.positive, *self.config.negative], []
        for run, counted in prompt_runs(self.model, self.dictionary, prompts, batch_size=self.config.batch_size):
            tokens += [self.model.str_token(int(i)) for i in run.tokens.ids[counted.to(run.tokens.ids.device)]]
        return tokens, self.codes(prompts)

    def strongest(self, prompts: Sequence[str]) -> Float[Tensor, "prompts width"]:
        """The activation of each latent that is largest in magnitude on each prompt, over its counted tokens; latents
        that are negative on the whole are turned around."""
        return self.statistics.signs * pooled(
            self.model, self.dictionary, prompts, "max", batch_size=self.config.batch_size
        )

    def evidence(self, latent: int) -> Evidence | None:
        return None if self.index is None else self.index.evidence(latent)

    def written_tokens(self, latent: int, n: int = 8) -> tuple[list[str], list[str]]:
        """Tokens whose logits the latent's decoder row raises and lowers most; none for sites off the stream."""
        if self.dictionary.d_out != self.model.cfg.d_model:
            return [], []
        up, _, down, _ = extreme_tokens(self.model, self.dictionary, torch.tensor([latent]), n=n)
        name = self.model.str_token
        return [name(i) for i in up[0].tolist()], [name(i) for i in down[0].tolist()]
