"""Whole numbers as users give them: of Python, NumPy or torch, one or several, or a slice of them."""

from collections.abc import Iterable
from typing import Any

from ..errors import BadInput

LARGEST = 1e17  # of activations and weights: the squares of some thousand such numbers still sum up in float32


def whole_number(given: Any, what: str) -> int:
    """One number. Raises `BadInput` for anything else, bools too: a mask would be read as the numbers 0 and 1.

    Args:
        what: the numbers are called in the error.
    """
    number = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(number, bool) or not isinstance(number, int):
        raise BadInput(
            f"{what}: {number!r} is not a whole number; give one such as 3 or -1, a list of them, or a slice"
        )
    return number


def count(given: Any, what: str, least: int | None = 1) -> int:
    """A whole number of at least `least` (None: any that is no text and no bool); else raises `BadInput`."""
    number = given.item() if hasattr(given, "item") and getattr(given, "ndim", 0) == 0 else given
    if isinstance(number, bool) or not isinstance(number, int) or (least is not None and number < least):
        raise BadInput(f"{what} is a whole number{'' if least is None else f', {least} or more'}, not {given!r}")
    return number


def above(given: Any, what: str, least: float = 0.0, others: str = "") -> float:
    """A finite number above `least`. Raises `BadInput` for anything else; `others` says what may stand for it."""
    number = given.item() if hasattr(given, "item") and getattr(given, "ndim", 0) == 0 else given
    if isinstance(number, bool) or not isinstance(number, int | float) or not least < number < float("inf"):
        raise BadInput(f"{what} is {others}a number above {least:g}, not {given!r}")
    return number


def seed_of(given: Any) -> int:
    """A seed that torch takes. Raises `BadInput` for anything else."""
    seed = count(given, "seed", least=None)
    if not -(2**63) <= seed < 2**64:
        raise BadInput(f"seed is a whole number from 0 to 2**64 - 1, not {seed}")
    return seed


def whole_numbers(given: Any, what: str) -> list[int]:
    """One number or several as a list; errors as `whole_number`."""
    listed = given.tolist() if hasattr(given, "tolist") else given
    several = isinstance(listed, Iterable) and not isinstance(listed, str)
    return [whole_number(number, what) for number in (listed if several else [listed])]


def whole_slice(given: slice, what: str) -> slice:
    """The slice with bounds of Python's own numbers. Raises `BadInput` for other bounds, and for a step of 0."""
    start, stop, step = (
        None if bound is None else whole_number(bound, what) for bound in (given.start, given.stop, given.step)
    )
    if step == 0:
        raise BadInput(f"{what} as a slice have a step other than 0")
    return slice(start, stop, step)


def ranges(numbers: list[int]) -> str:
    """`0 to 29`, or the numbers one by one where some are left out."""
    whole = numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 1
    return f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))
