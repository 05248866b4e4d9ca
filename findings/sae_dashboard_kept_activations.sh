#!/usr/bin/env bash
# sae-dashboard 0.8.0 (sae-lens 6.54.12, transformer-lens 3.9.0): the model's activations, kept in a folder (`cache_dir`).
# One would guess: they are used again for the same texts, and computed anew for other ones.
# What happens: a file's name is the number of its minibatch and nothing else, so a second run on other texts shows these texts with
#   the activations of the first ones: every example is wrong, and nothing says so. `NeuronpediaRunner` always keeps them, in a folder
#   named by model, set, hook, width and number of prompts, not by the texts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 sae-lens==6.54.12 \
    transformer-lens==3.9.0 matplotlib==3.10.8 dataclasses-json==0.6.7
# it asks for transformers below 4.57 and transformer-lens below 3
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps sae-dashboard==0.8.0 eindex-callum==0.1.2
cd "$folder" && HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'END'
from pathlib import Path

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
sae.W_dec.data = torch.nn.functional.normalize(torch.randn(32, 16), dim=1)
shown = SequencesConfig(stack_mode="stack-all", buffer=None, compute_buffer=True, n_quantiles=0, top_acts_group_size=20)
parts = (shown, ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3))
layout = SaeVisLayoutConfig(columns=[Column(*parts)])


@torch.no_grad()
def wrong(tokens: torch.Tensor, cache: Path | None) -> tuple[int, int]:
    """How many of the strongest examples say another activation than the latent has at these tokens."""
    latents = [0, 1, 2, 3]
    config = SaeVisConfig(hook, latents, minibatch_size_tokens=8, cache_dir=cache, feature_centric_layout=layout)
    made = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens).feature_data_dict
    acts = sae.encode(model.run_with_cache(tokens)[1][hook])
    row = {tuple(ids[1:]): i for i, ids in enumerate(tokens.tolist())}
    bad = []
    for latent in latents:
        for example in made[latent].sequence_data.seq_group_data[0].seq_data:
            true = acts[row[tuple(example.token_ids)], 1:, latent]
            bad.append(not torch.allclose(true, torch.tensor(example.feat_acts), atol=1e-3))
    return sum(bad), len(bad)


first, other = (torch.randint(100, (32, 16)) for _ in range(2))
folder = Path("activations")
before, after, without = wrong(first, folder), wrong(other, folder), wrong(other, None)
print(f"first texts, into a new folder: {before[0]} of {before[1]} examples say another activation than the latent has")
print(f"other texts, the same folder: {after[0]} of {after[1]}")
print(f"other texts, no folder: {without[0]} of {without[1]}")
assert before[0] == without[0] == 0 and after[0] > after[1] / 2, "the finding is out of date"
END
