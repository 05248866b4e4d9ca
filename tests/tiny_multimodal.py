"""Tiny multimodal models, with random weights: a language model beside the smallest tower that its type allows."""

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedModel

from tiny import _GEMMA, _LLAMA, _MIXED, randomise

_CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_EYES: dict[str, Any] = {"depth": 2, "num_heads": 4, "hidden_size": 32}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_IMAGE: dict[str, Any] = {"image_token_id": 99}
_LLAVA: dict[str, Any] = {"text_config": _LLAMA | {"model_type": "llama"}, "vision_config": _CLIP} | _IMAGE

# what transformers calls it -> its config
MULTIMODAL: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": _GEMMA | _MIXED,
        "vision_config": _CLIP,
        "mm_tokens_per_image": 4,
        "image_token_index": 99,
        "boi_token_index": 98,
        "eoi_token_index": 97,
    },
    "mistral3": {
        "text_config": _LLAMA | {"model_type": "mistral", "sliding_window": 8},
        "vision_config": _CLIP | {"model_type": "pixtral", "head_dim": 8},
        "image_token_index": 99,
    },
    "qwen2_vl": {
        "text_config": _LLAMA | _MROPE,
        "vision_config": {"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 32},
        **_IMAGE,
    },
    "qwen2_5_vl": {
        "text_config": _LLAMA | _MROPE,
        "vision_config": _QWEN_EYES | {"out_hidden_size": 32, "intermediate_size": 48, "fullatt_block_indexes": [1]},
        **_IMAGE,
    },
    "qwen3_vl": {
        "text_config": _LLAMA | _MROPE,
        "vision_config": _QWEN_EYES
        | {
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        **_IMAGE,
    },
    "llava": _LLAVA | {"vision_config": _CLIP | {"model_type": "clip_vision_model"}},
    "llava_next": _LLAVA | {"vision_config": _CLIP | {"model_type": "clip_vision_model"}},
    "idefics3": _LLAVA,
    "smolvlm": _LLAVA,
    "internvl": {
        "text_config": _LLAMA | {"model_type": "qwen2"},
        "vision_config": _CLIP | {"image_size": [28, 28], "patch_size": [14, 14]},
        "downsample_ratio": 0.5,
        **_IMAGE,
    },
    # the whole leaves the scale of the logits out
    "aya_vision": {
        "text_config": _LLAMA | {"model_type": "cohere2", "logit_scale": 0.3, "sliding_window": 8},
        "vision_config": _CLIP | {"model_type": "siglip_vision_model"},
        "adapter_layer_norm_eps": 1e-6,
        "image_token_index": 99,
    },
}
# those whose language model is not in the family table; each layer is of another kind
OTHERS: dict[str, dict[str, Any]] = {
    "qwen3_5": {
        "text_config": _LLAMA
        | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "vision_config": _QWEN_EYES | {"out_hidden_size": 32, "intermediate_size": 48, "num_position_embeddings": 16},
        **_IMAGE,
    },
    "gemma4": {
        "text_config": _GEMMA
        | {"layer_types": _MIXED["layer_types"], "sliding_window": 8, "global_head_dim": 12}
        | {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 100},
        "vision_config": _CLIP | {"num_key_value_heads": 4, "head_dim": 8, "global_head_dim": 8},
        "audio_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
        "image_token_id": 99,
        "audio_token_id": 98,
    },
    "llama4": {
        "text_config": _LLAMA
        | {"intermediate_size_mlp": 48, "num_local_experts": 4, "interleave_moe_layer_step": 2}
        | {"attention_chunk_size": 6, "no_rope_layers": [1, 0, 1]},
        "vision_config": _CLIP | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "mllama": {
        "text_config": _LLAMA | {"cross_attention_layers": [1], "rope_parameters": {"rope_type": "default"}},
        "vision_config": _CLIP
        | {"num_global_layers": 1, "attention_heads": 4, "vision_output_dim": 64, "max_num_tiles": 1}
        | {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]},
        "image_token_index": 99,
    },
}
# its language model is Gemma, but a prompt's tokens see the later ones
PALIGEMMA: dict[str, Any] = {
    "text_config": _GEMMA | {"model_type": "gemma"},
    "vision_config": _CLIP | {"projection_dim": 32},
    "projection_dim": 32,
    "image_token_index": 99,
}


def tiny_multimodal(kind: str, seed: int = 0) -> PreTrainedModel:
    settings = deepcopy(
        (MULTIMODAL | OTHERS | {"paligemma": PALIGEMMA})[kind]
    )  # Gemma 4 writes into the list of layers
    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    return model.eval().requires_grad_(False)
