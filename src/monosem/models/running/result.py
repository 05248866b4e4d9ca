"""What one forward pass left behind; it is also the activation cache that TransformerLens users know."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput, UnknownName, did_you_mean
from ..places.sites import Site
from ..tokens import TokenBatch
from ..transformerlens import cache as attribution
from .derived import derived

if TYPE_CHECKING:
    from ..model import Model


@dataclass
class Run:
    """`run.logits`, and `run["resid_post.15"]` or `run["resid_post", 15]` for every captured site.

    As a mapping (`keys`, `items`, `in`, iteration) it goes by TransformerLens names, `blocks.15.hook_resid_post`.
    Some sites are computed from captured ones when they are asked for: see `monosem.models.running.derived`.

    Attributes:
        tokens: the token batch that went in (with its mask; padded columns hold no meaning).
        logits: `batch pos vocab`; `batch vocab` for `logits="last"`; None for `logits=False`.
        activations: captured site -> tensor, shapes as listed in `monosem.models.places.sites`.
        columns: columns of the kept tokens, `batch kept`, if the run kept only some `positions`; else None.
        heads: the kept heads, if the run kept only some; else None.
        has_batch_dim: False after `remove_batch_dim()`.
    """

    model: "Model"
    tokens: TokenBatch
    logits: Tensor | None
    activations: dict[Site, Tensor] = field(default_factory=dict)
    columns: Int[Tensor, "batch kept"] | None = None
    heads: tuple[int, ...] | None = None
    has_batch_dim: bool = True

    def __getitem__(self, site: Any) -> Tensor:
        wanted = self._site(site)
        if (found := self.activations.get(wanted)) is not None or (found := derived(self, wanted)) is not None:
            return found
        held = [str(s) for s in self.activations]
        hint = did_you_mean(str(wanted), held) or f"; captured: {', '.join(held) or 'nothing'}"
        raise UnknownName(f"{wanted} was not captured{hint}; name it in capture=[...]")

    def __contains__(self, site: Any) -> bool:
        return self._site(site) in self.activations

    def _site(self, value: Any) -> Site:
        """The site; negative layers count from the end."""
        site = Site.parse(value)
        if site.layer is not None and site.layer < 0:
            return Site(site.name, site.layer + self.model.cfg.n_layers)
        return site

    # ------------------------------------------------------------------ as a mapping
    def _named(self) -> dict[str, Tensor]:
        return {site.hook_name: value for site, value in self.activations.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._named())

    def __len__(self) -> int:
        return len(self.activations)

    def keys(self) -> KeysView[str]:
        return self._named().keys()

    def values(self) -> ValuesView[Tensor]:
        return self._named().values()

    def items(self) -> ItemsView[str, Tensor]:
        return self._named().items()

    # ------------------------------------------------------------------ the stream taken apart
    accumulated_resid = attribution.accumulated_resid
    decompose_resid = attribution.decompose_resid
    stack_head_results = attribution.stack_head_results
    get_neuron_results = attribution.get_neuron_results
    stack_neuron_results = attribution.stack_neuron_results
    apply_ln_to_stack = attribution.apply_ln_to_stack
    logit_attrs = attribution.logit_attrs

    # ------------------------------------------------------------------ parts
    def last(self, site: Any) -> Float[Tensor, "batch ..."]:
        """The activation at the last real token of each row. Raises `BadInput` when the run did not keep it."""
        value = self[site]
        if not self.has_batch_dim:
            raise BadInput("the batch dimension was removed; take [-1] of the position axis")
        at = self.tokens.last.to(value.device)
        if self.columns is not None:
            found = self.columns.to(value.device) == at[:, None]
            if not bool(found.any(1).all()):
                raise BadInput("this run did not keep the last token of every row; give it positions='last'")
            at = found.long().argmax(1)
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

    @property
    def str_tokens(self) -> list[list[str]]:
        return [[self.model.str_token(token) for token in row] for row in self.tokens.rows()]
