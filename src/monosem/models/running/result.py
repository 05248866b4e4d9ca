"""What one forward pass left behind; it is also the activation cache that TransformerLens users know."""

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadInput
from ..transformerlens.cache import Cache


class Run(Cache):
    """`run.logits`, and `run["resid_post.15"]` or `run["resid_post", 15]` for every captured site.

    As a mapping (`keys`, `items`, `in`, iteration) it goes by TransformerLens names, `blocks.15.hook_resid_post`.
    Some sites are computed from captured ones when they are asked for: see `monosem.models.running.activations`.

    Attributes:
        tokens: the token batch that went in (with its mask; padded columns hold no meaning).
        logits: `batch pos vocab`; `batch vocab` for `logits="last"`; None for `logits=False`.
        activations: captured site -> tensor, shapes as listed in `monosem.models.places.sites`.
        columns: columns of the kept tokens, `batch kept`, if the run kept only some `positions`; else None.
        heads: the kept heads, if the run kept only some; else None.
        edited: the sites that edits wrote.
        has_batch_dim: False after `remove_batch_dim()`.
    """

    def last(self, site: Any) -> Float[Tensor, "batch ..."]:
        """The activation at the last real token of each row. Raises `BadInput` when the run did not keep it."""
        value = self[site]
        if not self.has_batch_dim:
            raise BadInput("the batch dimension was removed; take [-1] of the position axis")
        tokens = self.tokens
        if self._site(site).in_source and tokens.source is not None:
            if value.shape[self._site(site).query_axis] != tokens.source.ids.shape[1]:
                raise BadInput(f"this run kept some tokens of the source; take what it kept of {self._site(site)}")
            return value[torch.arange(len(value), device=value.device), tokens.source.last.to(value.device)]
        at = tokens.last.to(value.device)
        if self.columns is not None:
            is_last = self.columns.to(value.device) == at[:, None]
            if not bool(is_last.any(1).all()):
                raise BadInput("this run did not keep the last token of every row; give it positions='last'")
            at = is_last.long().argmax(1)
        elif self._site(site).shape[-1] == "vocab" and self.logits is not None and self.logits.ndim == 2:
            at = torch.zeros_like(at)  # of a run with logits="last" it is the only one
        if self._site(site).query_axis == 2:
            value = value.transpose(1, 2)
        return value[torch.arange(len(self.tokens), device=value.device), at]

    def remove_batch_dim(self) -> Self:
        """Drop the batch axis of every activation of a run over one prompt, in place, as in TransformerLens."""
        if self.has_batch_dim and len(self.tokens) != 1:
            raise BadInput(
                f"the batch dimension can only be removed from a run over one prompt, not {len(self.tokens)}"
            )
        if self.has_batch_dim:
            self.activations = {site: value[0] for site, value in self.activations.items()}
            self.has_batch_dim = False
        return self

    def next_tokens(self, n: int = 5) -> list[list[tuple[str, float]]]:
        """The n likeliest tokens after each prompt, the likeliest first, each with its probability.

        Raises:
            BadInput: a run without logits.
        """
        if self.logits is None:
            raise BadInput("this run made no logits: run it without logits=False")
        logits = self.logits
        if logits.ndim == 3:
            logits = logits[torch.arange(len(logits), device=logits.device), self.tokens.last.to(logits.device)]
        best = logits.float().softmax(-1).topk(min(n, logits.shape[-1]))
        named = zip(best.values.tolist(), best.indices.tolist())
        return [[(self.model.str_token(token), p) for p, token in zip(*row)] for row in named]

    @property
    def str_tokens(self) -> list[list[str]]:
        return [[self.model.str_token(token) for token in row] for row in self.tokens.rows()]
