"""What a Hugging Face model is, and where: asked without importing transformers' models before there is one.

Their base class brings torch's distributed tensors and compiler with it: seconds of processor time, of which what only
reads dictionaries, directions or probes has no use.
"""

from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from ..errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_pretrained(thing: Any) -> "TypeGuard[PreTrainedModel]":
    """Whether it is a `transformers.PreTrainedModel`."""
    from transformers import PreTrainedModel

    return isinstance(thing, PreTrainedModel)


def device_of(hf: "PreTrainedModel") -> torch.device:
    """The device of the embedding; where its weights are elsewhere, the one that accelerate brings them to."""
    embedding: Any = hf.get_input_embeddings()
    if embedding.weight.device.type == "meta":
        for module in embedding.modules():
            hook = getattr(module, "_hf_hook", None)  # one, or several in one
            for one in getattr(hook, "hooks", [hook]):
                if (computes := getattr(one, "execution_device", None)) is not None:
                    return torch.device(computes)
    return embedding.weight.device  # type: ignore[no-any-return]


def refuse_compiled(hf: "PreTrainedModel") -> None:
    """Hooks that are added to a compiled module, or inside one, never fire, and torch does not say so."""
    for path, module in hf.named_modules():
        forward = getattr(module, "forward", None)
        if module._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable"):
            where = f"its module {path}" if path else "it"
            raise BadInput(
                f"{where} is compiled by torch.compile, which hooks cannot look into; pass the model as loaded"
            )
