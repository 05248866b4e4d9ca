#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): Llama 4 as a whole, on a text.
# One would guess: Llama4ForConditionalGeneration, which Llama 4 checkpoints name, answers a text without a picture.
# What happens: its forward reads `image_outputs` of what its language model returns, which has none: AttributeError on any
#   input. The language model alone runs (Llama4ForCausalLM reads the same checkpoint).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder" && TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'END'
import torch
from transformers import Llama4Config, Llama4ForCausalLM, Llama4ForConditionalGeneration

text = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4,
    "max_position_embeddings": 64, "pad_token_id": 2,
}  # fmt: skip
vision = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
}  # fmt: skip
whole = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)).eval()
whole.save_pretrained("whole")
ids = torch.arange(3, 9)[None]
try:
    whole(input_ids=ids)
    said = "nothing"
except AttributeError as error:
    said = str(error)
print(f"the whole on a text raises: {said}")
alone = Llama4ForCausalLM.from_pretrained("whole", config=whole.config.text_config)
print(f"its language model gives logits of shape {tuple(alone(input_ids=ids).logits.shape)}")
assert "image_outputs" in said, "the finding is out of date"
END
