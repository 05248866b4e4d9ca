"""The part of a Hugging Face model that reads text: the whole of a language model, a part of a multimodal one.

A multimodal model (Gemma 3, Qwen-VL, LLaVA, ...) holds a language model beside its towers for pictures and sound. It is
run as a whole on text alone, which goes past the towers; places, sizes and config belong to the language model.

transformers' models are imported where one is asked for, not at the top: they bring torch's distributed tensors and
compiler with them, seconds of processor time, of which what reads dictionaries or directions alone has no use.
"""

from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn

from ..errors import BadInput, UnknownName, cause

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def text_config(hf: "PreTrainedModel") -> Any:
    """The config of the language model (of an encoder–decoder: of the decoder); the model's own where it is nothing
    else.

    Raises:
        UnknownName: several language models.
    """
    kind = type(hf).__name__
    try:
        config = hf.config.get_text_config()
    except ValueError as error:
        raise UnknownName(f"{kind} holds several language models ({cause(error)}): pass one of them") from error
    return config


def encoder_of(hf: "PreTrainedModel") -> "PreTrainedModel | None":
    """The encoder of an encoder–decoder; None for every other model."""
    if not hf.config.is_encoder_decoder:
        return None
    encoder = hf.get_encoder()
    return encoder if encoder is not hf and is_pretrained(encoder) else None


def is_multimodal(hf: "PreTrainedModel") -> bool:
    """Whether the language model is a part of it."""
    return encoder_of(hf) is None and text_config(hf) is not hf.config


def language_model(hf: "PreTrainedModel") -> nn.Module:
    """The module with embedding, blocks and final norm, without the unembedding; of an encoder–decoder, what has both.

    Raises:
        UnknownName: as `text_config`, or no module with that config.
    """
    if encoder_of(hf) is not None:
        return hf.base_model
    if not is_multimodal(hf):
        if hf.base_model is not hf:
            return hf.base_model
        inner = (child for child in hf.children() if is_pretrained(child))  # Llama 4, Mllama
        return next(inner, hf)
    part = hf.get_decoder()
    if getattr(part, "config", None) is not text_config(hf):
        raise UnknownName(f"no language model was found in {type(hf).__name__}: pass the language model itself")
    return part.base_model if is_pretrained(part) else part


def is_pretrained(thing: Any) -> "TypeGuard[PreTrainedModel]":
    """Whether it is a `transformers.PreTrainedModel`."""
    from transformers import PreTrainedModel

    return isinstance(thing, PreTrainedModel)


def refuse_compiled(hf: "PreTrainedModel") -> None:
    """Hooks that are added to a compiled module, or inside one, never fire, and torch does not say so."""
    for path, module in hf.named_modules():
        forward = getattr(module, "forward", None)
        if module._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable"):
            where = f"its module {path}" if path else "it"
            raise BadInput(
                f"{where} is compiled by torch.compile, which hooks cannot look into; pass the model as loaded"
            )
