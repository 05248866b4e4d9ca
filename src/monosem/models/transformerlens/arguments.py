"""Arguments of TransformerLens that calls here do not have: what they mean here, or why they are refused."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

from ...errors import BadInput
from .absent import HOOKS

P, R = ParamSpec("P"), TypeVar("R")
Reader = Callable[[str, Any, dict[str, Any]], None]  # its name, its value, and the other arguments, which it may change


def refused(reason: str, *same: Any) -> Reader:
    """An argument whose values in `same` are what happens anyway."""

    def check(name: str, value: Any, others: dict[str, Any]) -> None:
        if not (value is None or isinstance(value, bool | int | float)) or value not in same:
            _refuse(name, value, reason)

    return check


def _do_sample(name: str, value: Any, others: dict[str, Any]) -> None:
    """True draws at temperature 1 where none is given, as in TransformerLens; False takes the likeliest token."""
    temperature = others.get("temperature")
    if value and temperature is None:
        others["temperature"] = 1.0
    elif value and temperature == 0:
        _refuse(name, value, "temperature=0 takes the likeliest token, and draws nothing")
    elif not value:
        others["temperature"] = 0.0  # TransformerLens reads no temperature then


def _refuse(name: str, value: Any, reason: str) -> NoReturn:
    raise BadInput(f"TransformerLens's {name}={value!r} is not followed here: {reason}")


_MASK = "pass what the tokenizer gives, with its attention_mask, as the prompts"
_SIDE = "padding changes no result of a real token; runs pad right, and generation pads left"
HOOK_ARGUMENTS = {
    "reset_hooks_end": refused(HOOKS, True),
    "clear_contexts": refused("what hooks keep in hook.ctx ends with their call", True, False),
    "padding_side": refused(_SIDE, None),
    "attention_mask": refused(_MASK, None),
    "past_kv_cache": refused("use model.generate(...)", None),
}
CACHE_ARGUMENTS = {
    **HOOK_ARGUMENTS,
    "incl_bwd": refused("use run = model.run(x, capture=..., grad=True) and torch.autograd.grad", False),
    "return_cache_object": refused("use dict(cache.items())", True),
    "device": refused("use cache.to(device)", None),
}
TOKEN_ARGUMENTS = {
    "padding_side": refused(_SIDE, None),
    "move_to_device": refused("use ids.cpu()", True),
    "truncate": refused("prompts over the context are refused: shorten or split them", False),
}
GENERATE_ARGUMENTS = {
    "do_sample": _do_sample,
    "use_past_kv_cache": refused("the cache changes no result", True, False),
    "verbose": refused("", True, False),
    "freq_penalty": refused('use sampling={"repetition_penalty": ...}, which transformers defines', 0, 0.0),
    "repetition_penalty": refused('use sampling={"repetition_penalty": ...}', 1, 1.0),
    "eos_token_id": refused('use sampling={"eos_token_id": ...} or stop_at_eos=False', None),
    "prepend_bos": refused("use model.to_tokens(texts, prepend_bos=...) as the prompts", None),
    "padding_side": refused(_SIDE, None),
    "attention_mask": refused(_MASK, None),
    "return_type": refused("a Generation holds texts, ids, logits and what was captured", None),
    "output_logits": refused("use generation.logits, or model.run(generation.ids)", False),
    "return_cache": refused("use capture=[...]", False),
    "names_filter": refused("use capture=[...]", None),
}


def accepting(
    arguments: Mapping[str, Callable[[str, Any, dict[str, Any]], None]],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: these arguments of TransformerLens are read, translated or refused with a reason."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            for name in [name for name in options if name in arguments]:
                value = options.pop(name)
                arguments[name](name, value, options)
            return function(*args, **options)

        return cast(Callable[P, R], call)

    return decorate
