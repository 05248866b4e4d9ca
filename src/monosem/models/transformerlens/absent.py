"""Names of TransformerLens that are not taken over: why, and what to use."""

from collections.abc import Mapping
from typing import NoReturn

from ...errors import UnknownName


class AbsentName(UnknownName, AttributeError):
    """A name of TransformerLens that has no counterpart of the same meaning; the message says what to use."""


def refuse(kind: str, name: str, reasons: Mapping[str, str]) -> NoReturn:
    """Raises `AbsentName` for a name that has a reason, else what Python raises for an attribute that is not there."""
    if name in reasons:
        raise AbsentName(f"TransformerLens's {name} is not here: {reasons[name]}")
    raise AttributeError(f"{kind!r} object has no attribute {name!r}")


ABSENT_FROM_CACHES: dict[str, str] = {}
