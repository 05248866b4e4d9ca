"""Rows that begin alike: the prompts of several arms go through the blocks before the first edit once for all arms."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..places.places import Places

KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)  # not their heirs, which may hold more


@contextmanager
def once(model: Places, layer: int, rows: int, times: int) -> Iterator[None]:
    """In the first pass inside, the blocks before `layer` compute the first `rows` rows alone.

    What they give, and the keys and values that they leave in the cache, is repeated for the other rows. The batch is
    the same `rows` prompts `times` times over, and no edit or capture lies before `layer`. Later passes (each row has
    tokens of its own by then) are left alone; so is a block that takes what cannot be cut into rows with certainty.
    """
    if (
        layer == 0 or times == 1 or model.loops or model.encoder is not None
    ):  # whose blocks are given the source's rows as well
        yield
        return
    with model.turn():
        blocks = list(model.blocks[:layer])
        own = [block.__dict__.get("forward") for block in blocks]  # accelerate puts one on the instance
        for number, block in enumerate(blocks):
            block.forward = _First(block, number, rows, times)
        try:
            yield
        finally:
            for block, forward in zip(blocks, own):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


class _First:
    """A block's forward that cuts its first call."""

    def __init__(self, block: nn.Module, number: int, rows: int, times: int):
        self.forward: Callable[..., Any] = block.forward
        self.number, self.rows, self.times = number, rows, times
        self.called = False

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        first, self.called = not self.called, True
        given = [*args, *kwargs.values()]
        cache = next((value for value in given if isinstance(value, Cache)), None)
        if cache is None or not (first and self._may_cut(hidden, cache) and all(map(_plain, given))):
            return self.forward(hidden, *args, **kwargs)
        cut = partial(_mapped, change=lambda x: x[: self.rows] if x.ndim > 1 and len(x) == len(hidden) else x)
        out = self.forward(cut(hidden), *map(cut, args), **{name: cut(value) for name, value in kwargs.items()})
        layer: Any = cache.layers[self.number]
        layer.batch_select_indices(torch.arange(self.rows, device=hidden.device).repeat(self.times))
        return _mapped(out, lambda x: x.repeat(self.times, *[1] * (x.ndim - 1)))

    def _may_cut(self, hidden: Tensor, cache: Cache) -> bool:
        """With as many columns as rows, an axis of positions could be taken for the rows."""
        whole = hidden.ndim == 3 and len(hidden) == self.rows * self.times != hidden.shape[1]
        return whole and len(cache.layers) > self.number and type(cache.layers[self.number]) in KEYS_AND_VALUES


def _plain(value: Any) -> bool:
    """What is cut by rows or the same for all of them."""
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Tensor | Cache)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Every tensor in the value changed."""
    if isinstance(value, tuple):
        return tuple(_mapped(part, change) for part in value)
    return change(value) if isinstance(value, Tensor) else value
