#!/usr/bin/env bash
# sae-dashboard 0.8.0 (sae-lens 6.54.12, transformer-lens 3.9.0): the latents that correlate most with a latent.
# One would guess: of all latents that were asked for.
# What happens: of those in the same minibatch of latents (128 for Neuronpedia, in the order of their numbers). A near copy outside of it,
#   with a correlation of 1.0, is not listed; and a latent in a batch of two or three is listed beside itself, with 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 sae-lens==6.54.12 \
    transformer-lens==3.9.0 matplotlib==3.10.8 dataclasses-json==0.6.7
# it asks for transformers below 4.57 and transformer-lens below 3
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps sae-dashboard==0.8.0 eindex-callum==0.1.2
cd "$folder" && HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'END'
import torch
from sae_dashboard.components_config import (
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_dashboard.layout import SaeVisLayoutConfig
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig
from transformer_lens import HookedTransformerConfig

torch.manual_seed(0)
shape = dict(n_layers=1, d_model=16, n_ctx=16, d_head=8, n_heads=2, d_mlp=32, d_vocab=100, act_fn="relu", device="cpu")
model, hook = HookedSAETransformer(HookedTransformerConfig(**shape)), "blocks.0.hook_resid_post"
sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=32, device="cpu"))
sae.W_enc.data = torch.randn(16, 32)
sae.W_enc.data[:, 31] = sae.W_enc.data[:, 0] + 0.1 * torch.randn(16)  # latent 31 is nearly latent 0
sae.W_dec.data = torch.nn.functional.normalize(torch.randn(32, 16), dim=1)
shown = SequencesConfig(stack_mode="stack-all", buffer=None, compute_buffer=True, n_quantiles=0, top_acts_group_size=20)
parts = (shown, ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3))
layout = SaeVisLayoutConfig(columns=[Column(*parts)])
tokens = torch.randint(100, (64, 16))


def listed(batch: int) -> tuple[list[int], list[float]]:
    """What the page of latent 0 says correlates most with it, with all 32 latents asked for."""
    sizes = dict(minibatch_size_tokens=8, minibatch_size_features=batch)
    config = SaeVisConfig(hook, list(range(32)), **sizes, feature_centric_layout=layout)
    table = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens).feature_data_dict[0].feature_tables_data
    return table.correlated_features_indices, [round(r, 2) for r in table.correlated_features_pearson]


with torch.no_grad():
    acts = sae.encode(model.run_with_cache(tokens)[1][hook]).flatten(0, 1)
truth = torch.corrcoef(acts.T)[0, 1:].topk(3)
print("all latents:", (truth.indices + 1).tolist(), [round(r, 2) for r in truth.values.tolist()])
found = {batch: listed(batch) for batch in (32, 8, 2)}
for batch, (latents, pearson) in found.items():
    print(f"{batch} latents at a time:", latents, pearson)
assert found[32][0][0] == 31 and 31 not in found[8][0] and found[2][0][0] == 0, "the finding is out of date"
END
