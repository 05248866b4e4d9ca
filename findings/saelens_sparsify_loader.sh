#!/usr/bin/env bash
# sae-lens 6.54.12 and eai-sparsify 1.3.3 (torch 2.13.0): SAELens' loader for sparsify's files.
# One would guess: a dictionary that sparsify saved (its defaults) loads, and both give the same codes.
# What happens: none loads. The loader transposes W_dec, which sparsify stores as [latents, d_in] already. With that put
#   right, the codes still differ: SAELens subtracts b_dec only where `normalize_decoder` is false, and sparsify subtracts it
#   unless it is a transcoder; and a dictionary of `layers.3.mlp` is hooked at the residual stream.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 sae-lens==6.54.12 eai-sparsify==1.3.3
cd "$folder" && HF_HUB_OFFLINE=1 venv/bin/python - <<'END'
import torch
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting, sparsify_disk_loader
from sparsify import SparseCoder, SparseCoderConfig

torch.manual_seed(0)
theirs = SparseCoder(6, SparseCoderConfig(num_latents=24, k=3))
theirs.encoder.bias.data.normal_()
theirs.b_dec.data.normal_()
theirs.save_to_disk("model/layers.3.mlp")
x = torch.randn(9, 6)
values, latents, _ = theirs.encode(x)
codes = torch.zeros(9, 24).scatter_(1, latents, values)

try:
    SAE.load_from_disk("model/layers.3.mlp", converter=sparsify_disk_loader)
    loaded = True
except RuntimeError as error:
    loaded = False
    print(f"SAELens: {str(error).splitlines()[-1].strip()}")

config, state = sparsify_disk_loader("model/layers.3.mlp", cfg_overrides={"dtype": "float32"})
state["W_dec"] = state["W_dec"].T
kind = SAE.get_sae_class_for_architecture("topk")
ours = SAE.get_sae_config_class_for_architecture("topk").from_dict(handle_config_defaulting(config))
sae = kind(ours)
sae.load_state_dict(state)
difference = float((sae.encode(x) - codes).detach().abs().max())
print(f"with W_dec put right: codes differ by {difference:.3f} (the largest is {float(codes.detach().max()):.3f})")
sae.cfg.apply_b_dec_to_input = True
mended = float((sae.encode(x) - codes).detach().abs().max())
print(f"and with b_dec subtracted: by {mended:.1e}")
print(f"layers.3.mlp is hooked at {ours.metadata.hook_name}")
wrong = not loaded and difference > 0.1 and mended < 1e-5 and ours.metadata.hook_name == "blocks.3.hook_resid_post"
assert wrong, "the finding is out of date"
END
