"""Inference looks at the first logits of a large vocabulary alone, and leaves the model as it was."""

import pytest
import torch
from torch import nn

from anymodel import tiny_any
from monosem.models.checking import prefix
from monosem.models.checking.infer import infer
from tiny import tiny_hf


@pytest.mark.filterwarnings("ignore::monosem.models.InferredFamily")
@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("cohere", False), ("granite", True)])
def test_the_same_row_is_found_and_the_unembedding_is_whole_again(kind, tied, monkeypatch):
    hf = tiny_any(kind, vocab_size=prefix.LOGITS + 500, tie_word_embeddings=tied)
    before, widths = hf.lm_head.weight, []
    hook = hf.lm_head.register_forward_hook(lambda module, args, output: widths.append(output.shape[-1]))
    row = infer(hf)
    assert set(widths) == {prefix.LOGITS}
    assert hf.lm_head.weight is before
    assert (hf.lm_head.weight is hf.get_input_embeddings().weight) == tied
    assert hf(input_ids=torch.arange(3, 9)[None]).logits.shape[-1] == prefix.LOGITS + 500
    monkeypatch.setattr(prefix, "LOGITS", 10**9)
    widths.clear()
    assert infer(hf) == row
    assert set(widths) == {1524}
    hook.remove()


def test_it_is_whole_again_after_an_error():
    hf = tiny_hf("llama")
    hf.lm_head = nn.Linear(32, 5000, bias=True)
    weight, bias = hf.lm_head.weight, hf.lm_head.bias

    def fails():
        with prefix.Shortened(hf, "layers").within():
            assert hf.lm_head.weight.shape == (prefix.LOGITS, 32)
            assert hf.lm_head.bias.shape == (prefix.LOGITS,)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert hf.lm_head.weight is weight
    assert hf.lm_head.bias is bias
