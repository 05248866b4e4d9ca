"""The config of a GGUF file's model: what transformers makes of it, completed and checked against the file's keys.

transformers (`integrations/ggml.py`) maps some keys of each architecture and drops the others without a word: sizes of
experts, widths of heads and windows, soft caps, everything that scales rotations. Here every key is used, known to
change nothing, or named: in an error where the model would compute something else, in a note otherwise.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import reader

from ...errors import BadFile
from . import gguf_rope
from .checkpoint import FILE_ERRORS, explain
from .gguf_rope import Keys, count, number

# architectures whose keys are all known here: what is in no table changes nothing that transformers computes
ARCHITECTURES = frozenset({
    *("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "phi3", "gemma2", "gemma3", "stablelm", "starcoder2"),
    *("gpt2", "nemotron", "falcon"),
})  # fmt: skip
# key -> its reader, and the config's names for it; the first that a config has is set
_FIELDS: dict[str, tuple[Callable[[Keys, str, Any], Any], tuple[str, ...]]] = {
    "vocab_size": (count, ("vocab_size",)),
    "context_length": (count, ("max_position_embeddings",)),
    "block_count": (count, ("num_hidden_layers",)),
    "embedding_length": (count, ("hidden_size",)),
    "feed_forward_length": (count, ("n_inner", "ffn_hidden_size", "intermediate_size")),
    "expert_feed_forward_length": (count, ("moe_intermediate_size",)),
    "expert_shared_feed_forward_length": (count, ("shared_expert_intermediate_size",)),
    "attention.head_count": (count, ("num_attention_heads",)),
    "attention.head_count_kv": (count, ("num_kv_heads", "num_key_value_heads")),
    "attention.layer_norm_epsilon": (number, ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")),
    "attention.layer_norm_rms_epsilon": (number, ("rms_norm_eps", "layer_norm_epsilon", "norm_eps")),
    "expert_count": (count, ("num_experts", "num_local_experts")),
    "expert_used_count": (count, ("num_experts_per_tok",)),
    "expert_weights_norm": (lambda keys, key, _: bool(keys[key]), ("norm_topk_prob",)),
    "attn_logit_softcapping": (number, ("attn_logit_softcapping",)),
    "final_logit_softcapping": (number, ("final_logit_softcapping",)),
}
# keys with values that change nothing; another value is refused
_NEUTRAL: dict[str, tuple[Any, ...]] = gguf_rope.NEUTRAL | {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_weights_norm": (False,),
    "expert_weights_scale": (0, 1),
    "expert_gating_func": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
}
_HARMLESS = frozenset({
    *("use_parallel_residual", "tensor_data_layout", "rope.scaling.finetuned"),
    *("attention.key_length", "attention.value_length", "attention.sliding_window", "attention.sliding_window_pattern"),
})  # fmt: skip
_GEMMA = frozenset({"gemma2", "gemma3"})
_WINDOWED = frozenset({"phi3", "gemma2", "gemma3", "starcoder2"})  # for each of them, all layers or a fixed pattern
_FLOATS = {0: np.float32, 1: np.float16}
_SHARED = ("general.", "tokenizer.", "quantize.", "imatrix.", "split.", "GGUF.")  # of no architecture


@dataclass(frozen=True)
class Described:
    """What a GGUF file says of its model, without the weights.

    Attributes:
        tensors: names of all tensors in the file.
        notes: for the user: keys that nothing reads.
    """

    architecture: str
    config: PreTrainedConfig
    tensors: tuple[str, ...]
    notes: list[str]


def described(path: Path) -> Described:
    """Raises `BadFile` naming what is damaged, cannot be, or asks for something that transformers does not compute."""
    try:
        header = Header.of(path)
        _check_whole(header)
        known = header.architecture in ARCHITECTURES
        if not known:
            _check_unscaled(header)
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
        notes = _completed(config, header) if known else _unread(config, header)
        _check_size(config, header)
    except BadFile as error:
        raise BadFile(f"cannot load {path.name}: {error}") from error
    except FILE_ERRORS as error:
        raise BadFile(f"cannot load {path.name}: {explain(error)}") from error
    strange = [key for key in header.metadata if not key.startswith((*_SHARED, f"{header.architecture}."))]
    return Described(header.architecture, config, tuple(header.table), [*notes, *_named(strange)])


@dataclass(frozen=True)
class Header:
    """Metadata and table of tensors of a GGUF file. transformers' public reader of the table refuses files with tensors
    of kinds that it cannot unpack itself (Q5_0), and gguf's takes half a minute for a vocabulary of 128,000.

    Attributes:
        keys: metadata of the architecture, without its name.
        table: name -> shape, ggml's kind, offset in the data, which begin at `start`.
    """

    path: Path
    metadata: dict[str, Any]
    keys: Keys
    table: dict[str, tuple[tuple[int, ...], int, int]]
    start: int

    @staticmethod
    def of(path: Path) -> "Header":
        blob = reader._mapped(str(path))
        metadata, n, end = reader._read_metadata(blob, str(path))
        table, end = reader._read_tensor_table(blob, n, end)
        prefix, step = f"{metadata['general.architecture']}.", metadata.get("general.alignment", 32)
        keys = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
        return Header(path, metadata, keys, {name: tuple(row) for name, *row in table}, -(-end // step) * step)

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def numbers(self, name: str) -> list[float] | None:
        """What a small tensor holds; None if it is not there."""
        if name not in self.table:
            return None
        shape, kind, offset = self.table[name]
        if kind not in _FLOATS:
            raise BadFile(f"{name} is stored in ggml's kind {kind}, not as 16 or 32 bit floats")
        values = np.fromfile(self.path, _FLOATS[kind], prod(shape), offset=self.start + offset)
        return values.tolist()  # type: ignore[no-any-return]


def _check_whole(header: Header) -> None:
    """Before transformers makes a list as long as the number of layers that a file claims."""
    if (parts := header.metadata.get("split.count", 1)) not in (0, 1):
        raise BadFile(f"it is one of {parts} parts (split.count); join them with llama.cpp's gguf-split")
    layers = count(header.keys, "block_count", None)
    held = {name.split(".")[1] for name in header.table if name.startswith("blk.")}
    if layers is not None and layers > len(held):
        raise BadFile(f"block_count is {layers}, and the file has the tensors of {len(held)} blocks")


def _check_size(config: PreTrainedConfig, header: Header) -> None:
    """Before memory is taken for the sizes that a file claims."""
    with torch.device("meta"):
        wanted = sum(
            parameter.numel()
            for parameter in AutoModelForCausalLM.from_config(config, trust_remote_code=False).parameters()
        )
    held = sum(prod(shape) for shape, *_ in header.table.values())
    if wanted > 2 * held:
        raise BadFile(f"its sizes make a model of {wanted:,} parameters, and it holds {held:,}")


def _completed(config: Any, header: Header) -> list[str]:
    """Set everything that the file says; notes on what nothing reads."""
    architecture, keys, unread = header.architecture, header.keys, []
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):  # a config class has one checkpoint's
        setattr(config, f"{ours}_token_id", header.metadata.get(f"tokenizer.ggml.{theirs}_token_id"))
    for key, value in keys.items():
        read, names = _FIELDS.get(key, (None, ()))
        name = next((name for name in names if hasattr(config, name)), None)
        if read is not None and name is not None:
            off = key.endswith("softcapping") and value == 0
            setattr(config, name, None if off else read(keys, key, None))
        elif key in _NEUTRAL:
            if value not in _NEUTRAL[key] and not (key == "attention.scale" and architecture in _GEMMA):
                raise BadFile(f"{key} is {value!r}, which transformers' {config.model_type} does not compute")
        elif key not in _HARMLESS | gguf_rope.READ:
            unread.append(f"{architecture}.{key}")
    d_head = _set_head(config, architecture, keys)
    _set_windows(config, architecture, keys)
    if architecture in _GEMMA:
        _set_gemma_scale(config, keys, d_head)
    if rope := getattr(config, "rope_parameters", None):
        context = count(keys, "context_length", config.max_position_embeddings)
        rope = gguf_rope.rope_parameters(keys, rope, d_head, context, header.numbers)
        if hasattr(config, "original_max_position_embeddings"):  # Phi-3: it goes before the number in the parameters
            config.original_max_position_embeddings = rope.get("original_max_position_embeddings", context)
        config.rope_parameters = rope
    elif any(key.startswith("rope.scaling.") for key in keys):
        raise BadFile(f"{architecture}.rope.scaling.* scales rotations, and this architecture has none")
    config.validate()
    return _named(unread)


def _check_unscaled(header: Header) -> None:
    """transformers alone makes the config of this architecture: nothing that scales rotations may be lost. It reads
    `rope.scaling` of GPT-OSS, but fails at it. Gemma 4's divisors are in its config."""
    lost = [key for key in header.keys if key.startswith("rope.scal") and key not in _HARMLESS]
    if header.architecture != "gemma4":
        lost += sorted(gguf_rope.TENSORS & set(header.table))
    if lost:
        raise BadFile(f"{', '.join(lost)}: transformers does not scale rotations of {header.architecture} files")


