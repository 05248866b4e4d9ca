"""Tiny models of every supported family, with random gains and biases: a zero-initialised norm or bias hides errors.

`tiny_hf("gemma2")` makes a Hugging Face model with 3 layers, d_model 32, 4 heads (2 kv heads where the family has GQA),
head_dim 8 (Gemma: 12, so that head_dim != d_model / heads), d_mlp 48, vocab 100 and 64 positions. Families with a
sliding window have window 8 (all layers for Mistral, mixed with full attention for Gemma 2 and 3).
"""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from monosem.models import Family, Model

VOCAB = 100
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}  # ids 0, 1, 2

_IDS: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_LLAMA: dict[str, Any] = _IDS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_GEMMA: dict[str, Any] = _LLAMA | {
    "head_dim": 12,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
_MIXED: dict[str, Any] = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 10,
}
_NEOX: dict[str, Any] = _IDS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rotary_pct": 0.5,
}

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 150000.0}
_MOE: dict[str, Any] = _LLAMA | {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GPT2: dict[str, Any] = _IDS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 64}

# family -> (transformers' model type, config)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama_tied": ("llama", _LLAMA | {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA),
    "mistral": ("mistral", _LLAMA | {"sliding_window": 8}),
    "smollm3": ("smollm3", _LLAMA | {"no_rope_layers": [1, 0, 1]}),
    "gpt2": ("gpt2", _GPT2 | {"tie_word_embeddings": True}),
    "gpt2_inverse_layer": ("gpt2", _GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neo": (
        "gpt_neo",
        _IDS
        | {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
    ),
    "gptj": ("gptj", _GPT2 | {"rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", _NEOX | {"use_parallel_residual": True}),
    "gpt_neox_sequential": ("gpt_neox", _NEOX | {"use_parallel_residual": False}),
    "gemma": ("gemma", _GEMMA),
    "gemma2": ("gemma2", _GEMMA | _MIXED | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3_text": ("gemma3_text", _GEMMA | _MIXED),
    "phi": ("phi", _LLAMA | {"partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi3": ("phi3", _LLAMA),
    "olmo": ("olmo", _LLAMA | {"clip_qkv": 1.0}),
    "olmo2": ("olmo2", _LLAMA),
    "olmo3": (
        "olmo3",
        _LLAMA | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "cohere": ("cohere", _LLAMA | {"logit_scale": 0.3, "use_qk_norm": True}),
    "cohere2": ("cohere2", _LLAMA | {"logit_scale": 0.3, "sliding_window": 8}),
    "granite": (
        "granite",
        _LLAMA
        | {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.4, "logits_scaling": 2.0},
    ),
    "glm": ("glm", _LLAMA),
    "glm4": ("glm4", _LLAMA),
    "starcoder2": ("starcoder2", _LLAMA | {"sliding_window": None}),
    "stablelm": ("stablelm", _LLAMA),
    "stablelm_parallel": ("stablelm", _LLAMA | {"use_parallel_residual": True, "qk_layernorm": True}),
    "mixtral": ("mixtral", _MOE | {"num_local_experts": 4}),
    "qwen2_moe": ("qwen2_moe", _MOE | {"num_experts": 4, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", _MOE | {"num_experts": 4, "norm_topk_prob": True}),
    "gpt_oss": ("gpt_oss", _MOE | {"num_local_experts": 4, "sliding_window": 8, "rope_parameters": _YARN}),
}

# families off transformers' attention registry, where nothing inside attention can be read
UNREGISTERED = ("gpt_neo",) if Version(transformers.__version__) >= Version("5.24") else ("gpt_neo", "gptj")


def tiny_hf(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny random model in eval mode, float32, without gradients. `overrides` go into the config."""
    kind, settings = FAMILIES[family]
    config = AutoConfig.for_model(kind, **(settings | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    return model.eval().requires_grad_(False)


def tiny_model(family: str = "llama", seed: int = 0, name: str | None = None, **overrides: Any) -> Model:
    """A fresh tiny `Model` with the tiny tokenizer, named after its family unless a name is given."""
    return Model(tiny_hf(family, seed, **overrides), tiny_tokenizer(), name=name or family)


@cache
def model_of(family: str = "llama", name: str | None = None) -> Model:
    """The same, one for all tests: not for tests that change the model."""
    return tiny_model(family, name=name)


def changed(family: Family, changes: dict[str, Any]) -> Family:
    """A row with other values: "layers", or "attn.q" and "mlp.before" for what belongs to a branch."""
    branches = []
    for row in family.branches:
        own = {key.partition(".")[2]: v for key, v in changes.items() if key.startswith(f"{row.name}.")}
        of_row = {key: own.pop(key) for key in list(own) if hasattr(row, key)}
        *others, mixer = row.mixers
        of_mixer = {key: own.pop(key) for key in list(own) if hasattr(mixer, key)}
        parts = {key: value for key, value in (mixer.parts | own).items() if value is not None}
        branches.append(replace(row, mixers=(*others, replace(mixer, parts=parts, **of_mixer)), **of_row))
    whole = {key: value for key, value in changes.items() if "." not in key}
    return replace(family, branches=tuple(branches), **whole)


def is_parallel(model: Model) -> bool:
    """Whether attention and MLP read the same stream."""
    return model.branch("mlp", 1).reads.name == "resid_pre"


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Fill every parameter: matrices with std 1/sqrt(fan_in), embeddings std 1, gains 1 + 0.3 randn (Gemma, which uses
    1 + w: 0.3 randn), biases 0.3 randn."""
    draw = torch.Generator().manual_seed(seed)
    centre = 0.0 if model.config.model_type.startswith("gemma") else 1.0
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if parameter.ndim == 1 or "norm" in name:  # Cohere's qk-norm has a gain for each head
            gain = name.endswith("weight")  # no family here has any other one-dimensional weight than a norm's gain
            value = (centre if gain else 0.0) + 0.3 * noise
        elif parameter is model.get_input_embeddings().weight:
            # tied tables also unembed, and Gemma multiplies the embedding by sqrt(d_model): 1/sqrt(d) suits both
            tied = parameter is model.get_output_embeddings().weight
            value = noise / math.sqrt(parameter.shape[1]) if tied else noise
        else:
            conv1d = model.config.model_type == "gpt2" and "wte" not in name and "wpe" not in name
            out_first = not (conv1d and name != "lm_head.weight") and model.config.model_type != "gpt_oss"
            value = noise / math.sqrt(parameter.shape[-1 if out_first else -2])
        parameter.data.copy_(value)


# a word is one token together with the space before it; single characters make every lower-case text encodable
WORDS = """
the a cat dog sat on mat ran to big small red blue and or is was it he she they we you I not very good bad happy sad
man woman child house tree sun moon sea day night one two three four five capital of France Paris London Rome in at
"""


@cache
def _vocabulary() -> dict[str, int]:
    words = ["▁" + word for word in WORDS.split()]
    pieces = [*SPECIAL.values(), "<unk>", *words, *"abcdefghijklmnopqrstuvwxyz", "▁", ".", ",", "?"]
    pieces += [f"<extra{i}>" for i in range(VOCAB - len(pieces))]
    assert len(set(pieces)) == len(pieces) == VOCAB
    return {piece: i for i, piece in enumerate(pieces)}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words of `WORDS` are one token each (with their leading space), other lower-case words are spelled in characters.

    100 tokens; <s> is 0, </s> is 1, <pad> is 2. Adds no special token by itself. "the cat sat" is 3 tokens.
    """
    scores = [(piece, 0.0 if len(piece) > 2 else -5.0) for piece in _vocabulary()]
    core = Tokenizer(models.Unigram(scores, unk_id=_vocabulary()["<unk>"], byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **SPECIAL, model_max_length=64)


def spaced_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """As Llama 2: a space is put before every text, so that " Paris" alone is a space and "▁Paris".

    The special tokens and <unk> are 0 to 3; the pieces follow.
    """
    every = [*SPECIAL.values(), "<unk>", *pieces]
    core = Tokenizer(models.Unigram([(piece, 0.0 if len(piece) > 1 else -5.0) for piece in every], unk_id=3))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **SPECIAL)
