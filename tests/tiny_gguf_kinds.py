"""Tiny models of the architectures that transformers reads from GGUF files, written as llama.cpp's converter would."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tiny import FAMILIES, randomise, tiny_hf

_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {  # not in the table of families: model type, config
    "nemotron": ("nemotron", FAMILIES["llama"][1] | {"partial_rotary_factor": 0.25, "norm_eps": 1e-2}),
    "falcon": (
        "falcon",
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "bias": False}
        | {"multi_query": True, "parallel_attn": True, "max_position_embeddings": 64, "rope_theta": 500.0},
    ),
}
# architecture of the file -> (family of `tiny.py`, config)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3moe": ("qwen3_moe", {"rms_norm_eps": 1e-2}),
    "qwen2moe": ("qwen2_moe", {"norm_topk_prob": False}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "gemma2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        },
    ),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5, "rope_theta": 500.0}),
    "starcoder2": ("starcoder2", {"sliding_window": 8, "rope_theta": 500.0}),
    "gpt2": ("gpt2", {}),
    "nemotron": ("nemotron", {}),
    "falcon": ("falcon", {}),
}
_EPS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
_KEYS = {  # key after the architecture -> names in the config, and the type of the value
    "block_count": (("num_hidden_layers",), "uint32"),
    "context_length": (("max_position_embeddings",), "uint32"),
    "embedding_length": (("hidden_size",), "uint32"),
    "feed_forward_length": (("n_inner", "intermediate_size"), "uint32"),
    "attention.head_count": (("num_attention_heads",), "uint32"),
    "attention.head_count_kv": (("num_key_value_heads",), "uint32"),
    "attention.sliding_window": (("sliding_window",), "uint32"),
    "attn_logit_softcapping": (("attn_logit_softcapping",), "float32"),
    "final_logit_softcapping": (("final_logit_softcapping",), "float32"),
    "expert_count": (("num_experts",), "uint32"),
    "expert_used_count": (("num_experts_per_tok",), "uint32"),
    "expert_feed_forward_length": (("moe_intermediate_size",), "uint32"),
    "expert_shared_feed_forward_length": (("shared_expert_intermediate_size",), "uint32"),
}


def gguf_hf(arch: str, **config: Any) -> PreTrainedModel:
    family, settings = KINDS[arch]
    if family in FAMILIES:
        return tiny_hf(family, **(settings | config))
    kind, base = _OTHERS[family]
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(base | settings | config)), dtype=torch.float32)
    randomise(hf, 0)
    return hf.eval().requires_grad_(False)


def metadata_of(arch: str, config: Any) -> dict[str, tuple[Any, str]]:
    """Key -> value and its type."""
    found: dict[str, tuple[Any, str]] = {}
    for key, (names, kind) in _KEYS.items():
        value = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
        if value:
            found[f"{arch}.{key}"] = (value, kind)
    eps = next(value for name in _EPS if (value := getattr(config, name, None)) is not None)
    rms = hasattr(config, "rms_norm_eps")
    found[f"{arch}.attention.layer_norm_{'rms_' if rms else ''}epsilon"] = (eps, "float32")
    if arch == "gpt2":
        return found
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    whole = rope.get("full_attention", rope)
    found[f"{arch}.attention.key_length"] = (d_head, "uint32")
    found[f"{arch}.attention.value_length"] = (d_head, "uint32")
    found[f"{arch}.rope.dimension_count"] = (int(d_head * whole.get("partial_rotary_factor", 1)), "uint32")
    found[f"{arch}.rope.freq_base"] = (float(whole["rope_theta"]), "float32")
    return found


def write_kind(
    path: Path,
    arch: str,
    hf: PreTrainedModel,
    keys: dict[str, tuple[Any, str] | None] | None = None,
    tensors: dict[str, Any] | None = None,
) -> Path:
    """Write a model, with further metadata (key -> value and type; None leaves a key out) and further tensors."""
    writer = gguf.GGUFWriter(path, arch)
    for key, pair in (metadata_of(arch, hf.config) | (keys or {})).items():
        if pair is not None:
            _add(writer, key, *pair)
    writer.add_vocab_size(hf.config.vocab_size)
    for name, value in (tensors_of(arch, hf) | (tensors or {})).items():
        writer.add_tensor(name, np.ascontiguousarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any, kind: str) -> None:
    if kind == "array":
        writer.add_array(key, value)
    else:
        getattr(writer, f"add_{kind}")(key, value)


def tensors_of(arch: str, hf: PreTrainedModel) -> dict[str, np.ndarray]:
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, hf.config.num_hidden_layers)
    found = {}
    for name, parameter in hf.state_dict().items():
        if name == "lm_head.weight" and hf.config.tie_word_embeddings:
            continue
        value = parameter.float()
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = hf.config.num_attention_heads if "q_proj" in name else hf.config.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        if (arch.startswith("gemma") and "norm" in name) or (arch == "nemotron" and name.endswith("norm.weight")):
            value = value + 1
        if arch == "gpt2" and value.ndim == 2 and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            value = value.T
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), value.chunk(2, 1)):
                found[f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight"] = half.numpy()
            continue
        stem, dot, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, dot, suffix = name, ".", "weight"
        theirs = names.get_name(stem)
        assert theirs is not None, name
        if "shexp" in theirs and "inp" in theirs:
            value = value[0]
        found[f"{theirs}{dot}{suffix}"] = value.numpy()
    return found


def ids_of(n: int = 20, rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 100, (rows, n), generator=torch.Generator().manual_seed(1))
