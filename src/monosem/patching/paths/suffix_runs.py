"""Runs that begin at a layer and at a token: what lies before both is as in the base run.

Attention is causal, so a change at one token leaves the earlier ones as they were: later tokens read the keys and
values that the earlier ones have in the base run. The native model does the work, as in generation with a cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from ...edits import Edit
from ...models import Model, Site, TokenBatch
from ...models.running.cache import cache_name
from ...models.running.run import inputs, last_only, moment, starting
from ...models.running.session import Session

_REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)


class _Layer(DynamicLayer):
    """A cache of one layer that holds the base run's earlier tokens, and gives them to any number of copies of it."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        copies = len(key_states) // len(self.keys)
        return (
            torch.cat([self.keys.repeat(copies, 1, 1, 1), key_states], 2),
            torch.cat([self.values.repeat(copies, 1, 1, 1), value_states], 2),
        )


@dataclass(frozen=True, eq=False)
class Prefix:
    """The tokens of the base run before `column`, as later ones see them; `column` 0: there are none.

    Attributes:
        tokens: the whole base batch. layers: keys and values of each layer before `column`.
    """

    model: Model
    tokens: TokenBatch
    column: int
    layers: Sequence[_Layer]

    @staticmethod
    def of(model: Model, tokens: TokenBatch, column: int) -> "Prefix":
        """Record it, and check that the model runs on from there as it runs as a whole; else `column` is 0."""
        none = Prefix(model, tokens, 0, ())
        if column == 0 or model.looks_ahead or model.encoder is not None:
            return none
        try:
            cache = DynamicCache()  # without a config: it keeps all tokens, also those that left a sliding window
            whole = model.run(tokens, capture="resid_pre.0", logits="last")
            with torch.no_grad(), Session(model, (), ()):
                model.hf(
                    **inputs(model, tokens), **{str(cache_name(model.hf)): cache}, use_cache=True, logits_to_keep=1
                )
            past: list[Any] = cache.layers
            held = [_Layer(layer.keys[:, :, :column], layer.values[:, :, :column]) for layer in past]
            prefix = Prefix(model, tokens, column, held)
            again = prefix.run(0, whole["resid_pre.0"][None, :, column:])[0]
        except _REFUSALS:  # a model that keeps its past in another way
            return none
        assert whole.logits is not None
        tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 1e-1
        near = (again - whole.logits).abs().max() <= tolerance * whole.logits.abs().max()
        return prefix if bool(near) else none

    def run(
        self,
        layer: int,
        stream: Float[Tensor, "copies batch suffix d_model"],
        edits: Sequence[Edit] = (),
    ) -> Float[Tensor, "copies batch vocab"]:
        """Logits after the last token of runs that enter block `layer` with `stream` from `column` on.

        Raises:
            EditDidNotFire: an edit that reached no token.
        """
        model, (copies, batch) = self.model, stream.shape[:2]
        hidden = stream.to(model.dtype).flatten(0, 1)
        tokens = self.tokens.repeated(copies)
        start = Site("resid_pre", layer), hidden
        if not self.column:
            out = model.run(tokens, edits=edits, start=start, logits="last").logits
            assert out is not None
            return out.unflatten(0, (copies, batch))
        suffix = TokenBatch(tokens.ids[:, self.column :], tokens.mask[:, self.column :])
        late, last = starting(model, start, suffix), last_only(model, suffix, "last")
        with torch.no_grad(), late, Session(model, (), edits) as session, last:
            options = {str(cache_name(model.hf)): Cache(layers=list(self.layers)), "use_cache": True}
            call = partial(model.hf, **inputs(model, tokens, self.column), **options)
            out = session.forward(moment(tokens, tokens.lengths, self.column), call).logits
        session.check_fired()
        return out[:, 0].unflatten(0, (copies, batch))
