#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): the precision of a model after `model.double()`.
# One would guess: a float64 model computes in float64, so that norms are exact to 1e-15 and a finite difference with a
#   step of 1e-6 checks a gradient to many digits, as torch.autograd.gradcheck does on float64 input.
# What happens: RMSNorm (Llama, Qwen 3, Gemma 2, OLMo 2) casts its input to float32, and so do Cohere's LayerNorm and the
#   rotary embedding. The output has dtype float64 and an error of 1e-7. GPT-2 and GPT-NeoX use nn.LayerNorm, whose
#   error is 2e-16. On tiny random models a finite difference misses the gradient by 1 to 50 % in
#   the first five, by 2e-6 in GPT-NeoX (whose rotary embedding is single) and by 2e-9 in GPT-2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder" && TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'END'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
NEOX = {key: LLAMA[key] for key in LLAMA if key not in ("num_key_value_heads", "head_dim")}
MODELS = {  # type -> settings, final norm, whether the norm centres, whether one would find it exact
    "llama": (LLAMA, "model.norm", False, False),
    "qwen3": (LLAMA, "model.norm", False, False),
    "gemma2": (LLAMA, "model.norm", False, False),
    "olmo2": (LLAMA, "model.norm", False, False),
    "cohere": (LLAMA, "model.norm", True, False),
    "gpt2": (GPT2, "transformer.ln_f", True, True),
    "gpt_neox": (NEOX, "gpt_neox.final_layer_norm", True, True),
}


def norm_error(norm, centres):
    """Largest relative error of the norm (its gain is 1 after initialisation) against the formula in float64."""
    x = torch.randn(8, 32, dtype=torch.float64)
    eps = next(getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name))
    centred = x - x.mean(-1, keepdim=True) if centres else x
    exact = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    found = norm(x)
    assert found.dtype == torch.float64
    return float(((found - exact).norm(dim=-1) / exact.norm(dim=-1)).max())


def gradient_error(model, step=1e-6):
    """Relative error of a central difference of the loss along one direction of the embeddings, against autograd."""
    at = torch.randn(1, 6, 32, dtype=torch.float64)
    along = torch.randn_like(at)
    loss = lambda x: model(inputs_embeds=x, use_cache=False).logits.log_softmax(-1)[0, -1, 3]
    at.requires_grad_()
    (slope,) = torch.autograd.grad(loss(at), at)
    exact = float((slope * along).sum())
    with torch.no_grad():
        found = float(loss(at + step * along) - loss(at - step * along)) / (2 * step)
    return abs(found - exact) / abs(exact)


print(f"{'type':10}{'error of the norm':>20}{'error of the finite difference':>34}")
as_described = True
for kind, (settings, path, centres, exact) in MODELS.items():
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).double().eval()
    norm, gradient = norm_error(model.get_submodule(path), centres), gradient_error(model)
    print(f"{kind:10}{norm:20.1e}{gradient:34.1e}")
    as_described &= norm < 1e-13 if exact else 1e-9 < norm < 1e-4
    if kind == "llama":
        as_described &= gradient > 1e-4
    if kind == "gpt2":
        as_described &= gradient < 1e-5
assert as_described, "the finding is out of date"
END
