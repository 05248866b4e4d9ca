"""Tiny encoder–decoders with random gains, biases and logit biases: 2 blocks in the encoder and 3 in the decoder.

`tiny_both("bart")` has d_model 32, 4 heads in the encoder and 2 in the decoder where a config tells them apart, 100
tokens and 64 positions; Whisper reads 8 channels of 24 frames, which are 12 positions.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, PreTrainedModel

from anymodel import randomised

IDS: dict[str, Any] = {
    "vocab_size": 100,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "decoder_start_token_id": 0,
}
_T5: dict[str, Any] = IDS | {
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
}
_BART: dict[str, Any] = IDS | {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "scale_embedding": True,
}
_GEMMA: dict[str, Any] = IDS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "query_pre_attn_scalar": 10,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
_SIDES = {
    "encoder": _GEMMA | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "decoder": _GEMMA
    | {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}
_SPARSE = {"num_experts": 4, "router_bias": True}
_EVERY_SECOND = {"encoder_sparse_step": 2, "decoder_sparse_step": 2}
_SOUND = {"num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 64}
# name -> (transformers' model type, config)
BOTH: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", _T5 | {"feed_forward_proj": "relu"}),
    "t5_gated": ("t5", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),  # as version 1.1
    "mt5": ("mt5", _T5),
    "umt5": ("umt5", _T5),
    "switch_transformers": (
        "switch_transformers",
        _T5 | _SPARSE | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    "longt5": ("longt5", _T5 | {"local_radius": 3, "encoder_attention_type": "local"}),
    "longt5_global": (
        "longt5",
        _T5 | {"local_radius": 3, "global_block_size": 4, "encoder_attention_type": "transient-global"},
    ),
    **{kind: (kind, _BART) for kind in ("bart", "plbart", "mvp", "marian", "mbart", "pegasus", "blenderbot")},
    "t5gemma": ("t5gemma", IDS | _SIDES),
    "m2m_100": ("m2m_100", _BART | {"pad_token_id": 1, "eos_token_id": 2}),
    "nllb-moe": ("nllb-moe", _BART | _SPARSE | {"pad_token_id": 1, "eos_token_id": 2} | _EVERY_SECOND),
    "bigbird_pegasus": ("bigbird_pegasus", _BART | {"encoder_attention_heads": 4, "use_bias": True}),
    "blenderbot-small": ("blenderbot-small", _BART),
    "whisper": ("whisper", _BART | _SOUND),
}


def tiny_both(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The tiny model itself: float32, evaluated, without gradients."""
    kind, settings = BOTH[name]
    config = AutoConfig.for_model(kind, **(settings | changes))
    loader: Any = AutoModelForSpeechSeq2Seq if kind == "whisper" else AutoModelForSeq2SeqLM
    hf = randomised(loader.from_config(config, dtype=torch.float32), seed)
    if (bias := getattr(hf, "final_logits_bias", None)) is not None:
        bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(seed + 1)))
    return hf


def source_of(name: str, rows: int = 2, length: int = 7) -> Any:
    """Random sources without padding: token ids, or Whisper's features."""
    draw = torch.Generator().manual_seed(3)
    if BOTH[name][0] == "whisper":
        return torch.randn(rows, 8, 24, generator=draw)
    return torch.randint(3, 100, (rows, length), generator=draw)
