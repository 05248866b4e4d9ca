"""Inkling's unembedding has more rows than its logits: the rest only fills up the vocabulary."""

import pytest
import torch

from anymodel import TYPES, tiny_any
from monosem.errors import BadInput
from monosem.models import load_model

pytestmark = pytest.mark.skipif("inkling_text" not in TYPES, reason="not in this transformers")
IDS = [[11, 42, 7, 80]]


def test_what_fills_up_a_vocabulary_is_no_token():
    hf = tiny_any("inkling_text")
    known, rows = hf.config.unpadded_vocab_size, hf.config.vocab_size
    model = load_model(hf, quiet=True)
    run = model.run(IDS, capture=["embed", "final_norm"])
    assert run.logits.shape[-1] == model.cfg.d_vocab == known < rows
    torch.testing.assert_close(
        run["final_norm"] @ model.W_U / hf.config.logits_mup_width_multiplier, run.logits, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(run["embed"], model.W_E[torch.tensor(IDS)], rtol=0, atol=0)  # through a norm inside
    with pytest.raises(BadInput, match=f"token id {known} is outside the vocabulary of {known}"):
        model.run([[known]])
