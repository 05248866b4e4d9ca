"""What was computed from weights is kept while these weights stay as they are."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


class Remembering:
    """`dictionary.remembered("norms", make)` calls `make` once, and again after the weights were changed or moved.

    PyTorch counts a tensor's changes; those that go around it (`weight.data`, a NumPy view) are not noticed.
    """

    parameters: Callable[..., Iterator[nn.Parameter]]

    def remembered(self, name: str, make: Callable[[], T]) -> T:
        """Not for what depends on more than the weights and the name."""
        weights = [*self.parameters()]
        if any(weight.is_inference() for weight in weights):  # these have no count of changes
            return make()
        held: dict[str, tuple[Any, Any]] = self.__dict__.setdefault("_remembered", {})
        state = [(weight.data_ptr(), weight._version) for weight in weights]
        if name not in held or held[name][0] != state:
            held[name] = state, make()
        found: T = held[name][1]
        return found
