"""A tiny Llama as a GGUF file, written as llama.cpp's converter would, and as a wheel that holds it."""

import base64
import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tiny import tiny_hf

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ġ", "hello")]
TOKENS = [*SPECIALS, *bytes_to_unicode().values(), *("".join(pair) for pair in MERGES)]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"

_NAMES = {  # of a layer: transformers' name -> (llama.cpp's name, heads of a rotary projection)
    "input_layernorm": ("attn_norm", 0),
    "post_attention_layernorm": ("ffn_norm", 0),
    "self_attn.q_proj": ("attn_q", 4),
    "self_attn.k_proj": ("attn_k", 2),
    "self_attn.v_proj": ("attn_v", 0),
    "self_attn.o_proj": ("attn_output", 0),
    "mlp.gate_proj": ("ffn_gate", 0),
    "mlp.up_proj": ("ffn_up", 0),
    "mlp.down_proj": ("ffn_down", 0),
}


def gguf_source() -> PreTrainedModel:
    """The model that `write_gguf` writes: widths are multiples of 32, the size of a quantisation block."""
    return tiny_hf("llama_tied", vocab_size=len(TOKENS), intermediate_size=64, rope_theta=10000.0)


def write_gguf(path: Path, split: str | None = "smollm", kind: str = "F32") -> Path:
    """Write the tiny Llama; matrices in `kind` (F32, Q8_0, Q4_1), gains in F32."""
    hf = gguf_source()
    config = hf.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, values in gguf_tensors(hf).items():
        quantisation = gguf.GGMLQuantizationType["F32" if values.ndim == 1 else kind]
        packed = values if quantisation.name == "F32" else gguf.quantize(values, quantisation)
        writer.add_tensor(name, packed, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(hf: PreTrainedModel) -> dict[str, np.ndarray]:
    state = {name: value.detach().numpy() for name, value in hf.state_dict().items()}
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    for layer in range(hf.config.num_hidden_layers):
        for ours, (theirs, heads) in _NAMES.items():
            value = state[f"model.layers.{layer}.{ours}.weight"]
            if heads:  # llama.cpp rotates neighbouring pairs, transformers the two halves of a head
                halves = value.reshape(heads, 2, value.shape[0] // heads // 2, value.shape[1])
                value = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
            tensors[f"blk.{layer}.{theirs}.weight"] = value
    return tensors


def write_wheel(folder: Path, file: Path, package: str = "llm_tiny", version: str = "0.1") -> Path:
    """A wheel as pip wants it, with `file` inside `package`, which depends on something that does not exist."""
    info = f"{package}-{version}.dist-info"
    name = package.replace("_", "-")
    contents = {
        f"{package}/{file.name}": file.read_bytes(),
        f"{package}/__init__.py": b"raise RuntimeError('the wheel must not be imported')\n",
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: no-such-package-anywhere\n"
        ).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]).encode()
    wheel = folder / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
