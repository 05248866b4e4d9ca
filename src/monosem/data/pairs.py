"""Checked lists of prompts for contrasts: a concept's positive side against its negative side."""

import random
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

from ..errors import BadInput


@dataclass(frozen=True)
class PromptPairs:
    """Positive and negative prompts; with `paired`, the i-th of one side belongs to the i-th of the other.

    Attributes:
        groups: the group of each pair (its style, topic, author, ...; a name, a number), so that whole groups can be
            held out.
        prefilter: where a prefilter chose them, by which tokens, and how many of each side it dropped.

    Raises:
        BadInput: a side that is empty or not a list of strings, a blank prompt, (paired) sides of different length, or
            groups that are not one for each pair, or that cannot be compared (lists, NaN).

    A prompt that occurs twice on a side, or on both sides, gives a warning: it weighs double, or cancels.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    paired: bool = True
    groups: Sequence[Hashable] | None = None
    prefilter: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for side, prompts in (("positive", self.positive), ("negative", self.negative)):
            _check_side(side, prompts)
            object.__setattr__(self, side, tuple(prompts))
        n, m = len(self.positive), len(self.negative)
        if self.paired and n != m:
            raise BadInput(f"{n} positive but {m} negative prompts: pairs need as many of each (or say paired=False)")
        if self.groups is not None:
            if not self.paired or isinstance(self.groups, str) or len(self.groups) != n:
                raise BadInput(f"groups are one name for each of the {n} pairs (paired=True)")
            object.__setattr__(self, "groups", _names(self.groups))
        both = set(self.positive) & set(self.negative)
        if both:
            warnings.warn(f"{len(both)} prompts stand on both sides, e.g. {min(both)!r:.60}", stacklevel=3)

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

    def take(self, pairs: Sequence[int]) -> Self:
        """Some of the pairs, by number, in the order given."""
        return self._of(pairs, pairs)

    def split(self, held_out: float = 0.5, *, seed: int = 0) -> tuple[Self, Self]:
        """(kept, held out), drawn by `seed`; pairs stay together, each side is split in the same ratio.

        Of two groups or more, whole groups are held out, as near to the share `held_out` as they come.

        Raises:
            BadInput: a part would have no prompts on one side.
        """
        rng, sizes = random.Random(seed), (len(self.positive), len(self.negative))
        if self.groups is not None and len(set(self.groups)) > 1:
            drawn = _groups_drawn(self.groups, held_out, rng)
            out = [i for i, group in enumerate(self.groups) if group in drawn]
            return self._parted([out, out])
        orders = [rng.sample(range(n), n) for n in sizes]
        if self.paired:
            orders[1] = orders[0]
        cuts = [round(n * held_out) for n in sizes]
        if any(not 0 < cut < n for cut, n in zip(cuts, sizes)):
            raise BadInput(f"cannot hold out {held_out:.0%} of {sizes[0]} positive and {sizes[1]} negative prompts")
        return self._parted([order[:cut] for order, cut in zip(orders, cuts)])

    def _parted(self, out: Sequence[Sequence[int]]) -> tuple[Self, Self]:
        """(kept, held out), each in its order; `out` has the numbers of the prompts of each side that are held out."""
        sizes = (len(self.positive), len(self.negative))
        kept = [sorted({*range(n)}.difference(numbers)) for numbers, n in zip(out, sizes)]
        return self._of(*kept), self._of(*map(sorted, out))

    def _of(self, positive: Sequence[int], negative: Sequence[int]) -> Self:
        groups = None if self.groups is None else [self.groups[i] for i in positive]
        sides = [self.positive[i] for i in positive], [self.negative[i] for i in negative]
        return type(self)(*sides, self.paired, groups, self.prefilter)


def _names(groups: Any) -> tuple[Hashable, ...]:
    """The groups, of an array or a tensor its numbers."""
    names = tuple(groups.tolist() if hasattr(groups, "tolist") else groups)
    for name in names:
        if not isinstance(name, Hashable) or name != name:
            raise BadInput(f"{name!r} cannot be a group: groups are names or numbers, one for each pair")
    return names


def _groups_drawn(groups: Sequence[Hashable], share: float, rng: random.Random) -> set[Hashable]:
    """Groups in random order until they hold as near to `share` of the pairs as they come; one is left at least."""
    sizes = Counter(groups)
    order = rng.sample(list(sizes), len(sizes))
    held = list(accumulate(sizes[group] for group in order[:-1]))
    cut = min(range(len(held)), key=lambda i: abs(held[i] - share * len(groups)))
    return set(order[: cut + 1])


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
        repeated = Counter(prompts).most_common(1)[0][0]
        warnings.warn(f"{double} {side} prompts are repeated, e.g. {repeated!r:.60}", stacklevel=4)
