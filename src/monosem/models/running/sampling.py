"""How the next token is chosen: the likeliest, or as settings say that transformers' own processors follow.

Generation is greedy and plain unless it is told otherwise; what a model's folder asks for (`generation_config`) is said
when the model is loaded and followed with `sampling="model"`.
"""

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput, UnknownName, cause, did_you_mean
from ..native import Native
from ..numbers import seed_of
from ..tokens import TokenBatch

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedModel

Sampling = Literal["model"] | Mapping[str, Any] | None
Choose = Callable[[Int[Tensor, "batch pos"], Float[Tensor, "batch vocab"]], Int[Tensor, "batch"]]

# setting of transformers' GenerationConfig -> its value that changes nothing
_DRAW: dict[str, Any] = {  # these act only where tokens are drawn
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_SHAPE: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "sequence_bias": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
}


def _number(value: Any, least: float, most: float = float("inf")) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and least <= value <= most


_FLAG = (lambda value: isinstance(value, bool), "True or False")
_WHOLE = (lambda value: _number(value, 0) and isinstance(value, int), "a whole number, 0 or more")
_SHARE = (lambda value: _number(value, 0, 1), "a number from 0 to 1")
# setting -> what its values must be; transformers finds out later, in its own words, or never
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "do_sample": _FLAG,
    "remove_invalid_values": _FLAG,
    "renormalize_logits": _FLAG,
    "temperature": (lambda value: _number(value, 0), "0 (greedy) or a number above it"),
    "repetition_penalty": (lambda value: _number(value, 0) and value > 0, "a number above 0"),
    "exponential_decay_length_penalty": (
        lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(_number(one, 0) for one in value),
        "a pair (number of tokens, factor)",
    ),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "min_length", "min_new_tokens"), _WHOLE),
    **dict.fromkeys(("top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"), _SHARE),
}
# settings of token ids, which may stand in lists
_OF_IDS = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")
FOLLOWED = {"do_sample": False} | _DRAW | _SHAPE
# what is not done here -> its value that changes nothing, and its name in words
_REFUSED: dict[str, tuple[Any, str]] = {
    "num_beams": (1, "beam search"),
    "num_beam_groups": (1, "beam search"),
    "diversity_penalty": (0.0, "beam search"),
    "constraints": (None, "constrained beam search"),
    "force_words_ids": (None, "constrained beam search"),
    "num_return_sequences": (1, "several continuations of a prompt"),
    "penalty_alpha": (0.0, "contrastive search"),
    "dola_layers": (None, "DoLa decoding"),
    "guidance_scale": (1.0, "classifier-free guidance"),
    "watermarking_config": (None, "watermarks"),
    "prompt_lookup_num_tokens": (None, "assisted generation"),
    "assistant_early_exit": (None, "assisted generation"),
    "use_mtp": (False, "multi-token prediction"),
    "token_healing": (False, "token healing"),
    "stop_strings": (None, "stopping at strings"),
    "max_time": (None, "a time limit"),
    "encoder_repetition_penalty": (1.0, "an encoder"),
    "encoder_no_repeat_ngram_size": (0, "an encoder"),
}
_TOP_K = 50  # what transformers draws from where neither the folder nor the caller says how many


def asked_for(hf: "PreTrainedModel") -> dict[str, Any]:
    """The settings of a model's folder that change what it generates under transformers: name -> value."""
    config = getattr(hf, "generation_config", None)
    neutral = FOLLOWED | {name: value for name, (value, _) in _REFUSED.items()}
    given = {name: getattr(config, name, None) for name in neutral}
    return {
        name: value
        for name, value in given.items()
        if value is not None and value != neutral[name] and (name not in _DRAW or given["do_sample"])
    }


def sampling_notes(hf: "PreTrainedModel") -> list[str]:
    """A line for the user where the folder asks for more than the likeliest token."""
    asked = asked_for(hf)
    if not asked:
        return []
    shown = ", ".join(f"{name}={value!r}" if len(repr(value)) < 40 else name for name, value in asked.items())
    return [f"its folder asks for {shown}; generation here is greedy and plain, sampling='model' follows the folder"]


