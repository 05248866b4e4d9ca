"""Loading what a command names, checked against each other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from .options import MODELS, Device, Dtype, Machine, option

if TYPE_CHECKING:
    from ..dictionaries import Dictionary
    from ..models import Model


@dataclass(frozen=True)
class DictionaryMachine:
    """Which model a dictionary is used with, and how it runs."""

    model: Annotated[str | None, option("--model", "MODEL", f"Another model than the dictionary's own: {MODELS}.")] = (
        None
    )
    dtype: Dtype = None
    device: Device = None

    def load(self, dictionary: str, quiet: bool) -> "tuple[Dictionary, Model]":
        """The dictionary and its model, or the model that is named instead.

        Raises:
            Mismatch: the dictionary was made for another model.
            UnknownName: there is no such dictionary or model.
        """
        from ..dictionaries import load_dictionary

        learned = load_dictionary(dictionary)
        model = Machine(self.dtype, self.device).load(self.model or learned.model_name, quiet)
        learned.to(model.device)
        learned.check(model)
        return learned, model
