"""ONE table: per architecture family, where each site lives in the native Hugging Face modules.

A new family is a new row. Names alone prove nothing (`post_attention_layernorm` is the MLP's pre-norm in Llama and the
attention's post-norm in Gemma 2), so the identities in `checking/verify.py` check every row. `load_model` infers
a row for a model type without one (`checking/infer.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import UnknownName


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture; those of a block's parts are relative to it, their parts relative to them."""

    name: str
    model_types: tuple[str, ...]
    embed: str = "model.embed_tokens"
    positions: str | None = None  # learned positions, added to the token embedding
    embed_scale: str | None = None  # config attribute that the embedding is multiplied by outside its module
    layers: str = "model.layers"
    tuple_blocks: bool = False  # blocks return (stream, weights) instead of the stream
    final_norm: str = "model.norm"
    attention: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    fused: Literal["stacked", "interleaved"] | None = None  # one module for [q | k | v], or for q k v head by head
    clip: str | None = None  # config attribute: q, k, v are clipped in place right after their projection
    out: str = "o_proj"
    attn_norm: str | None = None  # norm between attention and the stream
    ln1: str | None = "input_layernorm"
    ln2: str | None = "post_attention_layernorm"  # the norm that the MLP reads through
    mlp: str = "mlp"
    pre: str = "gate_proj"
    pre_linear: str | None = "up_proj"  # the same module as `pre` where one computes [gate | up]
    down: str = "down_proj"
    router: str | None = None  # in a mixture of experts: the module that returns (logits, weights, indices)
    mlp_norm: str | None = None  # norm between the MLP and the stream
    parallel: str | bool = False  # attention and MLP both read resid_pre; or the config attribute that says so
    branch_scale: str | None = None  # config attribute that both branches are multiplied by
    logit_steps: tuple[tuple[str, str], ...] = ()  # what follows the unembedding: (step, config attribute)

    def is_parallel(self, config: Any) -> bool:
        return bool(getattr(config, self.parallel) if isinstance(self.parallel, str) else self.parallel)


_PLAIN_MLP: dict[str, Any] = {"pre": "c_fc", "pre_linear": None, "down": "c_proj"}
_SOFT_CAP = (("soft_cap", "final_logit_softcapping"),)

_GEMMA2 = Family(
    "gemma2",
    ("gemma2", "gemma3_text"),
    attn_norm="post_attention_layernorm",
    ln2="pre_feedforward_layernorm",
    mlp_norm="post_feedforward_layernorm",
    logit_steps=_SOFT_CAP,
)
_GPT2 = Family(
    "gpt2",
    ("gpt2",),
    embed="transformer.wte",
    positions="transformer.wpe",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    q="c_attn",
    k="c_attn",
    v="c_attn",
    fused="stacked",
    out="c_proj",
    ln1="ln_1",
    ln2="ln_2",
    **_PLAIN_MLP,
)

FAMILIES: tuple[Family, ...] = (
    Family("llama", ("llama", "mistral", "qwen2", "qwen3", "smollm3")),
    Family("olmo", ("olmo",), clip="clip_qkv"),
    Family("gemma", ("gemma",)),
    _GEMMA2,
    # no norm before the branches, only after them
    replace(_GEMMA2, name="olmo2", model_types=("olmo2", "olmo3"), ln1=None, ln2=None, logit_steps=()),
    Family(
        "phi3",
        ("phi3",),
        q="qkv_proj",
        k="qkv_proj",
        v="qkv_proj",
        fused="stacked",
        pre="gate_up_proj",
        pre_linear="gate_up_proj",
    ),
    Family("glm", ("glm",), pre="gate_up_proj", pre_linear="gate_up_proj"),
    Family(
        "glm4",
        ("glm4",),
        attn_norm="post_self_attn_layernorm",
        mlp_norm="post_mlp_layernorm",
        pre="gate_up_proj",
        pre_linear="gate_up_proj",
    ),
    Family(
        "granite",
        ("granite",),
        embed_scale="embedding_multiplier",
        branch_scale="residual_multiplier",
        logit_steps=(("divide", "logits_scaling"),),
    ),
    Family(
        "cohere",
        ("cohere", "cohere2"),
        ln2="input_layernorm",
        parallel=True,
        logit_steps=(("multiply", "logit_scale"),),
    ),
    Family("stablelm", ("stablelm",), parallel="use_parallel_residual"),  # in parallel blocks both read ln1
    Family("starcoder2", ("starcoder2",), **_PLAIN_MLP),
    Family(
        "phi",
        ("phi",),
        final_norm="model.final_layernorm",
        out="dense",
        ln2="input_layernorm",
        pre="fc1",
        pre_linear=None,
        down="fc2",
        parallel=True,
    ),
    _GPT2,
    replace(  # TinyStories, GPT-Neo; not on transformers' attention registry
        _GPT2,
        name="gpt_neo",
        model_types=("gpt_neo",),
        tuple_blocks=True,
        attention="attn.attention",
        q="q_proj",
        k="k_proj",
        v="v_proj",
        fused=None,
        out="out_proj",
    ),
    Family(  # not on transformers' attention registry
        "gptj",
        ("gptj",),
        embed="transformer.wte",
        layers="transformer.h",
        tuple_blocks=True,
        final_norm="transformer.ln_f",
        attention="attn",
        out="out_proj",
        ln1="ln_1",
        ln2="ln_1",
        pre="fc_in",
        pre_linear=None,
        down="fc_out",
        parallel=True,
    ),
    Family(
        "gpt_neox",
        ("gpt_neox",),
        embed="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        q="query_key_value",
        k="query_key_value",
        v="query_key_value",
        fused="interleaved",
        out="dense",
        pre="dense_h_to_4h",
        pre_linear=None,
        down="dense_4h_to_h",
        parallel="use_parallel_residual",
    ),
    # experts are batched parameters without modules: no mlp_pre, mlp_post in their layers
    Family("mixture", ("mixtral", "qwen2_moe", "qwen3_moe"), router="gate"),
    Family("gpt_oss", ("gpt_oss",), router="router"),
)

_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


# what may follow the unembedding
LOGIT_STEPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "soft_cap": lambda logits, cap: cap * torch.tanh(logits / cap),
    "divide": lambda logits, by: logits / by,
    "multiply": lambda logits, by: logits * by,
}


def has_row(config: Any) -> bool:
    """Whether the table has a row for a Hugging Face config."""
    return config.model_type in _BY_TYPE


def family_of(config: Any) -> Family:
    """The table's row for a Hugging Face config. Raises `UnknownName` for an architecture without one."""
    if config.model_type not in _BY_TYPE:
        raise UnknownName(
            f"no family row for model type {config.model_type!r}: load_model infers one; Model takes family=Family(...)"
        )
    return _BY_TYPE[config.model_type]
