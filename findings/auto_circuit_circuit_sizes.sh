#!/usr/bin/env bash
# auto-circuit 1.0.1 (torch 2.13.0, transformer-lens 2.18.0): `run_circuits(..., test_edge_counts=[n])`.
# One would guess: the circuit of n edges runs; of 0 edges, the empty one.
# What happens: edges from the n-th largest score on are kept, ties and all. Edges that ACDC never removes have the score inf, and so
#   has the threshold of a circuit of 0 edges: with ACDC's scores the "empty" circuit is the whole found one. Where n is more than
#   the number of scores that are not 0, the threshold is 0 and all edges of the model are kept. The result is keyed by the number that
#   ran, so that sizes which were asked for are missing without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6 \
    accelerate==1.15.0 attrs==25.4.0 better-abc==0.0.3 blobfile==3.3.0 datasets==5.2.0 einops==0.8.2 jaxtyping==0.3.11 \
    ordered-set==4.1.0 pandas==3.1.1 plotly==7.1.0 rich==15.0.0 scipy==1.17.1 sentencepiece==0.2.3 typeguard==4.6.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps transformer-lens==2.18.0 auto-circuit==1.0.1
cd "$folder" && PYTHONHASHSEED=0 TQDM_DISABLE=1 venv/bin/python -W ignore - <<'END'
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune import run_circuits
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.utils.graph_utils import patchable_model
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
loader = PromptDataLoader(pairs, seq_len=6, diverge_idx=0, batch_size=4, shuffle=False)
scores = acdc_prune_scores(model, loader, None, tao_exps=[-2], tao_bases=[1])
kept = sum(int((one == float("inf")).sum()) for one in scores.values())
ran = [*run_circuits(model, loader, [0], scores)]
print(f"ACDC keeps {kept} of {len(model.edges)} edges; asked for the circuit of 0 edges, one of {ran[0]} ran")
assert ran == [kept] and kept > 0, "the finding is out of date"

three = {name: torch.zeros_like(one) for name, one in scores.items()}
for value, edge in enumerate(sorted(model.edges, key=lambda one: one.name)[:3], start=1):
    three[edge.dest.module_name][edge.patch_idx] = float(value)
asked = [0, 2, 3, 5, 10]
ran = [*run_circuits(model, loader, asked, three)]
print(f"three scores that are not 0; asked for {asked} edges, ran {ran}")
assert ran == [0, 2, 3, len(model.edges)], "the finding is out of date"
END
