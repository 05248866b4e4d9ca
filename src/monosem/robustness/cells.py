"""How a report writes numbers."""

from collections.abc import Mapping
from typing import Any

from ..pages import number, percent
from ..statistics import Interval
from .attacks import ATTACKS


def another(strength: float | None, attack: float | None) -> str:
    """The strength of a control, where it is another than the attack's."""
    return "" if strength == attack or strength is None else f" at {strength:g}"


def p_value(value: float) -> str:
    said = number(value, 4)
    return said if said.startswith("<") else f"= {said}"


def at_strength(one: Mapping[str, Any]) -> str:
    unit = ATTACKS[one["attack"]].unit
    return f" at {one['strength']:g} ({unit})" if one["strength"] is not None and unit else ""


def share(one: Mapping[str, Any]) -> str:
    return f"{one['count']}/{one['of']} [{percent(one['low'])} to {percent(one['high'])}]"


def interval(one: Mapping[str, Any] | None) -> str:
    if one is None or one.get("value") is None:
        return "–"
    ends = [float("nan") if one[name] is None else float(one[name]) for name in ("value", "low", "high")]
    value, low, high = Interval(*ends)
    return f"{number(value, 2)} [{number(low, 2)}, {number(high, 2)}]"
