#!/usr/bin/env bash
# eai-delphi 0.1.3 (torch 2.13.0): windows around a latent's strongest token (`center_examples=False`).
# One would guess: every activation in a window is what the latent had at the token that stands there.
# What happens: a window is cut from a context and its two neighbours. Which row of activations belongs to a neighbour is read from the
#   wrong side of a table of matches, so another context's are put beside the window's own; and a neighbour that was left out before
#   (the first or last of its row) counts as silent, though the latent fired there. Windows on the fixed grid are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 \
    jaxtyping orjson simple-parsing
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps eai-delphi==0.1.3
cd "$folder" && HF_HUB_OFFLINE=1 venv/bin/python - <<'END'
import sys
from unittest.mock import MagicMock

for unused in ("faiss", "sentence_transformers", "sparsify", "datasets", "asyncer", "blobfile", "safetensors.numpy"):
    sys.modules[unused] = MagicMock(__spec__=None)  # imported at the top, not used here

import torch
from delphi.latents.constructors import pool_centered_activation_windows, pool_max_activation_windows

torch.manual_seed(0)
rows, length, context = 16, 64, 8
codes = torch.rand(rows, length) * (torch.rand(rows, length) < 0.08)  # what the latent did, one value a token
tokens = torch.arange(rows * length).reshape(-1, context)  # a token's id says where it stands
flat = codes.flatten()
places = flat.nonzero().squeeze(1)
given = dict(activations=flat[places], tokens=tokens, ctx_indices=places // context, index_within_ctx=places % context)


def wrong(found: tuple[torch.Tensor, torch.Tensor]) -> tuple[int, int]:
    where, said = found
    return int((said != flat[where.long()]).any(1).sum()), len(said)


centred = wrong(pool_centered_activation_windows(**given, n_windows_per_batch=length // context, ctx_len=context))
fixed = wrong(pool_max_activation_windows(**given, ctx_len=context))
print(f"around the strongest token: {centred[0]} of {centred[1]} windows say another activation than the latent had")
print(f"on the fixed grid: {fixed[0]} of {fixed[1]}")
assert centred[0] > centred[1] / 10 and fixed[0] == 0, "the finding is out of date"
END
