"""What the parts of inference share: a part that is not found, a module's path, the class that transformers records."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from ..language import is_multimodal, language_model
from .tracing import Call


class NotFound(Exception):
    """Which part was not found."""


def first(calls: Iterable[Call], what: str) -> Call:
    for call in calls:
        return call
    raise NotFound(what)


def path_of(hf: PreTrainedModel, call: Call) -> str:
    """A module's path in the language model."""
    for path, module in language_model(hf).named_modules():
        if module is call.module:
            return path
    raise NotFound(f"{call.path} lies outside the language model")


def recorded_class(hf: PreTrainedModel, what: str) -> type | None:
    holders = (language_model(hf),) if is_multimodal(hf) else (hf, language_model(hf))
    table: dict[str, Any] = next((t for one in holders if (t := getattr(one, "_can_record_outputs", None))), {})
    recorder = table.get(what)
    recorder = recorder[0] if isinstance(recorder, list | tuple) and recorder else recorder
    module = getattr(recorder, "target_class", recorder)
    return module if isinstance(module, type) else None
