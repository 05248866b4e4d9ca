"""The unpatched run of a sweep: what each layer was called with, and how to call a layer on some of the tokens.

A layer that is called on the tokens from a position on reads the keys and values of the earlier ones from the unpatched
run, or begins with the memory that they left there (linear attention, state spaces, convolutions).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import MonosemError
from ...models import Model, Site, TokenBatch
from ...models.places.points import unwrap
from ...models.running.cache import cache_name
from ...models.running.moment import EditLike

# layer argument -> its axis of token positions (of queries, in a mask)
_TOKEN_AXIS = {"attention_mask": -2, "position_ids": -1, "cache_position": -1, "position_embeddings": -2}
# what mixers keep of earlier tokens that is no list of keys and values
_MEMORIES = {"linear_attention", "lightning_attention", "state_space", "convolution", "recurrent"}


class NotApplicable(MonosemError):
    """The layers of this model, or edits around the sweep, do not allow the fast way; the message says why."""


@dataclass
class Cache:
    """What a native layer is given as its cache.

    It joins earlier keys and values to the new ones. A layer with a memory finds there the last columns that its
    convolution read, and its state, and leaves new ones.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    conv: Tensor | None = None
    state: Tensor | None = None
    is_compileable = False

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
            return keys, values
        rows = len(keys)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), keys], 2),
            torch.cat([self.values.expand(rows, -1, -1, -1), values], 2),
        )

    def get_seq_length(self, *_: Any) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def get_conv_state(self, *_: Any, **__: Any) -> Tensor | None:
        return self.conv

    def get_recurrent_state(self, *_: Any, **__: Any) -> Tensor | None:
        return self.state

    def get_linear_cache(self, *_: Any) -> Tensor | None:  # MiniMax
        return self.state

    def set_linear_cache(self, _: int, state: Tensor) -> None:
        self.state = state

    def is_recording_past(self, *_: Any) -> bool:
        return False

    def update_conv_state(self, new: Tensor, *_: Any, conv_kernel_size: int, **__: Any) -> Tensor:
        whole = new if self.conv is None else torch.cat([self.conv, new], -1)
        whole = nn.functional.pad(whole, (max(conv_kernel_size - whole.shape[-1], 0), 0))
        self.conv = whole[..., -conv_kernel_size:].clone()
        return whole

    def update_recurrent_state(self, state: Tensor, *_: Any, **__: Any) -> Tensor:
        self.state = state
        return state

    def before(self, start: int, rows: int = 1) -> "Cache":
        """A cache for rows that begin at `start`, of one with the keys of all tokens and the memory of those before."""
        if self.keys is None or self.values is None:
            keys, values = None, None
        else:
            keys, values = self.keys[:, :, :start], self.values[:, :, :start]
        # native code writes into a memory
        conv, state = (None if x is None else x.expand(rows, *x.shape[1:]).clone() for x in (self.conv, self.state))
        return Cache(keys, values, conv, state)


