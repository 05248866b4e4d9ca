"""The one registered attention function.

transformers calls the function named by `config._attn_implementation` after projection, qk-norm, rotation and cache
update. Ours hands layers that nobody asked about to transformers' own SDPA, and computes the others step by step, so
that rotated queries and keys, scores and patterns can be read and written. Registered together with a mask function:
without one, transformers would pass no causal mask at all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..language import is_multimodal, language_model, text_config

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
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head d_head"], None]:
    """Attention as transformers' eager functions compute it, with stops at rot_q, rot_k, scores and pattern.

    s = scaling q kᵀ; soft cap c: s = c tanh(s/c); mask; sinks: one more column in the softmax, dropped after it;
    p = softmax in float32, cast back; out = p v. Keys and values of grouped heads are repeated. Whatever scores become
    when they are visited, the softmax leaves out the keys that the mask hides.
    """
    visit = (_VISITS.get() or {}).get(module)
    if visit is None and softcap is None and s_aux is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if visit is not None:
        query = visit("rot_q", query.transpose(1, 2), None).transpose(1, 2)
        key = visit("rot_k", key.transpose(1, 2), None).transpose(1, 2)
    groups = query.shape[1] // key.shape[1]
    scores = query @ repeat_kv(key, groups).transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    visible = _visible(attention_mask, scores)
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        scores = scores + attention_mask[..., : scores.shape[-1]]
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if visit is not None:
        scores = visit("scores", scores, visible)
        hidden = ~visible & visible.any(dim=-1, keepdim=True)  # padding sees nothing, and stays finite
        scores = scores.masked_fill(hidden, -torch.inf)
    pattern = scores.softmax(dim=-1, dtype=torch.float32) if s_aux is None else _softmax_with_sinks(scores, s_aux)
    pattern = pattern.to(query.dtype)
    if visit is not None:
        pattern = visit("pattern", pattern, visible)
    return (pattern @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), None


def _visible(
    mask: Tensor | None, scores: Float[Tensor, "batch head query key"]
) -> Bool[Tensor, "batch|1 head|1 query key"]:
    """Which keys a query may see; no mask means causal, aligned at the lower right (queries are the newest tokens)."""
    n_query, n_key = scores.shape[-2:]
    if mask is None:
        return torch.ones(1, 1, n_query, n_key, dtype=torch.bool, device=scores.device).tril(n_key - n_query)
    mask = mask[..., :n_key]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _softmax_with_sinks(scores: Tensor, s_aux: Tensor) -> Float[Tensor, "batch head query key"]:
    """A sink takes part in the softmax and is dropped after it; as in GPT-OSS, in the dtype of the scores."""
    sinks = s_aux.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1).to(scores.dtype)
    wide = torch.cat([scores, sinks], dim=-1)
    return (wide - wide.amax(dim=-1, keepdim=True)).softmax(dim=-1)[..., :-1]


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def visiting(hf: PreTrainedModel, visits: dict[nn.Module, Visit]) -> Iterator[None]:
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


def can_attend(hf: PreTrainedModel) -> bool:
    """Whether its language model is on transformers' attention registry."""
    part = language_model(hf) if is_multimodal(hf) else hf
    return isinstance(part, PreTrainedModel) and part._can_set_attn_implementation()


@contextmanager
def attending(hf: PreTrainedModel) -> Iterator[None]:
    """Within, the language model uses the function of this file, also for the masks that a multimodal model makes."""
    config, text = hf.config, text_config(hf)
    places: dict[str, Any] = {key: text for key in config.sub_configs if getattr(config, key, None) is text}
    places[""] = config
    before = {key: place._attn_implementation for key, place in places.items()}
    try:
        hf.set_attn_implementation(dict.fromkeys(places, NAME))
        yield
    finally:
        hf.set_attn_implementation(before)
