"""What the tests of dictionaries beside their peers share: random weights, agreement, dictionary_learning's classes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monosem.dictionaries import Dictionary

REASON = "it lies in a folder of its own: make test-peers"
D, F, K = 6, 24, 3
X = 2 * torch.randn(9, D, generator=torch.Generator().manual_seed(1)) + 0.3


def random_(module: torch.nn.Module) -> Any:
    """Every parameter random; decoder norms are not 1 and biases not 0."""
    draw = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * (0.5 + torch.rand(1, generator=draw)))
    return module


def agree(ours: Dictionary, acts: Tensor, recon: Tensor, x: Tensor = X) -> None:
    codes = ours.encode(x)
    torch.testing.assert_close(codes.dense(), acts.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(codes, like=x), recon.detach(), atol=2e-5, rtol=1e-5)
    assert (acts != 0).any()
    assert (acts == 0).any()


@cache
def learning() -> dict[str, Any]:
    """dictionary_learning's classes; without nnsight, which it imports for language models only."""
    stub: Any = types.ModuleType("nnsight")
    stub.LanguageModel = object
    sys.modules.setdefault("nnsight", stub)
    pytest.importorskip("dictionary_learning", reason=REASON)
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    groups = [8, 16]
    return {
        "AutoEncoder": lambda: dictionary.AutoEncoder(D, F),
        "AutoEncoderNew": lambda: dictionary.AutoEncoderNew(D, F),
        "GatedAutoEncoder": lambda: dictionary.GatedAutoEncoder(D, F),
        "JumpReluAutoEncoder": lambda: dictionary.JumpReluAutoEncoder(D, F),
        "AutoEncoderTopK": lambda: top_k.AutoEncoderTopK(D, F, K),
        "BatchTopKSAE": lambda: batch_top_k.BatchTopKSAE(D, F, K),
        "MatryoshkaBatchTopKSAE": lambda: matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(D, F, K, groups),
    }


LEARNED = ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK"]
LEARNED += ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"]


def learned(name: str, folder: Path) -> Any:
    """A dictionary of dictionary_learning with random weights, and its files."""
    theirs = random_(learning()[name]())
    if "BatchTopK" in name:
        theirs.threshold.fill_(0.7)
    trainer = {
        "dict_class": name,
        "activation_dim": D,
        "dict_size": F,
        "k": K,
        "layer": 12,
        "lm_name": "google/gemma-2-2b",
    }
    trainer |= {"submodule_name": "resid_post_layer_12"}
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128, "io": "out"}}))
    return theirs
