"""stories260K (Karpathy, MIT), a real small model of stories, from its llama2.c file."""

import struct
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from monosem.models import Model

FILE = Path(__file__).parents[2] / "shared" / "data" / "models" / "stories260K" / "stories260K.bin"


def stories() -> Model:
    """float32, without a tokenizer; token 1 begins a story."""
    data = FILE.read_bytes()
    d, hidden, layers, heads, kv, vocab, context = struct.unpack("7i", data[:28])
    values, at = torch.from_numpy(np.frombuffer(data, "<f4", offset=28).copy()), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return values[at - size : at].view(shape)

    def halves(weights: torch.Tensor, n: int) -> torch.Tensor:
        """Pairs of neighbours are turned there, halves of a head here."""
        return weights.view(n, d // heads // 2, 2, d).transpose(1, 2).reshape(weights.shape)

    config = LlamaConfig(
        vocab_size=vocab, hidden_size=d, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, max_position_embeddings=context, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    own = {"model.embed_tokens.weight": take(vocab, d)}
    shapes = {
        "input_layernorm": (d,), "self_attn.q_proj": (d, d), "self_attn.k_proj": (d * kv // heads, d),
        "self_attn.v_proj": (d * kv // heads, d), "self_attn.o_proj": (d, d), "post_attention_layernorm": (d,),
        "mlp.gate_proj": (hidden, d), "mlp.down_proj": (d, hidden), "mlp.up_proj": (hidden, d),
    }  # fmt: skip
    for name, shape in shapes.items():
        for layer in range(layers):
            weights = take(*shape)
            n = {"self_attn.q_proj": heads, "self_attn.k_proj": kv}.get(name)
            own[f"model.layers.{layer}.{name}.weight"] = weights if n is None else halves(weights, n)
    own["model.norm.weight"] = take(d)
    own["lm_head.weight"] = own["model.embed_tokens.weight"]
    hf = LlamaForCausalLM(config)
    hf.load_state_dict(own)
    return Model(hf.eval(), None, name="stories260K")


def written(model: Model, n: int, length: int, seed: int = 0) -> torch.Tensor:
    """Stories that the model makes up itself, `n length` token ids."""
    torch.manual_seed(seed)
    start = torch.ones(n, 1, dtype=torch.long)
    with torch.no_grad():
        mask, more = torch.ones_like(start), length - 1
        made = model.hf.generate(
            start, attention_mask=mask, max_new_tokens=more, min_new_tokens=more, do_sample=True, pad_token_id=0
        )
    return made[:, :length]
