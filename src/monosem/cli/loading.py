"""Loading what a command names, checked against each other."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data import Document
    from ..dictionaries import Dictionary
    from ..models import Model


def dictionary_and_model(
    dictionary: str,
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quiet: bool = False,
) -> "tuple[Dictionary, Model]":
    """The dictionary and its model, or the model that is named instead.

    Raises:
        Mismatch: the dictionary is not of this model.
        UnknownName: there is no such dictionary or model.
    """
    from ..dictionaries import load_dictionary
    from ..models import load_model

    learned = load_dictionary(dictionary)
    language_model = load_model(model or learned.model_name, device=device, dtype=dtype, quiet=quiet)
    learned.to(language_model.device)
    learned.check(language_model)
    return learned, language_model


def corpus(model: "Model", paths: "Sequence[str | Path]", seed: int = 0) -> "Iterable[Document]":
    """Documents of several paths, mixed and shuffled; conversations in the model's chat format where it has one.

    Raises:
        BadFile: a path is missing or cannot be read as text.
    """
    from ..data import interleaved, texts

    chat = model if getattr(model.tokenizer, "chat_template", None) else None
    return interleaved([texts(path, chat=chat) for path in paths], seed)