def _unread(config: Any, header: Header) -> list[str]:
    mapped: Any = GGUF_CONFIG_MAPPING.get(config.model_type.removesuffix("_text"))
    return [] if mapped is None else _named(f"{header.architecture}.{key}" for key in header.keys if key not in mapped)


def _set_head(config: Any, architecture: str, keys: Keys) -> int:
    """Width of a head: the file's, else as transformers derives it."""
    derived = config.hidden_size // config.num_attention_heads
    d_head = count(keys, "attention.key_length", getattr(config, "head_dim", None) or derived)
    if (value := count(keys, "attention.value_length", d_head)) != d_head:
        raise BadFile(f"attention.value_length is {value}, unlike attention.key_length ({d_head})")
    if d_head != (getattr(config, "head_dim", None) or derived):
        if "head_dim" not in getattr(type(config), "__dataclass_fields__", {}):
            raise BadFile(f"attention.key_length is {d_head}; heads of {architecture} are {derived} wide by its sizes")
        config.head_dim = d_head
    return d_head


def _set_windows(config: Any, architecture: str, keys: Keys) -> None:
    if architecture not in _WINDOWED:
        return
    if (width := keys.get("attention.sliding_window")) is not None:
        config.sliding_window = count(keys, "attention.sliding_window", None) if width else None
    if architecture == "gemma3" and (pattern := keys.get("attention.sliding_window_pattern")) is not None:
        layers = range(config.num_hidden_layers)
        step = 1 if isinstance(pattern, list) else count(keys, "attention.sliding_window_pattern", None)
        every = pattern if isinstance(pattern, list) else [(layer + 1) % step > 0 for layer in layers]
        if len(every) != len(layers):
            raise BadFile(f"attention.sliding_window_pattern names {len(every)} layers of {len(layers)}")
        config.layer_types = ["sliding_attention" if slides else "full_attention" for slides in every]


def _set_gemma_scale(config: Any, keys: Keys, d_head: int) -> None:
    """Scores are divided by the square root of this. Files do not say it; llama.cpp (`gemma2.cpp`, `gemma3.cpp`) knows
    the 27B models by their number of layers, and takes the width of a head for the others."""
    scale = number(keys, "attention.scale", None) if keys.get("attention.scale") else None
    largest = (config.model_type, config.num_hidden_layers) in {("gemma2", 46), ("gemma3_text", 62)}
    derived = config.hidden_size // config.num_attention_heads if largest else d_head
    if scale is not None and abs(round(scale**-2) - scale**-2) > 1e-3:
        raise BadFile(f"attention.scale is {scale:g}, and {config.model_type} divides by the root of a whole number")
    config.query_pre_attn_scalar = derived if scale is None else round(scale**-2)


def _named(keys: Iterable[str]) -> list[str]:
    keys = sorted(keys)
    few = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
    return [f"{len(keys)} keys of the file are not used ({few})"] if keys else []
