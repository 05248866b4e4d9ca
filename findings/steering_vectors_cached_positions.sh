#!/usr/bin/env bash
# steering-vectors 0.12.2 (torch 2.13.0, transformers 4.57.1): `SteeringVector.apply(model, min_token_index=n)`.
# One would guess: tokens from index n on are steered, so that with n the length of the prompt, what is generated is.
# What happens: the index counts within the tokens of one forward pass. With the KV cache that `generate` uses by default every
#   new token is alone in its pass and has index 0, so no generated token is steered: the text is what the bare model writes.
#   Without the cache the same call changes it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==4.57.1 steering-vectors==0.12.2
cd "$folder" && HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'END'
import torch
from steering_vectors import SteeringVector
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0
)
model = LlamaForCausalLM(config).eval()
vector = SteeringVector({1: 20 * torch.randn(32)}, "decoder_block")
prompt = torch.tensor([[5, 17, 3, 42]])


def written(**options):
    made = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, **options)
    return made[0, prompt.shape[1] :].tolist()


bare = written()
with vector.apply(model, min_token_index=prompt.shape[1]):
    cached, whole = written(), written(use_cache=False)
print(f"not steered:                        {bare}")
print(f"min_token_index=4:                  {cached}")
print(f"min_token_index=4, use_cache=False: {whole}")
assert cached == bare, "the finding is out of date"
assert whole != bare, "the finding is out of date"
END
