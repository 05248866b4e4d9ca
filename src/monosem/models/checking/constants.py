"""Which number of the config a constant is that was measured."""

import re
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..language import text_config
from .finding import NotFound


def constant(hf: PreTrainedModel, found: float, of: Tensor) -> str | None:
    """The config's name of a constant that was measured at numbers of this dtype."""
    return attribute(hf, lambda value: abs(value / found - 1), limit(of))


def attribute(hf: PreTrainedModel, error: Callable[[float], float], limit: float) -> str | None:
    """The number of the config with the smallest error; of equal numbers one that is called a scale.

    Raises:
        NotFound: another number explains what was seen as well.
    """
    named = sorted(vars(text_config(hf)).items(), key=lambda item: not re.search(r"scal|mult|cap", item[0]))
    numbers = [(name, float(v)) for name, v in named if isinstance(v, int | float) and not isinstance(v, bool) and v]
    fits = sorted(((error(value), name, value) for name, value in numbers), key=lambda fit: fit[0])
    fits = [fit for fit in fits if fit[0] <= limit]
    if not fits:
        return None
    best, name, value = fits[0]
    for also, other, number in fits[1:]:
        if number != value and also < 4 * best:
            both = f"{name} ({value:g}) and {other} ({number:g})"
            raise NotFound(f"which number of the config is a constant of the model: {both} fit alike")
    return name


def ratio(one: Tensor, other: Tensor) -> float | None:
    """The constant c with one = c · other; None if no constant fits."""
    a, b = one.double(), other.double()
    c = float((a * b).sum() / (b * b).sum().clamp(min=1e-30))
    return c if distance(c * b, a) <= limit(one) else None


def limit(of: Tensor) -> float:
    """The relative error up to which numbers of this dtype count as equal."""
    return 1e-4 if of.dtype in (torch.float32, torch.float64) else 2e-2


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference relative to the largest number; infinite for NaN."""
    worst = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)
    return float(worst.nan_to_num(torch.inf))
