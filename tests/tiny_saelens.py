"""SAELens folders made with numpy in exactly the layout on disk, and the comparison with a forward pass by hand.

The four choices that catch loader errors: width != d_in, d_in != d_out (transcoders), a decoder bias that is not zero
and decoder rows that do not have norm 1, and input scales that are not 1.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from monosem.dictionaries import Dictionary
from monosem.dictionaries.encoders import ENCODERS

D, F, OUT, K = 6, 23, 5, 4
RNG = np.random.default_rng(7)
X = RNG.normal(size=(9, D)) * 3 + 0.5

METADATA = {
    "sae_lens_version": "6.54.12",
    "model_name": "gpt2-small",
    "hook_name": "blocks.3.hook_resid_pre",
    "prepend_bos": True,
}


def weights(d_out: int = D, *names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    made = {
        "W_enc": rng.normal(size=(D, F)),
        "b_enc": rng.normal(size=F) * 0.3,
        "W_dec": rng.normal(size=(F, d_out)) * rng.uniform(0.3, 2.5, size=(F, 1)),
        "b_dec": rng.normal(size=d_out),
        "threshold": rng.uniform(0.1, 1.5, size=F),
        "W_skip": rng.normal(size=(d_out, D)),
    }
    return {name: value.astype(np.float32) for name, value in made.items() if name in {*list(made)[:4], *names}}


def folder(path: Path, tensors: dict[str, np.ndarray], **cfg) -> Path:
    path.mkdir(exist_ok=True, parents=True)
    base = {
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "architecture": "standard",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": METADATA,
    }
    (path / "cfg.json").write_text(json.dumps(base | cfg))
    save_file(tensors, path / "sae_weights.safetensors")
    return path


def relu(pre):
    return np.maximum(pre, 0)


def topk(pre, k=K, signed=False):
    out = np.zeros_like(pre)
    for row, values in enumerate(pre):
        best = np.argsort(-np.abs(values) if signed else -values)[:k]
        out[row, best] = values[best] if signed else np.maximum(values[best], 0)
    return out


def same(dictionary: Dictionary, acts: np.ndarray, y: np.ndarray, x: np.ndarray = X) -> None:
    given = torch.from_numpy(x).float()
    codes = dictionary.encode(given)
    np.testing.assert_allclose(codes.dense().numpy(), acts, atol=1e-5, rtol=1e-5)
    if ENCODERS[dictionary.kind].find is None:
        rows, latents, values = (column.numpy() for column in dictionary.firings(dictionary.preactivations(given)))
        assert (np.diff(rows) >= 0).all()
        assert set(zip(rows.tolist(), latents.tolist())) == set(zip(*(at.tolist() for at in codes.dense().nonzero().T)))
        np.testing.assert_allclose(values, acts[rows, latents], atol=1e-5, rtol=1e-5)
    noise = max(3e-5, F * float(np.finfo(np.float32).eps * np.abs(y).max()))  # whitening: up to 1000s
    np.testing.assert_allclose(dictionary.decode(codes, like=given).numpy(), y, atol=noise, rtol=1e-5)
    np.testing.assert_allclose(dictionary(given).numpy(), y, atol=noise, rtol=1e-5)
    assert (acts != 0).any()
    assert (acts == 0).any()
