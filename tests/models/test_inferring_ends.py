"""Ends of models that a row is inferred for: they are those of the table's row, found anew with the row taken away."""

import pytest
import torch
from transformers import AutoModelForMaskedLM

from anymodel import randomised, tiny_any, tiny_config
from monosem.errors import UnknownName
from monosem.models import InferredFamily, load_model, verify
from monosem.models.checking import infer
from monosem.models.places.table import BY_TYPE

CHANGES: dict[str, dict[str, object]] = {"granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0}}
ENDS = ("embed", "embed_projection", "embed_scale", "positions", "types", "entry", "final_norm", "head")


@pytest.mark.parametrize("kind", ["gpt2", "granite", "nanochat", "gpt_bigcode", "cohere"])
def test_ends_are_those_of_the_table(kind, monkeypatch):
    hf = tiny_any(kind, **CHANGES.get(kind, {}))
    row = BY_TYPE[kind]
    monkeypatch.setattr(infer, "BY_TYPE", {})
    with pytest.warns(InferredFamily, match="inferred"):
        found = infer.row_of(hf)
    assert {name: getattr(found, name) for name in ENDS} == {name: getattr(row, name) for name in ENDS}
    assert found.logit_steps == row.logit_steps


def test_an_encoder_without_a_row_is_inferred():
    hf = randomised(AutoModelForMaskedLM.from_config(tiny_config("eurobert"), dtype=torch.float32))
    with pytest.warns(InferredFamily, match="inferred"):
        model = load_model(hf, quiet=True)
    assert model.looks_ahead
    assert verify(model).ok
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        native = hf(ids, output_hidden_states=True)
        torch.testing.assert_close(model.run(ids, "resid_pre.2")["resid_pre.2"], native.hidden_states[2])


def test_blocks_whose_norms_close_sums_say_so():
    hf = randomised(AutoModelForMaskedLM.from_config(tiny_config("roc_bert"), dtype=torch.float32))
    with pytest.raises(UnknownName, match="these norm the stream itself"):
        infer.infer(hf)  # the table has a reason of its own
