"""Rows of encoder–decoders, part of the table in `table.py`: the decoder's row, with the encoder's in it.

The decoder's paths begin in the model that has both (`decoder.layers`), the encoder's in the encoder (`layers`). A
block of the decoder has one branch more than a decoder's alone: cross attention, whose keys and values are made of
what the encoder gives.
"""

from dataclasses import replace
from typing import Any

from .families import BranchRow, Family, attn, crossing, either, mlp
from .mixers import Mixer
from .older import OLDER, within


def _t5_attention(layer: int, name: str) -> BranchRow:
    return attn(f"layer.{layer}.layer_norm", path=f"layer.{layer}.{name}", q="q", k="k", v="v", out="o")


def _t5_mlp(layer: int, name: str = "DenseReluDense") -> BranchRow:
    before, path = f"layer.{layer}.layer_norm", f"layer.{layer}.{name}"
    return either(
        mlp(before, path=path, pre="wi_0", pre_linear="wi_1", down="wo"),
        mlp(before, path=path, pre="wi", pre_linear=None, down="wo"),
    )


def _or_whole(row: BranchRow, path: str) -> BranchRow:
    """A row whose mixer some blocks replace by one that is read as a whole, at this path."""
    return replace(row, mixers=(*row.mixers, Mixer("other", path)))


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
# its mixtures drop tokens where an expert has too many of a text
_SWITCH = replace(
    _T5,
    name="switch_transformers",
    model_types=("switch_transformers",),
    branches=(*_T5.branches[:2], _or_whole(_t5_mlp(2, "mlp"), "layer.2.mlp")),
    unembed_scale="tie_word_embeddings",
    encoder=replace(
        _T5_ENCODER,
        name="switch_transformers encoder",
        branches=(_T5_ENCODER.branches[0], _or_whole(_t5_mlp(1, "mlp"), "layer.1.mlp")),
    ),
)
# the encoder's tokens see a window, in an attention of its own; or also sums of blocks, whose keys k and v make as well
_LONG_T5 = replace(
    _T5,
    name="longt5",
    model_types=("longt5",),
    unembed_scale="tie_word_embeddings",
    encoder=replace(
        _T5_ENCODER,
        name="longt5 encoder",
        branches=(
            _or_whole(
                within(_t5_attention(0, "LocalSelfAttention"), registered=False), "layer.0.TransientGlobalSelfAttention"
            ),
            _T5_ENCODER.branches[1],
        ),
    ),
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
    registered = own.mixers[0].registered
    cross = within(crossing(attn(before, path="encoder_attn", out="out_proj")), closing, registered=registered)
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


def _nllb_moe(*cross: BranchRow) -> tuple[BranchRow, ...]:
    """M2M-100's block with a mixture in some. The mixture takes attention's mask for one of padding, and reads it
    right in transformers' eager form alone."""
    own = attn("self_attn_layer_norm", out="out_proj")
    feed = mlp("ff_layer_norm", path="ffn", pre="fc1", pre_linear=None, down="fc2")
    return (*(within(row, registered=False) for row in (own, *cross)), _or_whole(feed, "ffn"))


_ALONE = {model_type: row for row in OLDER for model_type in row.model_types}
_M2M = _with_encoder(_ALONE["mbart"], ())
_NLLB_MOE = replace(
    _M2M,
    name="nllb-moe",
    model_types=("nllb-moe",),
    branches=_nllb_moe(crossing(attn("cross_attention_layer_norm", path="cross_attention", out="out_proj"))),
    encoder=replace(_M2M.encoder or _M2M, name="nllb-moe encoder", branches=_nllb_moe()),
)

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
    _SWITCH,
    _LONG_T5,
    _T5GEMMA,
    _with_encoder(_ALONE["bart"], ("bart", "plbart")),
    _with_encoder(_ALONE["marian"], ("marian", "mvp")),
    _with_encoder(_ALONE["mbart"], ("mbart", "blenderbot", "m2m_100")),
    _NLLB_MOE,
    _with_encoder(  # transformers itself puts full attention in place of the sparse one at the first short source
        _ALONE["bigbird_pegasus"],
        ("bigbird_pegasus",),
        branches=(
            within(
                attn("self_attn_layer_norm", q="self.query", k="self.key", v="self.value", out="output"),
                registered=False,
            ),
            _ALONE["bigbird_pegasus"].branches[1],
        ),
        entry=(),
        final_norm="layernorm_embedding",
    ),
    _with_encoder(_ALONE["pegasus"], ("pegasus",)),
    _with_encoder(_ALONE["blenderbot-small"], ("blenderbot-small",), embed_scale="embed_scale"),
    _with_encoder(_ALONE["whisper"], ("whisper",), embed="", positions=None, entry=()),
)
