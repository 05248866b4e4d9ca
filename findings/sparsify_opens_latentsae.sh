#!/usr/bin/env bash
# latentsae 0.2.0 and eai-sparsify 1.3.3 (torch 2.13.0): a dictionary of one, opened by the other.
# One would guess: the files are of one layout (cfg.json, sae.safetensors, the same tensors), so either tool reads the
#   other's, or refuses the config's unknown `sae_type`.
# What happens: sparsify prints that it drops 25 extra arguments, opens an AbsTopK of latentsae as a TopK, and gives other
#   codes: every negative one is lost. Nothing but `sae_type`, one of the dropped, tells the two functions apart.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 eai-sparsify==1.3.3 latentsae==0.2.0
cd "$folder" && HF_HUB_OFFLINE=1 venv/bin/python - <<'END'
import warnings

import torch
from latentsae.sae import Sae
from latentsae.utils.config import SaeConfig, SaeType
from sparsify import SparseCoder

torch.manual_seed(0)
written = Sae(6, SaeConfig(sae_type=SaeType.ABSTOPK, num_latents=24, k=3)).eval()
written.encoder.bias.data.normal_()
written.b_dec.data.normal_()
written.save_to_disk("layers.3")
x = torch.randn(64, 6)


def dense(found):
    return torch.zeros(len(x), 24).scatter_(1, found[1], found[0]).detach()


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    opened = SparseCoder.load_from_disk("layers.3", device="cpu")
theirs, ours = dense(written.encode(x)), dense(opened.encode(x))
same = bool(torch.equal(written.encoder.weight.cpu(), opened.encoder.weight.cpu()))
print(f"sparsify opened it: {len(said)} warnings, the weights are {'the same' if same else 'others'}")
print(f"codes below 0: {int((theirs < 0).sum())} in latentsae, {int((ours < 0).sum())} in sparsify")
print(f"the largest difference of a code is {float((theirs - ours).abs().max()):.2f}")
wrong = same and int((theirs < 0).sum()) > 0 and int((ours < 0).sum()) == 0
assert wrong, "the finding is out of date"
END
