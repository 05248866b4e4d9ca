#!/usr/bin/env bash
# sae-lens 6.54.12 (torch 2.13.0): how many tokens `CacheActivationsRunner` caches.
# One would guess: `training_tokens`, as its config says ("Total number of tokens to process"), and an error or fewer where
#   the dataset holds fewer.
# What happens: it fills whole buffers. `training_tokens` only says how many, rounded up; a buffer is `buffer_size_gb`, by
#   default 2 GB. Where the dataset is too small to fill one, it is read again and again, so that all rows are there many
#   times. And `print(runner)` promises a `d_in`-th of the disk space that even `training_tokens` would need.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 sae-lens==6.54.12
cd "$folder" && HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1 venv/bin/python -W ignore - <<'END'
import datasets
import torch
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
from transformer_lens import HookedTransformer, HookedTransformerConfig

torch.manual_seed(0)
sizes = dict(n_layers=1, d_model=32, n_ctx=16, d_head=16, n_heads=2, d_vocab=100, act_fn="gelu", device="cpu")
model = HookedTransformer(HookedTransformerConfig(**sizes))
cache_activations_runner.load_model = lambda **_: model  # in place of a download
text = datasets.Dataset.from_dict({"input_ids": torch.randint(100, (16, 16)).tolist()})
asked = dict(
    dataset_path="text", model_name="tiny", model_batch_size=4, hook_name="blocks.0.hook_resid_post", d_in=32,
    training_tokens=256, context_size=16, prepend_bos=False, streaming=False, device="cpu",
)
runner = CacheActivationsRunner(
    CacheActivationsRunnerConfig(**asked, buffer_size_gb=0.001, new_cached_activations_path="cached"),
    override_dataset=text,
)
cached = runner.run()
rows = [tuple(row) for row in cached["token_ids"]]
tokens = sum(map(len, rows))
print(f"asked for 256 tokens of a text of 256: {tokens:,} were cached, {len(set(rows))} different rows of {len(rows)}")
usual = CacheActivationsRunnerConfig(**asked | {"d_in": 768}, new_cached_activations_path="x")
filled = usual.n_buffers * usual.n_tokens_in_buffer
print(f"of a model of width 768, with the defaults: {filled:,} would be")
runner.cfg = CacheActivationsRunnerConfig(**asked | {"training_tokens": 10**8}, new_cached_activations_path="y")
told = float(next(line for line in str(runner).splitlines() if "Disk space" in line).split()[-2])
print(f"for 100 million tokens of width 32 in float32, {10**8 * 32 * 4 / 1e9:.1f} GB, it says: {told} GB")
assert tokens > 20 * 256, "the finding is out of date"
assert len(rows) > 20 * len(set(rows)), "the finding is out of date"
assert filled > 600_000, "the finding is out of date"
assert told < 1, "the finding is out of date"
END
