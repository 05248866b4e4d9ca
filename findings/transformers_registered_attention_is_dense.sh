#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): an attention function of one's own in a model with sparse attention.
# One would guess: a function that is registered with AttentionInterface, with transformers' mask function for SDPA, and that
#   calls transformers' own SDPA, computes what the model computes under "sdpa".
# What happens: DeepSeek 3.2 (and GLM-5, A.X K2, Hunyuan 4, dots.note, MiniMax M3) puts the choice of its indexer into the
#   mask under the names "eager" and "sdpa" alone. A function with another name is given `indices=` beside a causal mask: one
#   that passes it on to SDPA, which ignores it, attends to all keys, with other logits and no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder" && TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'END'
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

given = set()


def own(module, query, key, value, attention_mask, **kwargs):
    given.update(name for name, what in kwargs.items() if what is not None)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register("own", own)
AttentionMaskInterface.register("own", sdpa_mask)
config = AutoConfig.for_model(
    "deepseek_v32", vocab_size=100, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1,
    kv_lora_rank=16, q_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, head_dim=4, index_topk=4,
    index_head_dim=8, index_n_heads=16, mlp_layer_types=["dense", "sparse"], initializer_range=0.3,
    max_position_embeddings=64,
)  # fmt: skip
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config).eval()
ids, logits = torch.randint(3, 100, (1, 24)), {}
for name in ("eager", "sdpa", "own"):
    model.set_attn_implementation(name)
    with torch.no_grad():
        logits[name] = model(input_ids=ids, use_cache=False).logits
scale = logits["sdpa"].abs().max()
errors = {name: float((value - logits["sdpa"]).abs().max() / scale) for name, value in logits.items()}
for name, error in errors.items():
    print(f"{name}: logits differ from sdpa's by {error:.1e} of the largest")
print(f"the registered function was given: {', '.join(sorted(given))}")
assert errors["eager"] < 1e-4 < 1e-2 < errors["own"], "the finding is out of date"
assert "indices" in given, "the finding is out of date"
END
