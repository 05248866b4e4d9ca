"""A model's turn: who works with a Hugging Face model's modules has them alone, and in eval mode.

A pass leaves hooks on modules, replaces forwards and switches the attention function for its length. Another thread
that ran the same modules meanwhile would run through all of these, so it waits. There is one lock for each Hugging Face
model, however many `Model`s wrap it.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import BadInput


class TrainingMode(UserWarning):
    """A model was in training mode; its passes put it in eval mode, and back after."""


@dataclass
class Turns:
    """What belongs to one Hugging Face model, whoever wraps it.

    Attributes:
        lock: held for the length of a turn; the thread that holds it may take it again.
        depth: how many turns of the holder are inside each other. in_pass: hooks of a session are on the modules.
        warned: the user knows that the model is in training mode.
    """

    lock: Any = field(default_factory=RLock)
    depth: int = 0
    in_pass: bool = False
    warned: bool = False


_TURNS: WeakKeyDictionary[nn.Module, Turns] = WeakKeyDictionary()
_GUARD = Lock()


@contextmanager
def turn(hf: nn.Module) -> Iterator[Turns]:
    """Within, no other thread runs the model, and none of its modules is in training mode; what was, is again after."""
    with _GUARD:
        turns = _TURNS.setdefault(hf, Turns())
    with turns.lock:
        training = [] if turns.depth else _in_training(hf)
        if training and not turns.warned:
            turns.warned = True
            warnings.warn(
                f"{type(hf).__name__} is in training mode ({len(training)} modules: hf.train(), or an adapter that was "
                "added), whose dropout makes every run another: each pass is made in eval mode, and training mode is "
                "back after it",
                TrainingMode,
                stacklevel=3,
            )
        for module in training:
            module.training = False
        turns.depth += 1
        try:
            yield turns
        finally:
            turns.depth -= 1
            for module in training:
                module.training = True


def _in_training(hf: nn.Module) -> list[nn.Module]:
    """The modules in training mode, by a walk that is quicker than `hf.modules()`: it precedes every pass."""
    found, stack, seen = [], [hf], {id(hf)}
    while stack:
        module = stack.pop()
        if module.training:
            found.append(module)
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                stack.append(child)
    return found


def refuse_inference_mode(what: str, hf: nn.Module | None = None) -> None:
    """Raises `BadInput` where torch keeps no graph: inside `torch.inference_mode()`, or of weights made inside it."""
    if torch.is_inference_mode_enabled():
        raise BadInput(f"{what} needs gradients, and torch.inference_mode() keeps none: use torch.no_grad() around it")
    if hf is not None and any(parameter.is_inference() for parameter in hf.parameters()):
        raise BadInput(
            f"{what} needs gradients, and the model was loaded inside torch.inference_mode(): load it outside"
        )
