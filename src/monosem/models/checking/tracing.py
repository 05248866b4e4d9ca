"""One forward pass with every module's input and output noted: what a model's modules do, whatever they are called."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..places.points import unwrap
from ..turns import turn


@dataclass(frozen=True, eq=False)
class Call:
    """A module's first tensor input, and its output (the first, where it returns several)."""

    path: str
    module: nn.Module
    read: Tensor
    wrote: Tensor
    outputs: int  # 1 for a tensor, else the length of the tuple

    def within(self, path: str) -> str | None:
        """The path from `path` down to this module, None if it is not inside."""
        return self.path[len(path) + 1 :] if self.path.startswith(f"{path}.") else None


@torch.no_grad()
def trace(hf: PreTrainedModel, ids: Tensor) -> list[Call]:
    """The calls of all modules in the order in which they ended."""
    calls: list[Call] = []
    inputs: dict[nn.Module, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                inputs[module] = x.clone()
                return

    def after(module: nn.Module, args: tuple[Any, ...], output: Any, *, path: str) -> None:
        several = isinstance(output, tuple)
        wrote = unwrap(output) if isinstance(output, Tensor) or several or hasattr(output, "logits") else None
        if isinstance(wrote, Tensor) and module in inputs:
            calls.append(Call(path, module, inputs.pop(module), wrote.clone(), len(output) if several else 1))

    with turn(hf), ExitStack() as hooks:
        linear = ""  # what is inside a linear layer (an adapter's parts) is not looked at
        for path, module in hf.named_modules():
            if linear and path.startswith(f"{linear}."):
                continue
            linear = path if is_linear(module) else linear
            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(partial(after, path=path)).remove)
        hf(input_ids=ids, use_cache=False)
    return calls


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def is_linear(module: nn.Module) -> bool:
    """Any kind of linear layer: packed and adapted ones keep the names of their sizes."""
    return hasattr(module, "in_features") or type(module).__name__ == "Conv1D"
