#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): a prompt's logits where rotary embeddings depend on the length of the prompt.
# One would guess: with the mask and the positions given, a row of a right-padded batch has the logits that it has alone,
#   and no prompt changes those of a later one.
# What happens: "longrope" (Phi-3 128k) takes the long factors for all rows when one row is longer than the original
#   context: a short row is off by 112 % of its largest logit (tiny random Phi-3). "dynamic" (NTK) goes on with the base of
#   the longest prompt so far, until a prompt strictly shorter than the original context comes: the same prompt of exactly
#   that length has other logits after a longer one (off by 49 %, tiny random Llama).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder" && TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'END'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}
ORIGINAL = 16  # tokens
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0, 4.0, 8.0, 16.0],
    "factor": 4.0, "original_max_position_embeddings": ORIGINAL,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}


def phi3():
    torch.manual_seed(0)
    lengths = {"max_position_embeddings": 64, "original_max_position_embeddings": ORIGINAL}
    return Phi3ForCausalLM(Phi3Config(**SIZES, **lengths, rope_parameters=dict(LONGROPE))).eval()


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(**SIZES, max_position_embeddings=ORIGINAL, rope_parameters=dict(DYNAMIC))
    ).eval()


def off(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def main():
    torch.manual_seed(1)
    long, short = torch.randint(3, 64, (24,)), torch.randint(3, 64, (12,))
    padded = torch.cat([short, torch.zeros(12, dtype=torch.long)])
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, 12:] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = phi3()(input_ids=torch.stack([long, padded]), attention_mask=mask, position_ids=positions).logits
    beside = off(batch[1, :12], phi3()(short[None]).logits[0])
    print(f"Phi-3, longrope: a prompt of 12 tokens beside one of 24: {beside:.0%} off what it has alone")

    model, exact, shorter = llama(), long[:ORIGINAL][None], short[None]
    fresh = model(exact).logits
    model(long[None])
    after = off(model(exact).logits, fresh)
    model(shorter)
    again = off(model(exact).logits, fresh)
    print(f"Llama, dynamic: a prompt of {ORIGINAL} tokens after one of 24: {after:.0%} off; after one of 12: {again:.0%} off")
    return beside > 0.1 and after > 0.1 and again < 1e-5


assert main(), "the finding is out of date"
END
