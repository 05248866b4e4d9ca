"""ONE table: the rows of all families, by the model types that they read."""

from typing import Any

from ...errors import UnknownName
from .families import PLAIN, Family
from .hybrids import HYBRIDS
from .older import OLDER
from .variants import VARIANTS

FAMILIES = (*PLAIN, *VARIANTS, *HYBRIDS, *OLDER)
BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def family_of(config: Any) -> Family:
    """The table's row for a Hugging Face config. Raises `UnknownName` for an architecture without one."""
    if config.model_type not in BY_TYPE:
        raise UnknownName(
            f"no family row for model type {config.model_type!r}: load_model infers one; Model takes family=Family(...)"
        )
    return BY_TYPE[config.model_type]
