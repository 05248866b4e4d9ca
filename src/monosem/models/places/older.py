"""Rows of decoders that are older than Llama's block, part of the table in `table.py`.

Their norms often close a sum (post-LN), their modules add the stream or norm it before they return, MLPs are no modules
of their own, and the embedding is a sum of several that goes through a norm.
"""

from dataclasses import replace
from typing import Any

from .families import BranchRow, Family, attn, mlp
from .mixers import Mixer


def within(row: BranchRow, closing: str | None = None, norm_first: str | None = None, **mixer: Any) -> BranchRow:
    """A row with a closing norm, and with fields of its mixers."""
    mixers = tuple(replace(one, **mixer) for one in row.mixers)
    return replace(row, mixers=mixers, closing=closing, norm_first=norm_first)


def _fairseq(closes: bool = False, flat: bool = False, norm_first: str | None = None) -> tuple[BranchRow, ...]:
    """BART's decoder block and its descendants, without cross attention; `closes`: the norms close sums."""
    norms = ("self_attn_layer_norm", "final_layer_norm")
    first, second = ((None, None), norms) if closes else (norms, (None, None))
    if norm_first:
        first = second = norms
    feed = mlp(first[1], path="", pre="fc1", pre_linear=None, down="fc2")
    return (
        within(attn(first[0], out="out_proj"), second[0], norm_first),
        within(feed, second[1], norm_first, ends=("fc1", "activation_fn", "fc2"), flat=flat),
    )


_GIVEN = {"part": "experts", "side": "in"}  # its router gives logits alone
_DBRX = Mixer(
    "mixture",
    "ffn",
    {"router": "router"},
    differs={"expert_weights": _GIVEN | {"item": 2}, "expert_indices": _GIVEN | {"item": 1}},
)
_BART = Family(
    "bart",
    ("bart", "plbart", "trocr"),
    _fairseq(closes=True),
    embed="decoder.embed_tokens",
    positions="decoder.embed_positions",
    entry=("decoder.layernorm_embedding",),
    layers="decoder.layers",
    final_norm="decoder.layer_norm",
)

_NORMS_FIRST = replace(
    _BART,
    name="bart with norms first",
    model_types=("mbart", "blenderbot", "whisper"),
    branches=_fairseq(),
)

