#!/usr/bin/env bash
# sae-lens 6.54.12 (torch 2.13.0): the defaults of `SAETrainerConfig`.
# One would guess: a config with its two required fields trains, as the class is what `SAETrainer` takes.
# What happens: `SAETrainer` stops at a bare `assert cfg.lr_end is not None`: only `LanguageModelSAERunnerConfig` fills that
#   default in. The default schedule, `constant`, does not even use `lr_end`: any number gives the same weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 sae-lens==6.54.12
cd "$folder" && HF_HUB_OFFLINE=1 TQDM_DISABLE=1 venv/bin/python -W ignore - <<'END'
import traceback

import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer


def trained(**options):
    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=32, k=4))
    batches = iter([torch.randn(64, 8) for _ in range(40)])
    config = SAETrainerConfig(total_training_samples=640, train_batch_size_samples=64, lr=1e-2, **options)
    return SAETrainer(config, sae, batches).fit().W_dec.detach().clone()


try:
    trained()
    where = ""
except AssertionError as error:
    where = traceback.extract_tb(error.__traceback__)[-1].line
    print(f"with the defaults: AssertionError({str(error)!r}) at `{where}`")
weights = [trained(lr_end=lr_end) for lr_end in (0.0, 1e-3, 7.0)]
print(f"lr_end 0, 0.001 and 7: the weights differ by {max(float((w - weights[0]).abs().max()) for w in weights)}")
assert "lr_end is not None" in where, "the finding is out of date"
assert all(torch.equal(w, weights[0]) for w in weights), "the finding is out of date"
END