def settings_of(
    model: Native, sampling: Sampling, temperature: float | None, top_k: int | None, top_p: float | None
) -> dict[str, Any]:
    """The settings that a generation follows; empty for plain greedy choice.

    Raises:
        UnknownName: a setting that transformers does not have. BadInput: one that cannot be followed here.
    """
    if isinstance(sampling, Mapping):
        chosen = {name: _plain(value) for name, value in sampling.items()}
    elif sampling == "model":
        chosen = asked_for(model.hf)
        if chosen.get("do_sample"):
            chosen = {"top_k": getattr(model.hf.generation_config, "top_k", None)} | chosen
            chosen["top_k"] = _TOP_K if chosen["top_k"] is None else chosen["top_k"]
    elif sampling is None:
        chosen = {}
    else:
        raise BadInput(f"sampling is 'model', or settings such as {{'repetition_penalty': 1.2}}, not {sampling!r}")
    beside = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen |= {name: _plain(value) for name, value in beside.items() if value is not None}
    _check(model, chosen)
    if temperature is not None:
        chosen["do_sample"] = chosen["temperature"] > 0
    elif "do_sample" not in chosen:
        chosen["do_sample"] = bool(chosen.get("temperature"))
    greedy_by_word = chosen.get("temperature") == 0  # then settings of draws may stand beside it
    idle = [name for name in chosen if name in _DRAW and chosen[name] not in (None, _DRAW[name])]
    if idle and not chosen["do_sample"] and not greedy_by_word and sampling != "model":
        add = "do_sample=True" if "temperature" in chosen else "temperature=1.0"
        raise BadInput(f"{idle[0]} shapes draws, and this generation is greedy: add {add}, or leave it out")
    if chosen["do_sample"] and chosen.get("temperature") == 0:
        raise BadInput("do_sample=True draws tokens, and temperature=0 does not: leave one of them out")
    if not chosen.get("do_sample"):
        return {name: value for name, value in chosen.items() if name in _SHAPE and value != _SHAPE[name]}
    return {name: value for name, value in chosen.items() if name in FOLLOWED}


def _check(model: Native, chosen: Mapping[str, Any]) -> None:
    for name, value in chosen.items():
        if name in _REFUSED:
            neutral, words = _REFUSED[name]
            if value not in (None, neutral):
                raise BadInput(f"{name}={value!r}: {words} is not done here; use model.hf.generate, or leave it out")
        elif name not in FOLLOWED:
            raise UnknownName(
                f"generation has no setting {name!r}{did_you_mean(name, FOLLOWED)}; it follows {', '.join(FOLLOWED)}"
            )
        if value is None:
            continue
        if name in _VALUES and not _VALUES[name][0](value):
            raise BadInput(f"{name} is {_VALUES[name][1]}, not {value!r}")
        if name in _OF_IDS and (bad := [token for token in _flat(value) if not _is_id(model, token)]):
            raise BadInput(f"{name}: {bad[0]!r} is no token id; {model.name} has ids 0 to {model.cfg.d_vocab - 1}")


def _plain(value: Any) -> Any:
    """A number of NumPy or torch as Python's, an array as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _flat(value: Any) -> list[Any]:
    """The items of lists in lists."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return [item for one in value for item in _flat(one)] if several else [value]


def _is_id(model: Native, token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < model.cfg.d_vocab


def chooser(model: Native, settings: Mapping[str, Any], prompt: TokenBatch, max_new_tokens: int, seed: int) -> Choose:
    """A function from ids so far (left padded) and logits of the next token to the next token of each row.

    Rows with prompts of one length have processors of their own, which see no padding: every row is chosen as if it
    were alone. Draws are seeded: the same batch and seed give the same tokens.

    Raises:
        BadInput: a value that transformers refuses.
    """
    if not settings:
        return lambda ids, logits: logits.argmax(-1)
    lengths = prompt.lengths.tolist()
    groups = [
        (torch.tensor([row for row, other in enumerate(lengths) if other == length], device=model.device), length)
        for length in sorted(set(lengths))
    ]
    processors = [_processors(model, settings, length, max_new_tokens) for _, length in groups]
    generator = torch.Generator(device=model.device).manual_seed(seed_of(seed))
    width = prompt.ids.shape[1]

    def choose(ids: Int[Tensor, "batch pos"], logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
        scores = logits.to(torch.float32, copy=True)
        for (rows, length), process in zip(groups, processors):
            own: Any = ids[rows, width - length :]
            try:
                scores[rows] = process(own, scores[rows])
            except (ValueError, IndexError) as error:  # ids outside the vocabulary are found so late
                raise BadInput(f"sampling: {cause(error)}") from error
        if bool((scores.amax(-1) == -torch.inf).any()):
            raise BadInput(f"sampling: {', '.join(settings)} leave no token to choose; leave some of them out")
        if not settings.get("do_sample"):
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]

    return choose


def _processors(model: Native, settings: Mapping[str, Any], length: int, max_new_tokens: int) -> "LogitsProcessorList":
    """What `hf.generate` makes of the settings for prompts of this length."""
    from transformers import GenerationConfig, GenerationMixin

    ends = sorted(model.end_ids)
    wanted = dict(settings)
    if wanted.get("min_new_tokens"):
        wanted["min_length"] = 0
    try:
        config = GenerationConfig(**wanted, num_beams=1, max_length=length + max_new_tokens)
        config._eos_token_tensor = torch.tensor(ends, device=model.device) if ends else None
        return GenerationMixin._get_logits_processor(  # type: ignore[misc]
            model.hf, generation_config=config, input_ids_seq_length=length, device=str(model.device)
        )
    except (ValueError, TypeError, IndexError) as error:
        raise BadInput(f"sampling: {cause(error)}") from error
