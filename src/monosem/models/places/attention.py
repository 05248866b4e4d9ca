"""The one registered attention function.

transformers calls the function named by `config._attn_implementation` after projection, qk-norm, rotation and cache
update. Ours hands layers that nobody asked about to transformers' own SDPA, and computes the others step by step, so
that rotated queries and keys, scores and patterns can be read and written. Registered together with a mask function:
without one, transformers would pass no causal mask at all.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.utils.generic import TransformersKwargs

from ...errors import BadInput
from ..language import encoder_of, is_multimodal, is_pretrained, language_model, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "monosem"

# visits an activation on its way: (site name, value, at scores and pattern: which keys a query may see) -> value
Visit = Callable[[str, Tensor, Tensor | None], Tensor]
_VISITS: ContextVar[dict[nn.Module, Visit] | None] = ContextVar("monosem_attention_visits", default=None)


def attention_forward(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Float[Tensor, "batch|1 head query key"] | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head d_head"], None]:
    """Attention as transformers' eager functions compute it, with stops at the sites in it, rot_q to mixed.

    s = scaling q kᵀ; soft cap c: s = c tanh(s/c); + position bias; mask; sinks: one more column in the softmax, dropped
    after it; p = softmax in float32, cast back; out = p v. Keys and values of grouped heads are repeated. Whatever
    scores become when they are visited, the softmax leaves out the keys that the mask hides.

    Raises:
        BadInput: the model hands over what would change these numbers, and is not known here.
    """
    _refuse_unknown(module, kwargs)
    attention_mask = _with_chosen(module, query, key, attention_mask, kwargs)
    visit, sinks = (_VISITS.get() or {}).get(module), kwargs.get("sinks")
    if visit is None and all(each is None for each in (softcap, s_aux, sinks, position_bias)):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if visit is not None:
        query = visit("rot_q", query.transpose(1, 2), None).transpose(1, 2)
        key = visit("rot_k", key.transpose(1, 2), None).transpose(1, 2)
        value = visit("values", value.transpose(1, 2), None).transpose(1, 2)
    groups = query.shape[1] // key.shape[1]
    scores = query @ repeat_kv(key, groups).transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    visible = _visible(attention_mask, scores.shape[-2:], _is_causal(module, kwargs), query.device)
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        scores = scores + attention_mask[..., : scores.shape[-1]]
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if visit is not None:
        scores = visit("scores", scores, visible)
        hidden = ~visible & visible.any(dim=-1, keepdim=True)  # padding sees nothing, and stays finite
        scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:  # one for each query, in float32 (Inkling 2)
        pattern = torch.cat([scores, sinks], dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1]
    elif s_aux is not None:
        pattern = _softmax_with_sinks(scores, s_aux)
    else:
        pattern = scores.softmax(dim=-1, dtype=torch.float32)
    pattern = pattern.to(query.dtype)
    if visit is not None:
        pattern = visit("pattern", pattern, visible)
    mixed = (pattern @ repeat_kv(value, groups)).transpose(1, 2).contiguous()
    return mixed if visit is None else visit("mixed", mixed, None), None


# what is handed over beside the arguments of `attention_forward`, and used; and what changes no number here: no dropout
# when a model is evaluated, a sliding window is in the mask, the rest is for kernels and for training
_USED = frozenset(("sinks", "indices", "block_indices", "is_causal"))
_WITHOUT_EFFECT = frozenset(("dropout", "sliding_window", "deterministic", *TransformersKwargs.__annotations__))


def _refuse_unknown(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Raises `BadInput` for an argument of the model's eager function, a tensor or a number that is not known here."""
    unknown = [key for key in kwargs.keys() - _USED - _WITHOUT_EFFECT if kwargs[key] is not None]
    if not unknown:
        return
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    taken = inspect.signature(eager).parameters.keys() if eager else ()
    if changing := sorted(key for key in unknown if key in taken or isinstance(kwargs[key], Tensor | float)):
        raise BadInput(
            f"{type(module).__name__} hands {', '.join(changing)} to its attention function, which monosem does not "
            "know: its scores and patterns cannot be read; other sites can"
        )


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether no mask means that a token sees the earlier ones, as transformers' SDPA decides it."""
    asked = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


def _with_chosen(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """The mask without the keys that an indexer left out (DeepSeek 3.2, MiniMax M3).

    Such a model does this itself under "eager" and "sdpa", and hands its choice to every other attention function.
    """
    if (blocks := kwargs.get("block_indices")) is not None:
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device)[None]
        positions = positions.expand(len(query), -1)
        indexer: Any = module.indexer
        return indexer.build_block_mask(blocks, mask, key.shape[2], query.dtype, query.device, positions)
    if (indices := kwargs.get("indices")) is None:
        return mask
    shape = (*indices.shape[:2], key.shape[2])
    chosen = torch.zeros(shape, dtype=torch.bool, device=query.device).scatter(-1, indices.long(), True)[:, None]
    return chosen & _visible(mask, shape[1:], _is_causal(module, kwargs), query.device)


def _visible(
    mask: Tensor | None, shape: Sequence[int], is_causal: bool, device: torch.device
) -> Bool[Tensor, "batch|1 head|1 query key"]:
    """Which keys a query may see. Without a mask: all, or the earlier ones, aligned at the lower right (queries are the
    newest tokens)."""
    n_query, n_key = shape
    if mask is None:
        every = torch.ones(1, 1, n_query, n_key, dtype=torch.bool, device=device)
        return every.tril(n_key - n_query) if is_causal else every
    mask = mask[..., :n_key]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _softmax_with_sinks(scores: Tensor, s_aux: Tensor) -> Float[Tensor, "batch head query key"]:
    """A sink takes part in the softmax and is dropped after it; as in GPT-OSS, in the dtype of the scores."""
    sinks = s_aux.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1).to(scores.dtype)
    wide = torch.cat([scores, sinks], dim=-1)
    return (wide - wide.amax(dim=-1, keepdim=True)).softmax(dim=-1)[..., :-1]


@cache
def _register() -> None:
    """Once, and not at import: both registries bring transformers' models with them (`language`)."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def visiting(hf: "PreTrainedModel", visits: dict[nn.Module, Visit]) -> Iterator[None]:
    """Within, the given attention modules call their visitor; the model's own attention is restored after."""
    if not visits:
        yield
        return
    token = _VISITS.set(visits)
    try:
        with attending(hf):
            yield
    finally:
        _VISITS.reset(token)


def can_attend(hf: "PreTrainedModel") -> bool:
    """Whether its language model is on transformers' attention registry."""
    part = language_model(hf) if is_multimodal(hf) else hf
    return is_pretrained(part) and part._can_set_attn_implementation()


@contextmanager
def attending(hf: "PreTrainedModel") -> Iterator[None]:
    """Within, the language model uses the function of this file, also for the masks that a multimodal model makes."""
    _register()
    config, text = hf.config, text_config(hf)
    parts = {key: part for key in config.sub_configs if (part := getattr(config, key, None)) is not None}
    both = encoder_of(hf) is not None
    places: dict[str, Any] = {key: part for key, part in parts.items() if both or part is text}
    places[""] = config
    before = {key: place._attn_implementation for key, place in places.items()}
    try:
        hf.set_attn_implementation(dict.fromkeys(places, NAME))
        yield
    finally:
        hf.set_attn_implementation(before)