OLDER: tuple[Family, ...] = (
    Family(  # its positions begin at the third row of their table, and its MLP sees rows
        "opt",
        ("opt",),
        _fairseq(flat=True, norm_first="do_layer_norm_before"),
        embed="decoder.embed_tokens",
        embed_projection="decoder.project_in",
        positions="decoder.embed_positions",
        layers="decoder.layers",
        final_norm="decoder.final_layer_norm",
        unembed_projection="decoder.project_out",
    ),
    Family("fairseq", ("xglm", "biogpt"), _fairseq(), positions="embed_positions", final_norm="layer_norm"),
    Family(  # its modules add the stream to what they project
        "bloom",
        ("bloom",),
        (
            within(
                attn(path="self_attention", qkv="query_key_value", fused="interleaved", out="dense"),
                ends=(".", "dense"),
            ),
            within(
                mlp(pre="dense_h_to_4h", pre_linear=None, down="dense_4h_to_h"),
                ends=("dense_h_to_4h", "gelu_impl", "dense_4h_to_h"),
            ),
        ),
        embed="word_embeddings",
        entry=("word_embeddings_layernorm",),
        layers="h",
        final_norm="ln_f",
    ),
    Family(
        "falcon",
        ("falcon",),
        (
            attn(
                ("ln_attn", "input_layernorm"),
                path="self_attention",
                qkv="query_key_value",
                fused="interleaved",
                out="dense",
            ),
            within(  # the block adds attention's output to the tensor that the MLP returned
                mlp(
                    ("ln_mlp", "post_attention_layernorm"),
                    pre="dense_h_to_4h",
                    pre_linear=None,
                    down="dense_4h_to_h",
                    parallel="parallel_attn",
                ),
                in_place=True,
            ),
        ),
        embed="word_embeddings",
        layers="h",
        final_norm="ln_f",
    ),
    Family(
        "mpt",
        ("mpt",),
        (
            attn("norm_1", path="attn", qkv="Wqkv", out="out_proj", clip="attn_config.clip_qkv"),
            within(
                mlp("norm_2", path="ffn", pre="up_proj", pre_linear=None, down="down_proj"),
                ends=("up_proj", "act", "down_proj"),
            ),
        ),
        embed="wte",
        layers="blocks",
        final_norm="norm_f",
    ),
    Family(  # the norms of both branches lie in one module; its experts are slices of one tensor
        "dbrx",
        ("dbrx",),
        (
            attn(
                "norm_attn_norm.norm_1",
                path="norm_attn_norm.attn",
                qkv="Wqkv",
                out="out_proj",
                clip="attn_config.clip_qkv",
            ),
            BranchRow("mlp", (_DBRX,), "ln2", "norm_attn_norm.norm_2"),
        ),
        embed="wte",
        layers="blocks",
        final_norm="norm_f",
    ),
    Family(  # one kv head for all, or q k v head by head
        "gpt_bigcode",
        ("gpt_bigcode",),
        (
            attn("ln_1", path="attn", qkv="c_attn", fused="interleaved", out="c_proj"),
            mlp("ln_2", pre="c_fc", pre_linear=None, down="c_proj"),
        ),
        embed="wte",
        positions="wpe",
        layers="h",
        final_norm="ln_f",
    ),
    Family(
        "codegen",
        ("codegen",),
        (
            attn("ln_1", path="attn", qkv="qkv_proj", fused="quarters", out="out_proj"),
            mlp("ln_1", pre="fc_in", pre_linear=None, down="fc_out", parallel=True),
        ),
        embed="wte",
        layers="h",
        final_norm="ln_f",
    ),
    Family(  # the last block adds a bias to what attention returns
        "gpt_neox_japanese",
        ("gpt_neox_japanese",),
        (
            within(attn(path="attention", qkv="query_key_value", fused="interleaved", out="dense"), bias="dense_bias"),
            mlp(pre="dense_h_to_4h", pre_linear=None, down="dense_4h_to_h"),
        ),
        embed="embed_in",
        final_norm="final_layer_norm",
    ),
    Family(
        "persimmon",
        ("persimmon",),
        (
            attn(qkv="query_key_value", fused="interleaved", out="dense"),
            mlp(pre="dense_h_to_4h", pre_linear=None, down="dense_4h_to_h"),
        ),
        final_norm="final_layernorm",
    ),
    Family(
        "openai-gpt",
        ("openai-gpt",),
        (
            within(attn(None, path="attn", qkv="c_attn", out="c_proj"), "ln_1"),
            within(mlp(None, pre="c_fc", pre_linear=None, down="c_proj"), "ln_2"),
        ),
        embed="tokens_embed",
        positions="positions_embed",
        layers="h",
        final_norm=None,
        cached=False,
    ),
    Family(  # computes its positions, and multiplies its embedding in place
        "ctrl",
        ("ctrl",),
        (
            attn("layernorm1", path="multi_head_attention", q="Wq", k="Wk", v="Wv", out="dense"),
            mlp("layernorm2", path="ffn", pre="0", pre_linear=None, down="2"),
        ),
        embed="w",
        embed_scale="sqrt(d_model)",
        positions="pos_encoding",
        layers="h",
        final_norm="layernorm",
    ),
    Family(  # one norm, which is called before the first block and after the last
        "nanochat",
        ("nanochat",),
        (attn(), mlp(pre="fc1", pre_linear=None, down="fc2")),
        entry=("norm",),
        logit_steps=(("soft_cap", "final_logit_softcapping"),),
    ),
    _BART,
    replace(_BART, name="bart scaled", model_types=("marian", "mvp"), embed_scale="decoder.embed_scale"),
    _NORMS_FIRST,
    replace(_NORMS_FIRST, name="pegasus", model_types=("pegasus",), embed_scale="decoder.embed_scale"),
    replace(  # norms the token embedding before positions are added
        _BART,
        name="blenderbot-small",
        model_types=("blenderbot-small",),
        embed_projection="decoder.layernorm_embedding",
        entry=(),
    ),
    replace(  # its final norm has the name of an embedding's; its attention knows no mask but its own eager one
        _BART,
        name="bigbird_pegasus",
        model_types=("bigbird_pegasus",),
        branches=tuple(within(row, registered=False) for row in _fairseq()),
        entry=(),
        final_norm="decoder.layernorm_embedding",
    ),
)
