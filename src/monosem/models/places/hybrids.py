"""Rows of the family table for models whose layers, or some of them, have a memory instead of attention."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from .families import BranchRow, Family, attn, latent, mlp
from .memories import (
    delta_net,
    kimi_delta,
    lightning,
    mamba,
    mamba2,
    mamba_heads,
    rg_lru,
    row,
    short_convolution,
    time_mixing,
    xlstm,
)
from .mixers import Mixer


def gated(gate: str, before: str = "input_layernorm", after: str | None = None) -> BranchRow:
    """Attention with an output gate; where the query projection computes it too, head by head."""
    plain = attn(before, after)
    return replace(
        plain, mixers=(replace(plain.mixers[0], parts=plain.mixers[0].parts | {"gate": gate}), *plain.mixers)
    )


def normed(norm: str, factor: str) -> Callable[[Any, Tensor], Tensor]:
    """The stream goes on from its norm, times a number of the block (`BranchRow.keeps`)."""
    return lambda block, stream: getattr(block, norm).forward(stream) * getattr(block, factor)


_MINIMAX: dict[str, Any] = {"scale": "attn_beta_factor", "keeps": normed("input_layernorm", "attn_alpha_factor")}
_LFM_MLP = mlp("ffn_norm", path="feed_forward", pre="w1", pre_linear="w3", down="w2", router="gate")
_FEED = mlp("pre_ff_layernorm", path="feed_forward")
_LFM = Family(
    "lfm2",
    ("lfm2", "lfm2_moe"),
    (row("conv", short_convolution("conv"), "operator_norm"), attn("operator_norm", out="out_proj"), _LFM_MLP),
    final_norm="embedding_norm",
)

HYBRIDS: tuple[Family, ...] = (
    Family(
        "qwen3_next",
        ("qwen3_next",),
        (
            row("linear", delta_net("linear_attn", "in_proj_qkvz", "in_proj_ba", gate_at="grouped")),
            gated("q_proj"),
            mlp(router="gate"),
        ),
    ),
    Family(
        "qwen3_5",
        ("qwen3_5_text", "qwen3_5_moe_text"),
        (row("linear", delta_net("linear_attn", "in_proj_z", "in_proj_b")), gated("q_proj"), mlp(router="gate")),
    ),
    Family(
        "lara_mini",
        ("lara_mini",),
        (row("linear", delta_net("linear_attn", "in_proj_z", "in_proj_b")), attn(), mlp(router="gate")),
    ),
    Family(  # norms before linear attention and its MLP, after softmax attention and its MLP
        "olmo_hybrid",
        ("olmo_hybrid",),
        (
            row("linear", delta_net("linear_attn", "g_proj", "b_proj", "o_proj", "o_norm")),
            attn(None, "post_attention_layernorm"),
            mlp(None, "post_feedforward_layernorm"),
            mlp(),
        ),
    ),
    Family(
        "kimi_linear",
        ("kimi_linear",),
        (row("linear", kimi_delta("self_attn", "g_b_proj")), latent(), mlp(router="gate")),
    ),
    Family(  # what branches are added to is the norm that they read
        "minimax",
        ("minimax",),
        (
            BranchRow("linear", (lightning("self_attn"),), "ln1", "input_layernorm", **_MINIMAX),
            replace(attn(), **_MINIMAX),
            replace(
                mlp(router="gate", scale="mlp_beta_factor"),
                keeps=normed("post_attention_layernorm", "mlp_alpha_factor"),
            ),
        ),
        cached=False,
    ),
    Family(
        "rwkv",
        ("rwkv",),
        (
            BranchRow("recurrent", (time_mixing("attention"),), "ln1", "ln1"),
            BranchRow(
                "mlp",
                (Mixer("channel_mixing", "feed_forward", {"pre": "key", "down": "value", "gate": "receptance"}),),
                "ln2",
                "ln2",
            ),
        ),
        embed="embeddings",
        entry=("blocks.0.pre_ln",),
        layers="blocks",
        opening="pre_ln",
        final_norm="ln_out",
        cached=False,
        padded=False,
    ),
    Family(
        "bailing_hybrid",
        ("bailing_hybrid",),
        (row("linear", kimi_delta("self_attn", "g_proj")), latent(gate="g_proj"), mlp(router="gate")),
    ),
    _LFM,
    replace(
        _LFM,
        name="lfm3",
        model_types=("lfm3",),
        branches=(
            replace(_LFM.branches[0], after="post_operator_norm"),
            gated("g_proj", "operator_norm", "post_operator_norm"),
            replace(_LFM_MLP, after="post_ffn_norm"),
        ),
    ),
    Family(
        "mamba",
        ("mamba", "falcon_mamba"),
        (row("ssm", mamba("mixer"), "norm"),),
        embed="embeddings",
        final_norm="norm_f",
    ),
    Family("mamba2", ("mamba2",), (row("ssm", mamba2("mixer"), "norm"),), embed="embeddings", final_norm="norm_f"),
    Family(  # one branch a block
        "nemotron_h",
        ("nemotron_h",),
        (
            row("ssm", mamba2("mixer"), "norm"),
            attn("norm", path="mixer"),
            mlp("norm", path="mixer", pre="up_proj", pre_linear=None, router="gate"),
        ),
        embed="embeddings",
        final_norm="norm_f",
    ),
    Family(
        "jamba",
        ("jamba",),
        (row("ssm", mamba("mamba")), attn(), mlp("pre_ff_layernorm", path="feed_forward", router="router")),
        final_norm="final_layernorm",
    ),
    Family("bamba", ("bamba",), (row("ssm", mamba2("mamba")), attn(), _FEED), final_norm="final_layernorm"),
    Family(  # a plain MLP beside the mixture of experts, where there is one
        "granitemoehybrid",
        ("granitemoehybrid",),
        (
            row("ssm", mamba2("mamba"), scale="residual_multiplier"),
            attn(scale="residual_multiplier"),
            mlp(
                path="shared_mlp",
                pre="input_linear",
                pre_linear="input_linear",
                down="output_linear",
                scale="residual_multiplier",
            ),
            replace(
                mlp(path="block_sparse_moe", parallel=True, scale="residual_multiplier"),
                name="moe",
                mixers=(Mixer("mixture", "block_sparse_moe", {"router": "router"}),),
            ),
        ),
        embed_scale="embedding_multiplier",
        logit_steps=(("divide", "logits_scaling"),),
    ),
    Family(  # attention and state space side by side, with multipliers
        "falcon_h1",
        ("falcon_h1",),
        (
            row("ssm", mamba2("mamba", "ssm_multipliers.0"), scale="ssm_out_multiplier"),
            replace(attn(scale="attention_out_multiplier"), parallel=True, given="attention_in_multiplier"),
            replace(_FEED, mixers=(replace(_FEED.mixers[0], scales={"down": "mlp_multipliers.1"}),)),
        ),
        embed_scale="embedding_multiplier",
        final_norm="final_layernorm",
        logit_steps=(("multiply", "lm_head_multiplier"),),
    ),
    Family(
        "recurrent_gemma",
        ("recurrent_gemma",),
        (
            row("recurrent", rg_lru("temporal_block"), "temporal_pre_norm"),
            attn("temporal_pre_norm", path="temporal_block"),
            mlp("channel_pre_norm", path="mlp_block"),
        ),
        embed_scale="normalizer",
        final_norm="final_norm",
        logit_steps=(("soft_cap", "logits_soft_cap"),),
        padded=False,
    ),
    Family(  # some blocks add what a shared transformer makes of the stream to what their Mamba reads
        "zamba2",
        ("zamba2",),
        (row("ssm", mamba2("mamba")), row("ssm", mamba2("mamba_decoder.mamba", more=True), None)),
        final_norm="final_layernorm",
        carries="the token embedding",
    ),
    Family(
        "zamba",
        ("zamba",),
        (
            row("ssm", mamba_heads("mamba")),
            row("ssm", mamba_heads("mamba_decoder.mamba", more=True), None),
        ),
        final_norm="final_layernorm",
        carries="the token embedding",
    ),
    Family(
        "xlstm",
        ("xlstm",),
        (
            row("recurrent", xlstm("mlstm_layer"), "norm_mlstm"),
            mlp("norm_ffn", path="ffn", pre="proj_up_gate", pre_linear="proj_up", down="proj_down"),
        ),
        embed="embeddings",
        layers="blocks",
        final_norm="out_norm",
        logit_steps=(("soft_cap", "output_logit_soft_cap"),),
        cached=False,
        padded=False,
    ),
)
