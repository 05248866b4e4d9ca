"""ONE table: per architecture family, where each site lives in the native Hugging Face modules.

A new family is a new row. Names alone prove nothing (`post_attention_layernorm` is the MLP's pre-norm in Llama and the
attention's post-norm in Gemma 2), so every row is checked by the identities in `verifying.py`.
"""

from dataclasses import dataclass
from typing import Any

from ..errors import UnknownName


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture; those of a block's parts are relative to it, their parts relative to them."""

    name: str
    model_types: tuple[str, ...]
    embed: str = "model.embed_tokens"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    attention: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    fused: str | None = None  # one module for q, k, v: "thirds" [q|k|v], or "interleaved" [q k v] per head
    out: str = "o_proj"
    attn_norm: str | None = None  # norm between attention and the stream
    ln1: str = "input_layernorm"
    ln2: str = "post_attention_layernorm"  # the norm that the MLP reads through
    mlp: str = "mlp"
    pre: str = "gate_proj"
    pre_linear: str | None = "up_proj"
    down: str = "down_proj"
    mlp_norm: str | None = None  # norm between the MLP and the stream
    parallel: str | None = None  # config attribute that says whether attention and MLP both read resid_pre
    gain_offset: float = 0.0  # the final norm multiplies by (offset + weight): 1 in Gemma

    def is_parallel(self, config: Any) -> bool:
        return bool(self.parallel and getattr(config, self.parallel))


_GEMMA_NORMS = {
    "attn_norm": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "mlp_norm": "post_feedforward_layernorm",
    "gain_offset": 1.0,
}

FAMILIES: tuple[Family, ...] = (
    Family("llama", ("llama", "mistral", "qwen2", "qwen3")),
    Family("gemma", ("gemma",), gain_offset=1.0),
    Family("gemma2", ("gemma2", "gemma3_text"), **_GEMMA_NORMS),  # type: ignore[arg-type]
    Family(
        "gpt2",
        ("gpt2",),
        embed="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn",
        q="c_attn",
        k="c_attn",
        v="c_attn",
        fused="thirds",
        out="c_proj",
        ln1="ln_1",
        ln2="ln_2",
        pre="c_fc",
        pre_linear=None,
        down="c_proj",
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
)

_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def family_of(config: Any) -> Family:
    """The table row for a Hugging Face config.

    Raises:
        UnknownName: the architecture has no row yet.
    """
    if config.model_type not in _BY_TYPE:
        known = ", ".join(sorted(_BY_TYPE))
        raise UnknownName(
            f"no family row for model type {config.model_type!r} (known: {known}); "
            "add a row to monosem/models/families.py and check it with `monosem verify`"
        )
    return _BY_TYPE[config.model_type]
