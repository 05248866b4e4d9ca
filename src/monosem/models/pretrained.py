"""Whether something is a Hugging Face model, asked without importing transformers' models before there is one.

Their base class brings torch's distributed tensors and compiler with it: seconds of processor time, of which what only
reads dictionaries, directions or probes has no use.
"""

from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_pretrained(thing: Any) -> "TypeGuard[PreTrainedModel]":
    """Whether it is a `transformers.PreTrainedModel`."""
    from transformers import PreTrainedModel

    return isinstance(thing, PreTrainedModel)
