#!/usr/bin/env bash
# auto-circuit 1.0.1 (torch 2.13.0, transformer-lens 2.18.0): sizes of the scores of `mask_gradient_prune_scores` (EAP; with
#   `integrated_grad_samples=`, integrated gradients of the mask).
# One would guess: a score is a mean over the pairs, whatever the batch, and (the docstring: "averaging") over the samples of the mask.
# What happens: gradients are summed over batches and over samples + 1 masks and never divided. The same four pairs, one a batch, have
#   four times the scores of one batch; with 40 samples scores are eight times as large as with 4. Ranks stay; a threshold does not,
#   nor does a comparison with another method's scores.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6 \
    accelerate==1.15.0 attrs==25.4.0 better-abc==0.0.3 blobfile==3.3.0 datasets==5.2.0 einops==0.8.2 jaxtyping==0.3.11 \
    ordered-set==4.1.0 pandas==3.1.1 plotly==7.1.0 rich==15.0.0 scipy==1.17.1 sentencepiece==0.2.3 typeguard==4.6.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps transformer-lens==2.18.0 auto-circuit==1.0.1
cd "$folder" && TQDM_DISABLE=1 venv/bin/python -W ignore - <<'END'
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.utils.graph_utils import patchable_model
from auto_circuit.utils.tensor_ops import flat_prune_scores
from transformer_lens import HookedTransformer, HookedTransformerConfig

torch.manual_seed(0)
config = HookedTransformerConfig(
    n_layers=2, d_model=16, n_ctx=8, d_head=8, n_heads=2, d_mlp=32, d_vocab=20, act_fn="gelu", seed=0, initializer_range=0.3,
    device="cpu", use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
)
model = patchable_model(HookedTransformer(config), factorized=True, slice_output="last_seq", separate_qkv=True)
clean, corrupt = torch.randint(0, 20, (2, 4, 6))
answers = [torch.tensor([number]) for number in range(8)]
pairs = PromptDataset(list(clean), list(corrupt), answers[:4], answers[4:])


def scores(batch, **options):
    loader = PromptDataLoader(pairs, seq_len=6, diverge_idx=0, batch_size=batch, shuffle=False)
    return flat_prune_scores(mask_gradient_prune_scores(model, loader, None, "logit", "avg_diff", **options))


whole, single = scores(4, mask_val=0.0), scores(1, mask_val=0.0)
ratio = (single / whole).median().item()
print(f"EAP of four pairs: {single.abs().sum():.3f} in batches of one, {whole.abs().sum():.3f} in one batch; ratio {ratio:.3f}")
torch.testing.assert_close(single, 4 * whole, msg="the finding is out of date")
size = {samples: scores(4, integrated_grad_samples=samples).abs().sum().item() for samples in (4, 40)}
print("integrated gradients:", ", ".join(f"{value:.3f} with {samples} samples" for samples, value in size.items()))
print("divided by samples + 1:", ", ".join(f"{value / (samples + 1):.3f}" for samples, value in size.items()))
assert size[40] > 6 * size[4], "the finding is out of date"
assert abs(size[40] / 41 - size[4] / 5) < 0.1 * size[4] / 5, "the finding is out of date"
END
