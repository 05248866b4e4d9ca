"""What a native forward calls its cache of keys and values: the name changes between transformers releases."""

import inspect
import typing

from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache

from ..native import Native


def cache_name(module: nn.Module) -> str | None:
    """The parameter of a module's forward that takes its cache; None for a forward without one.

    `past_key_values` until transformers 5.23, `cache` from 5.24 on, `layer_past` in older blocks: so the parameter is
    known by its type, and by a name that says cache or past where nothing is annotated.
    """
    parameters = inspect.signature(module.forward).parameters
    typed = (name for name, parameter in parameters.items() if _takes_cache(parameter.annotation))
    named = (name for name in ("cache", "past_key_values", "past_key_value", "layer_past") if name in parameters)
    return next(typed, None) or next(named, None)


def new_cache(model: Native) -> Cache:
    """An empty cache, with windows where the config has some. A config that counts an encoder's layers (BART's decoder
    alone) would make too few: such a cache grows."""
    if model.encoder is not None:  # of the decoder's own keys, and of those made of what the encoder gave
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    layers = getattr(model.config, "num_hidden_layers", model.cfg.n_layers)
    return DynamicCache(config=model.config) if layers == model.cfg.n_layers else DynamicCache()


def _takes_cache(annotation: object) -> bool:
    """Whether an annotation such as `Cache | None` names transformers' Cache, as an object or as text."""
    if isinstance(annotation, str):
        return any(word.strip(" '\"").rpartition(".")[2] == "Cache" for word in annotation.split("|"))
    options = typing.get_args(annotation) or (annotation,)
    return any(isinstance(option, type) and issubclass(option, Cache) for option in options)
