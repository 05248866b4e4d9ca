"""Every file that the peers themselves wrote (`../shared/cases/dictionaries`), against what they compute from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from monosem.dictionaries import load_dictionary

CASES = Path(__file__).parents[3] / "shared" / "cases" / "dictionaries"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the peers' files lie beside the checkout, in ../shared")

SAELENS = sorted(path.name for path in CASES.glob("saelens_*"))


@needs_cases
@pytest.mark.parametrize("name", SAELENS)
def test_saelens(tmp_path, name):
    expected = json.loads((CASES / name / "expected.json").read_text())
    x, acts, recon = (torch.tensor(expected[key]) for key in ("x", "acts", "recon"))
    read = load_dictionary(CASES / name)
    if name != "saelens_ckpt_whitened_standard":  # its output bias is as the peer's float32 rounds it
        read.save(tmp_path / "again")
    for dictionary in (read, *([load_dictionary(tmp_path / "again")] if (tmp_path / "again").exists() else [])):
        x = x if dictionary.whole_texts or name == "saelens_hookz" else x.reshape(-1, dictionary.d_in)
        tolerance = dict.fromkeys(("atol", "rtol"), 1e-4 if "whitened" in name or "pursuit" in name else 1e-5)
        codes = dictionary.encode(x)
        np.testing.assert_allclose(codes.dense().reshape(acts.shape), acts, **tolerance)
        np.testing.assert_allclose(dictionary.decode(codes, like=x).reshape(recon.shape), recon, **tolerance)
        np.testing.assert_allclose(dictionary(x).reshape(recon.shape), recon, **tolerance)
