"""Operations along a direction by name, and their amounts in units that mean the same for every direction."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from .. import edits
from ..edits import DirectionLike, Edit
from ..errors import BadInput, check_name
from ..models import Model
from .strength import in_norms

Unit = Literal["own", "norms", "nats"]
Takes = Literal["direction", "activation", "share", "degrees"]
FIRST: dict[Takes, float] = {"direction": 0.1, "activation": 0.1, "share": 1.0, "degrees": 10.0}  # lengths in norms


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes:
        make: from a direction (and an amount) to an edit.
        takes: what the amount is in: multiples of the "direction" at its own length, units of "activation", a "share"
            of what is there, "degrees"; None where there is no amount.
    """

    make: Any
    takes: Takes | None

    def edits(self, model: Model, direction: DirectionLike, amount: float) -> list[Edit]:
        """The edits of an amount in the operation's own unit."""
        if self.make is edits.ablate_writes:
            return edits.ablate_writes(model, direction, amount)
        return [self.make(direction)] if self.takes is None else [self.make(direction, amount)]


OPERATIONS = {
    "add": Operation(edits.add, "direction"),
    "ablate": Operation(edits.ablate, "share"),
    "ablate_writes": Operation(edits.ablate_writes, "share"),
    "scale": Operation(edits.scale_along, "share"),
    "reflect": Operation(edits.reflect, None),
    "set": Operation(edits.set_to, "activation"),
    "floor": Operation(edits.floor, "activation"),
    "ceiling": Operation(edits.ceiling, "activation"),
    "push": Operation(edits.push, "activation"),
    "add_by_cosine": Operation(edits.add_by_cosine, "activation"),
    "slerp": Operation(edits.slerp, "degrees"),
    "erase": Operation(edits.erase, None),
}


def own_amount(
    model: Model, direction: DirectionLike, do: str, amount: float | None = None, unit: Unit = "own"
) -> float:
    """An amount in the operation's own unit.

    Args:
        do: a name of `OPERATIONS`.
        amount: default 1.
        unit: "own"; "norms", times the stream's usual norm (`in_norms`); "nats": what `iso_kl` is to start from.

    Raises:
        UnknownName: no such operation or unit. BadInput: an amount of an operation that has none, a length where a
            share or an angle is meant, 0 nats, or an amount that is not finite.
    """
    check_name("operation", do, OPERATIONS)
    check_name("unit", unit, ("own", "norms", "nats"))
    takes, size = OPERATIONS[do].takes, 1.0 if amount is None else float(amount)
    if takes is None and (amount is not None or unit != "own"):
        raise BadInput(f"{do!r} has no amount: give neither an amount nor a unit")
    if not math.isfinite(size):
        raise BadInput(f"an amount is a finite number, not {size}")
    if unit == "nats":
        if not size or takes is None:
            raise BadInput("an amount in nats is above 0, or below 0 for the other way")
        size = math.copysign(FIRST[takes], size)
    if unit == "own" or takes is None or (unit == "nats" and takes not in ("direction", "activation")):
        return size
    if takes not in ("direction", "activation"):
        meant = "an angle" if takes == "degrees" else "a share"
        raise BadInput(f"{do!r} takes {meant}, not a length: norms go with add, set, floor, ceiling, push")
    added = in_norms(model, direction, size)
    return added if takes == "direction" else added * float(direction.vector.norm())
