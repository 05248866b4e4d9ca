"""Which experts are chosen in each pass, in precisions where rounding alone may turn a router's choice.

Two passes that compute the same in another order (patterns as numbers or not) differ by rounding. In bf16 that is
enough for a router to choose another expert where two are almost equally good, and from that token on the passes are no
longer comparable. So tokens from the first such one on are left out of a comparison.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..model import Model
from ..places.points import Point, point, unwrap


class Choices:
    """Attributes: left_out: how many tokens were left out of comparisons so far, of `compared`."""

    def __init__(self, model: Model):
        sites = [branch.site("expert_indices") for branch in model.branches()] if _rounds(model) else []
        self.routers = [point(model, site) for site in sites if model.has(site)]
        self.known: dict[int, tuple[Tensor, list[Tensor]]] = {}  # with the logits themselves, so that no id is reused
        self.left_out = self.compared = 0

    def of(self, forward: Callable[[], Tensor]) -> Tensor:
        """The logits of a pass; which experts it chooses is noted."""
        if not self.routers:
            return forward()
        seen: list[Tensor] = []
        with ExitStack() as hooks:
            for place in self.routers:
                hook: Any = partial(_note, seen, place)
                hooks.callback(place.module.register_forward_hook(hook).remove)
            logits = forward()
        self.known[id(logits)] = logits, seen
        return logits

    def alike(self, one: Tensor, other: Tensor) -> Bool[Tensor, "batch pos"] | None:
        """The tokens up to the first of each row for which other experts are chosen; None: all, or not known."""
        if id(one) not in self.known or id(other) not in self.known or one.shape != other.shape:
            return None
        chosen = [self.known[id(logits)][1] for logits in (one, other)]
        if any(a.shape != b.shape for a, b in zip(*chosen)) or len(chosen[0]) != len(chosen[1]):
            return None
        same = torch.stack([(a == b).all(-1).reshape(one.shape[:2]) for a, b in zip(*chosen)]).all(0)
        kept = same.long().cumprod(1).bool()
        self.left_out, self.compared = self.left_out + int((~kept).sum()), self.compared + kept.numel()
        return None if bool(kept.all()) or not bool(kept.any()) else kept

    @property
    def note(self) -> str:
        """What the user is told; "" where nothing was left out."""
        if not self.left_out:
            return ""
        return (
            f"rounding turned a router's choice: {self.left_out} of {self.compared} tokens, from the first other "
            "expert of a row on, are left out where passes are compared"
        )


def _rounds(model: Model) -> bool:
    return model.dtype in (torch.bfloat16, torch.float16)


def _note(seen: list[Tensor], place: Point, module: nn.Module, args: Any, output: Any) -> None:
    value = args[place.item] if place.when == "in" else unwrap(output, place.item)
    seen.append(value.sort(-1).values)
