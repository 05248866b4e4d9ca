"""Rows of encoder–decoders, part of the table in `table.py`: the decoder's row, with the encoder's in it.

The decoder's paths begin in the model that has both (`decoder.layers`), the encoder's in the encoder (`layers`). A
block of the decoder has one branch more than a decoder's alone: cross attention, whose keys and values are made of
what the encoder gives.
"""

from dataclasses import replace
from typing import Any

from .families import BranchRow, Family, attn, crossing, either, mlp
from .older import OLDER, within


def _t5_attention(layer: int, name: str) -> BranchRow:
    return attn(f"layer.{layer}.layer_norm", path=f"layer.{layer}.{name}", q="q", k="k", v="v", out="o")


def _t5_mlp(layer: int) -> BranchRow:
    before, path = f"layer.{layer}.layer_norm", f"layer.{layer}.DenseReluDense"
    return either(
        mlp(before, path=path, pre="wi_0", pre_linear="wi_1", down="wo"),
        mlp(before, path=path, pre="wi", pre_linear=None, down="wo"),
    )


_BIAS = "the bias of their scores by distance"
_T5_ENCODER = Family(
    "t5 encoder",
    (),
    (_t5_attention(0, "SelfAttention"), _t5_mlp(1)),
    layers="block",
    final_norm="final_layer_norm",
    carries=_BIAS,
)
_T5 = Family(
    "t5",
    ("t5",),
    (_t5_attention(0, "SelfAttention"), crossing(_t5_attention(1, "EncDecAttention")), _t5_mlp(2)),
    embed="decoder.embed_tokens",
    layers="decoder.block",
    final_norm="decoder.final_layer_norm",
    unembed_scale="scale_decoder_outputs",
    carries=_BIAS,
    encoder=_T5_ENCODER,
)


def _t5gemma(*cross: BranchRow) -> tuple[BranchRow, ...]:
    """Gemma 2's block, of the encoder; with cross attention in it, of the decoder."""
    return (
        attn("pre_self_attn_layernorm", "post_self_attn_layernorm"),
        *cross,
        mlp("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    )


_T5GEMMA = Family(
    "t5gemma",
    ("t5gemma",),
    _t5gemma(crossing(attn("pre_cross_attn_layernorm", "post_cross_attn_layernorm", path="cross_attn"))),
    embed="decoder.embed_tokens",
    embed_scale="sqrt(d_model)",
    layers="decoder.layers",
    final_norm="decoder.norm",
    logit_steps=(("soft_cap", "final_logit_softcapping"),),
    encoder=Family("t5gemma encoder", (), _t5gemma(), embed_scale="sqrt(d_model)"),
)


def _with_encoder(decoder: Family, model_types: tuple[str, ...], **encoder: Any) -> Family:
    """BART and its kin: the row of the decoder alone, cross attention after its attention, and the same block without
    it in the encoder."""
    own, feed = decoder.branches
    before, closing = ("encoder_attn_layer_norm", None) if own.before else (None, "encoder_attn_layer_norm")
    cross = within(crossing(attn(before, path="encoder_attn", out="out_proj")), closing)
    scale = None if decoder.embed_scale is None else "embed_scale"
    row = Family(
        f"{decoder.name} encoder",
        (),
        decoder.branches,
        embed_scale=scale,
        positions="embed_positions",
        entry=("layernorm_embedding",),
        final_norm="layer_norm",
    )
    return replace(
        decoder,
        model_types=model_types,
        branches=(own, cross, feed),
        logit_bias="final_logits_bias",
        encoder=replace(row, **encoder),
    )


_ALONE = {model_type: row for row in OLDER for model_type in row.model_types}

ENCODER_DECODERS: tuple[Family, ...] = (
    _T5,
    replace(_T5, name="mt5", model_types=("mt5",), unembed_scale=None),
    replace(  # every block has a bias of its own
        _T5,
        name="umt5",
        model_types=("umt5",),
        carries="",
        encoder=replace(_T5_ENCODER, name="umt5 encoder", carries=""),
    ),
    _T5GEMMA,
    _with_encoder(_ALONE["bart"], ("bart", "plbart")),
    _with_encoder(_ALONE["marian"], ("marian", "mvp")),
    _with_encoder(_ALONE["mbart"], ("mbart", "blenderbot", "m2m_100")),
    _with_encoder(_ALONE["pegasus"], ("pegasus",)),
    _with_encoder(_ALONE["blenderbot-small"], ("blenderbot-small",), embed_scale="embed_scale"),
    _with_encoder(_ALONE["whisper"], ("whisper",), embed="", positions=None, entry=()),
)
