"""What a session hangs on modules: a list of actions on one side of a module, each on what the last one made of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..places.points import given, rewrap, unwrap, with_given

Action = Callable[[Tensor], Tensor]


def on_a_graph(x: Tensor) -> Tensor:
    """What a stream between branches is a sum of: so the sum is on the graph when it is captured, and the captured
    tensor is the one that native code goes on with. A leaf put in at the norm would be the norm's alone."""
    return x if x.requires_grad else x.detach().requires_grad_()


def hook(module: nn.Module, when: str, item: int, actions: list[Action]) -> torch.utils.hooks.RemovableHandle:
    if when == "in":
        return module.register_forward_pre_hook(partial(_before, actions, item), with_kwargs=True)
    return module.register_forward_hook(partial(_after, actions, item))


def _before(actions: list[Action], item: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    old = value = given(module, args, kwargs, item)
    for action in actions:
        value = action(value)
    return None if value is old else with_given(module, args, kwargs, item, value)


def _after(actions: list[Action], item: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    old = value = unwrap(output, item)
    for action in actions:
        value = action(value)
    return None if value is old else rewrap(output, value, item)
