#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): BigBird with block-sparse attention, a long text before and after a short one.
# One would guess: a model in eval mode gives the same numbers for the same text, whatever it read before.
# What happens: the first text that is too short for sparse attention puts full attention in its place, in the model
#   itself and for good. The config still says block_sparse, and long texts have other states from then on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder" && TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'END'
import torch
from transformers import BigBirdConfig, BigBirdModel

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 512, "block_size": 16, "num_random_blocks": 1, "attention_type": "block_sparse",
}


@torch.no_grad()
def main():
    torch.manual_seed(0)
    model = BigBirdModel(BigBirdConfig(**SIZES)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    long, short = torch.randint(3, 50, (1, 256)), torch.randint(3, 50, (1, 8))
    before, again = (model(long).last_hidden_state for _ in range(2))
    model(short)
    after = model(long).last_hidden_state
    same, other = (float((before - one).abs().max()) for one in (again, after))
    print(f"the long text twice: {same}; before and after a short text: {other:.4f}; the config: {model.config.attention_type}")
    return same == 0 and other > 1e-3 and model.config.attention_type == "block_sparse"


assert main(), "the finding is out of date"
END