@dataclass
class Tape:
    """The unpatched run, layer by layer.

    Attributes:
        arguments: what each layer was called with, by name, without the stream and the cache.
        stream: input of each layer and the output of the last, `pos d_model` each.
        caches: keys and values of each layer from `first` on, after rotation, as the layer gave them to its cache; and
            its memory of the first `reached` tokens.
        cache_names: what each layer calls its cache. first: the first layer that is called.
        continues: whether layers can be called on some of the tokens; else rows hold all of them.
    """

    model: Model
    tokens: TokenBatch
    arguments: list[dict[str, Any]]
    stream: list[Float[Tensor, "pos d_model"]]
    caches: list[Cache]
    cache_names: list[str | None]
    first: int = 0
    continues: bool = True
    reached: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, tokens: TokenBatch, edits: Sequence[EditLike], first: int = 0) -> Self:
        """Record a run of one row, to call its layers from `first` on.

        Raises:
            NotApplicable: called by hand, the layers do not give what they gave in the run.
        """
        if model.ambient_edits or any(edit.site.name != "embed" for edit in edits):
            raise NotApplicable("edits inside the layers are on (model.editing)")
        if model.encoder is not None:
            raise NotApplicable("its layers also read what the encoder gives")
        if model.loops:
            raise NotApplicable("one of its blocks is called for several layers")
        if model.family.opening:
            raise NotApplicable("its first block puts the stream through a norm before its branches")
        if model.carries:
            raise NotApplicable(f"its layers hand on {model.carries} beside the stream")
        arguments: list[dict[str, Any]] = []
        stream: list[Tensor] = []

        def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, others = _by_name(block, args, kwargs)
            stream.append(hidden[0])
            arguments.append(others)

        handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in model.blocks]
        try:
            last = Site("resid_post", model.cfg.n_layers - 1)
            stream_end = model.run(tokens, capture=[last], edits=edits, logits=False)[last][0]
        finally:
            for handle in handles:
                handle.remove()
        names = [cache_name(block) for block in model.blocks]
        tape = cls(model, tokens, arguments, [*stream, stream_end], [Cache() for _ in names], names, first)
        try:
            tape._fill()
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise NotApplicable(f"a layer cannot be called by itself ({type(error).__name__}: {error})") from error
        return tape

    def _fill(self) -> None:
        """Call each layer once more with a cache that keeps; then check that half a run gives the end of the whole.

        A layer that keeps nothing, or does not go on from its memory (Mamba 1 here), is called on all tokens.
        """
        layers = range(self.first, len(self.arguments))
        for layer in layers:
            cache = Cache() if self.cache_names[layer] else None
            out = self._call(layer, self.stream[layer][None], 0, None, cache)
            if not _near(out[0], self.stream[layer + 1]):
                raise NotApplicable(f"layer {layer}, called by itself, does not give what it gives in the model")
            if cache is not None and cache.keys is not None:
                self.caches[layer] = Cache(cache.keys, cache.values)
            elif cache is None or (cache.conv is None and cache.state is None):
                self.continues &= all(slot.mixer.row.pointwise for slot in self.model.anatomy[layer].slots)
        half = len(self.stream[0]) // 2
        if self.continues:
            hidden = self.stream[self.first][None, half:].expand(2, -1, -1)
            for layer in layers:
                hidden = self.call(layer, hidden, half)
            self.continues = _near(hidden, self.stream[-1][half:].expand_as(hidden))
        if not self.continues and not any(self._remembers(layer) for layer in layers):
            raise NotApplicable("the layers do not run on from a part of the tokens")

    def call(
        self, layer: int, hidden: Float[Tensor, "rows suffix d_model"], start: int
    ) -> Float[Tensor, "rows suffix d_model"]:
        """The native layer on the tokens from `start` on; what it needs of earlier ones comes from the base run."""
        if not start or not self.cache_names[layer]:
            return self._call(layer, hidden, 0, None, None)
        self.prepare(layer, start)
        return self._call(layer, hidden, start, None, self.caches[layer].before(start, len(hidden)))

    def _call(self, layer: int, hidden: Tensor, start: int, stop: int | None, cache: Cache | None) -> Tensor:
        end = len(self.stream[0]) if stop is None else stop
        cut = partial(_cut, start=start, stop=end, rows=len(hidden))
        kwargs = {name: cut(name, value) for name, value in self.arguments[layer].items()}
        if kwargs.get("attention_mask", 0) is None and self._attends(layer):
            kwargs["attention_mask"] = _causal(end, hidden.device)[:, :, start:]
        given = {} if cache is None else {str(self.cache_names[layer]): cache}
        return unwrap(self.model.blocks[layer](hidden, **kwargs, **given))

    def prepare(self, layer: int, start: int) -> None:
        """Bring a layer's memory to the first `start` tokens; groups of cells come in their order."""
        if not start or not self._remembers(layer):
            return
        whole, reached = self.caches[layer], self.reached.get(layer, 0)
        if reached > start:
            whole.conv, whole.state, reached = None, None, 0
        if reached < start:
            memory = whole.before(reached)
            self._call(layer, self.stream[layer][None, reached:start], reached, start, memory)
            whole.conv, whole.state = memory.conv, memory.state
        self.reached[layer] = start

    def _remembers(self, layer: int) -> bool:
        return any(slot.mixer.kind in _MEMORIES for slot in self.model.anatomy[layer].slots)

    def _attends(self, layer: int) -> bool:
        """Whether a mask of pairs of tokens means something to it."""
        slots = self.model.anatomy[layer].slots
        return not self._remembers(layer) or any(slot.mixer.row.attends for slot in slots)

    @property
    def memory(self) -> int:
        """How many numbers a layer remembers of a row, at most."""
        memories = [(cache.conv, cache.state) for cache in self.caches]
        return max(sum(x.numel() // len(x) for x in pair if x is not None) for pair in memories)


def _by_name(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """A call's stream, and its other arguments by their names, without the cache (there is none in a run)."""
    bound, cache = inspect.signature(block.forward).bind(*args, **kwargs), cache_name(block)
    (_, hidden), *others = bound.arguments.items()
    named: dict[str, Any] = {}
    for name, value in others:
        several = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named |= value if several else {name: value}
    return hidden, {name: value for name, value in named.items() if name != cache}


def _cut(name: str, value: Any, start: int, stop: int, rows: int) -> Any:
    """An argument for `rows` rows of the tokens from `start` to `stop`."""
    if isinstance(value, tuple):
        return tuple(_cut(name, part, start, stop, rows) for part in value)
    if not isinstance(value, Tensor):
        return value
    if (axis := _TOKEN_AXIS.get(name)) is not None and value.shape[axis] > 1:
        value = value.narrow(axis, start, stop - start)
        value = value[..., :stop] if name == "attention_mask" else value
    return value.expand(rows, *value.shape[1:]) if value.ndim > 1 and len(value) == 1 else value


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()


def _near(values: Float[Tensor, "*rows d_model"], expected: Float[Tensor, "*rows d_model"]) -> bool:
    """Every token by itself: a few tokens have norms a hundred times as large as others, and would hide them."""
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 1e-1
    distance, size = (values - expected).float().norm(dim=-1), expected.float().norm(dim=-1)
    return bool((distance <= tolerance * size).all())
