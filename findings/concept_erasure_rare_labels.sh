#!/usr/bin/env bash
# concept-erasure 0.2.4 (torch 2.13.0): `LeaceEraser.fit` with its defaults.
# One would guess: LEACE leaves no difference between the class means, whatever the units or the share of the label.
# What happens: `svd_tol` (0.01) is held against the cross-covariance of states and label as it is, so that a label which is
#   rare (50 of 20,000), or in small units (0 and 0.01), is not erased at all: the class means stay as far apart as they were.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 concept-erasure==0.2.4
cd "$folder" && venv/bin/python -W ignore - <<'END'
import torch
from concept_erasure import LeaceEraser

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
states = torch.randn(20_000, 4)


def left(count, unit):
    """The distance of the class means, after erasure by what it was before."""
    label = torch.arange(len(states)) < count
    x = states.clone()
    x[label, 0] += 3
    erased = LeaceEraser.fit(x, unit * label.double())(x)
    gaps = [float((rows[label].mean(0) - rows[~label].mean(0)).norm()) for rows in (x, erased)]
    print(f"{count:5} of {len(x)} positive, label 0 and {unit}: class means {gaps[0]:.3f} apart, then {gaps[1]:.3g}")
    return gaps[1] / gaps[0]


assert left(5_000, 1.0) < 1e-9
assert left(50, 1.0) > 0.99, "the finding is out of date"
assert left(5_000, 0.01) > 0.99, "the finding is out of date"
END
