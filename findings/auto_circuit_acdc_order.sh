#!/usr/bin/env bash
# auto-circuit 1.0.1 (torch 2.13.0, transformer-lens 2.18.0): `acdc_prune_scores`.
# One would guess: the same model, prompts and seed give the same circuit whenever it is run; ACDC depends on the order in which edges
#   are tried, and that order is fixed.
# What happens: edges are kept in a set and sorted by layer alone, so that within a layer their order is the one of Python's hashes of
#   strings and of None. Processes find other circuits; before Python 3.12, where the hash of None is its address, also ones with the same
#   PYTHONHASHSEED. With edges in the order of their names, all processes find the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy==2.4.6 \
    accelerate==1.15.0 attrs==25.4.0 better-abc==0.0.3 blobfile==3.3.0 datasets==5.2.0 einops==0.8.2 jaxtyping==0.3.11 \
    ordered-set==4.1.0 pandas==3.1.1 plotly==7.1.0 rich==15.0.0 scipy==1.17.1 sentencepiece==0.2.3 typeguard==4.6.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps transformer-lens==2.18.0 auto-circuit==1.0.1
cd "$folder" && cat > acdc.py <<'END'
import sys

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.utils.graph_utils import patchable_model
from transformer_lens import HookedTransformer, HookedTransformerConfig

torch.set_num_threads(1)
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
if sys.argv[1] == "names":
    model.edges = sorted(model.edges, key=lambda edge: edge.name)
scores = acdc_prune_scores(model, loader, None, tao_exps=[-2], tao_bases=[1])
print(",".join(sorted(edge.name for edge in model.edges if edge.prune_score(scores) == float("inf"))))
END
for order in set names; do
    for seed in 0 1 2 3; do
        PYTHONHASHSEED=$seed TQDM_DISABLE=1 venv/bin/python -W ignore acdc.py $order | tail -1 > "$order$seed.txt"
    done
done
venv/bin/python - <<'END'
from pathlib import Path

found = {}
for order in ("set", "names"):
    kept = [set(path.read_text().strip().split(",")) for path in sorted(Path().glob(f"{order}?.txt"))]
    for seed, edges in enumerate(kept):
        print(f"order of the {order}, PYTHONHASHSEED={seed}: {len(edges)} edges kept, {len(edges & kept[0])} of them also by the first process")
    found[order] = len({frozenset(edges) for edges in kept})
print(f"circuits of four processes: {found}")
assert found["set"] > 1, "the finding is out of date"
assert found["names"] == 1, "the finding is out of date: the order of the edges does not explain it"
END
