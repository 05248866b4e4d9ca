#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): the experts of NLLB-MoE.
# One would guess: each token goes through the two experts that its router chose.
# What happens: the mask of choices (one column for each expert, 0 or 1) is read as a list of expert numbers. Expert 1 is
#   given every token's first choice and expert 0 the rest; the experts that the router chose are never called.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder" && TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'END'
import torch
from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

SIZES = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_experts": 8,
    "encoder_sparse_step": 1, "decoder_sparse_step": 1, "max_position_embeddings": 64,
}


@torch.no_grad()
def main():
    torch.manual_seed(0)
    encoder = NllbMoeForConditionalGeneration(NllbMoeConfig(**SIZES)).eval().get_encoder()
    mixture, chosen, called = encoder.layers[0].ffn, [], []
    mixture.router.register_forward_hook(lambda module, args, out: chosen.extend(out[2].argmax(-1).tolist()))
    for number, expert in enumerate(mixture.experts.values()):
        expert.register_forward_hook(lambda module, args, out, number=number: called.append(number))
    encoder(torch.randint(3, 50, (1, 40)))
    print(f"the router's first choices are the experts {sorted(set(chosen))}; called were {sorted(called)}")
    return sorted(called) == [0, 1] and not set(chosen) <= {0, 1}


assert main(), "the finding is out of date"
END
