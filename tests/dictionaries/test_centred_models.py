"""Dictionaries of TransformerLens's centred models (SAELens's `gpt2-small-res-jb`) on the native model.

Oracle: a copy of the model whose writing weights are centred by hand, as TransformerLens does, and the dictionary as
its file has it.
"""

import json

import pytest
import torch

from monosem.dictionaries import load_dictionary
from monosem.models import Model
from tiny import tiny_hf, tiny_tokenizer
from tiny_dictionaries import random_tensors, tiny_dictionary

TEXTS = ["the cat sat on the mat", "a dog ran to the house and"]


def centred(hf):
    """GPT-2 keeps its weights as [in, out]: what is written is along the last axis."""
    with torch.no_grad():
        core = hf.transformer
        written = [core.wte.weight, core.wpe.weight]
        for block in core.h:
            written += [
                block.attn.c_proj.weight,
                block.attn.c_proj.bias,
                block.mlp.c_proj.weight,
                block.mlp.c_proj.bias,
            ]
        hf.lm_head.weight = torch.nn.Parameter(hf.lm_head.weight.clone())  # tied to what is centred
        for weight in written:
            weight -= weight.mean(-1, keepdim=True)
    return hf


@pytest.mark.parametrize("site", ["resid_pre.1", "mlp_out.1", "z.1"])
def test_codes_are_those_on_the_centred_model(tmp_path, site):
    native, copy = (Model(hf, tiny_tokenizer(), "gpt2") for hf in (tiny_hf("gpt2"), centred(tiny_hf("gpt2"))))
    tiny_dictionary("relu", random_tensors(32, 48, 0, (1 / 6, 1 / 4)), model_name="gpt2", site=site).save(tmp_path)
    plain = load_dictionary(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    folded = load_dictionary(tmp_path)
    x, y = (model.run(TEXTS, capture=site) for model in (native, copy))
    torch.testing.assert_close(x.logits[x.tokens.mask], y.logits[y.tokens.mask], rtol=1e-3, atol=1e-3)
    own, other = (run[site][run.tokens.mask].flatten(1) for run in (x, y))
    if site != "z.1":  # heads' values are read from normalised states, where nothing is centred
        assert float((own - other).abs().max()) > 0.01
    expected = plain.encode(other).dense()
    torch.testing.assert_close(folded.encode(own).dense(), expected, rtol=1e-3, atol=1e-3)
    folded.save(tmp_path / "again")
    torch.testing.assert_close(load_dictionary(tmp_path / "again").encode(own).dense(), expected, rtol=1e-3, atol=1e-3)
