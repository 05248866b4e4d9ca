"""A model cut after its first few blocks, and to a part of its vocabulary: enough to see each kind of block that it
has, and how its logits are made, in a fraction of the time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..language import language_model, text_config
from ..native import device_of
from ..turns import turn
from .tracing import Call, trace

FEWEST = 2  # blocks: one that reads another one's output is among them
LOGITS = 1024  # each is made in the same way, and a large vocabulary takes longer than a block


class Shortened:
    """A model that has, within, only the first of its blocks, up to the last one that is the first of its kind, and the
    first of its logits.

    Attributes:
        layers: path of the list of blocks in the language model.
        enough: how many blocks it has.
    """

    def __init__(self, hf: PreTrainedModel, layers: str):
        self.hf, self.layers = hf, layers
        whole: Any = language_model(hf).get_submodule(layers)
        self.enough = _enough(text_config(hf), whole)

    def trace(self) -> list[Call]:
        """The calls of a pass within, over six tokens. A model that does not run with fewer blocks keeps them all."""
        ids = torch.arange(6, device=device_of(self.hf))[None]
        try:
            with self.within():
                return trace(self.hf, ids)
        except Exception:  # whatever a forward of foreign code raises: it counts its blocks elsewhere
            self.enough = text_config(self.hf).num_hidden_layers
        with self.within():
            return trace(self.hf, ids)

    @contextmanager
    def within(self) -> Iterator[None]:
        hf, (parent, _, name) = self.hf, self.layers.rpartition(".")
        holder, config = language_model(hf).get_submodule(parent), text_config(hf)
        whole: Any = getattr(holder, name)
        before = config.num_hidden_layers
        with turn(hf), _narrowed(hf.get_output_embeddings()):
            try:
                config.num_hidden_layers = self.enough
                setattr(holder, name, whole[: self.enough])
                yield
            finally:
                setattr(holder, name, whole)
                config.num_hidden_layers = before


@contextmanager
def _narrowed(head: Any) -> Iterator[None]:
    """Within, a plain unembedding has its first rows alone: views of the same numbers."""
    if type(head) is not nn.Linear or head.weight.is_meta or len(head.weight) <= LOGITS:
        yield
        return
    whole = dict(head.named_parameters(recurse=False))
    try:
        for name, value in whole.items():
            setattr(head, name, nn.Parameter(value[:LOGITS], requires_grad=False))
        yield
    finally:
        for name, value in whole.items():
            setattr(head, name, value)


def _enough(config: Any, blocks: nn.ModuleList) -> int:
    """How many blocks show each kind: modules of the same classes and shapes, and the same words in the config."""
    lists = [value for value in vars(config).values() if isinstance(value, list | tuple) and len(value) == len(blocks)]
    kinds: dict[Any, int] = {}
    for number, block in enumerate(blocks):
        modules = tuple((path, type(module), *_shapes(module)) for path, module in block.named_modules())
        kinds.setdefault((modules, tuple(str(each[number]) for each in lists)), number)
    return min(max(FEWEST, max(kinds.values()) + 1), len(blocks))


def _shapes(module: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    return ((name, values.shape) for name, values in module._parameters.items() if values is not None)
