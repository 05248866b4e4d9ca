"""Checked lists of prompts for contrasts: a concept's positive side against its negative side."""

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from ..errors import BadInput


@dataclass(frozen=True)
class PromptPairs:
    """Positive and negative prompts; with `paired`, the i-th of one side belongs to the i-th of the other.

    Raises:
        BadInput: a side that is empty or not a list of strings, a blank prompt, or (paired) sides of different length.

    A prompt that occurs twice on a side, or on both sides, gives a warning: it weighs double, or cancels.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    paired: bool = True

    def __post_init__(self) -> None:
        for side, prompts in (("positive", self.positive), ("negative", self.negative)):
            _check_side(side, prompts)
            object.__setattr__(self, side, tuple(prompts))
        n, m = len(self.positive), len(self.negative)
        if self.paired and n != m:
            raise BadInput(f"{n} positive but {m} negative prompts: pairs need as many of each (or say paired=False)")
        both = set(self.positive) & set(self.negative)
        if both:
            warnings.warn(f"{len(both)} prompts stand on both sides, e.g. {min(both)!r}", stacklevel=3)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The pairs.

        Raises:
            BadInput: the prompts are not paired.
        """
        if not self.paired:
            raise BadInput("these prompts are not paired; use .positive and .negative")
        return iter(zip(self.positive, self.negative, strict=True))

    @property
    def prompts(self) -> list[str]:
        """All prompts, the positive ones first."""
        return [*self.positive, *self.negative]

    def split(self, held_out: float = 0.5, *, seed: int = 0) -> tuple[Self, Self]:
        """(kept, held out), drawn by `seed`; pairs stay together, each side is split in the same ratio.

        Raises:
            BadInput: a part would have no prompts on one side.
        """
        rng = random.Random(seed)
        sizes = (len(self.positive), len(self.negative))
        orders = [rng.sample(range(n), n) for n in sizes]
        if self.paired:
            orders[1] = orders[0]
        cuts = [round(n * held_out) for n in sizes]
        if any(not 0 < cut < n for cut, n in zip(cuts, sizes)):
            raise BadInput(f"cannot hold out {held_out:.0%} of {sizes[0]} positive and {sizes[1]} negative prompts")
        sides = (self.positive, self.negative)
        kept = [[side[i] for i in sorted(order[cut:])] for side, order, cut in zip(sides, orders, cuts)]
        out = [[side[i] for i in sorted(order[:cut])] for side, order, cut in zip(sides, orders, cuts)]
        return type(self)(kept[0], kept[1], self.paired), type(self)(out[0], out[1], self.paired)


def _check_side(side: str, prompts: Sequence[str]) -> None:
    listed = not isinstance(prompts, str) and not hasattr(prompts, "keys")  # a tokenizer's output gives its keys
    if not listed or not all(isinstance(prompt, str) for prompt in prompts):
        raise BadInput(f"the {side} prompts must be a list of strings")
    if not prompts:
        raise BadInput(f"there are no {side} prompts")
    blank = [number for number, prompt in enumerate(prompts, 1) if not prompt.strip()]
    if blank:
        raise BadInput(f"{side} prompt {blank[0]} of {len(prompts)} is blank")
    double = len(prompts) - len(set(prompts))
    if double:
        repeated = next(prompt for prompt in prompts if list(prompts).count(prompt) > 1)
        warnings.warn(f"{double} {side} prompts are repeated, e.g. {repeated!r}", stacklevel=4)
