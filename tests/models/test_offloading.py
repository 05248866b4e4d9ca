"""Weights that accelerate keeps elsewhere and brings to a device for each module: bare transformers is the oracle."""

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

from monosem import edits
from monosem.errors import BadInput
from monosem.models import Model, load_model, verify
from monosem.models.memory import free
from tiny import tiny_hf

IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(1))


def offloaded(way: str, family: str, folder: Path) -> Model:
    hf = tiny_hf(family)
    if way == "cpu":
        cpu_offload(hf, execution_device=torch.device("cpu"))
    elif way == "disk":
        disk_offload(hf, str(folder), execution_device=torch.device("cpu"))
    else:  # the embedding and the first block on disk, the rest in memory
        places = {name: "cpu" for name, _ in hf.named_children()} | {"model": "disk"}
        dispatch_model(hf, places, main_device="cpu", offload_dir=str(folder))
    return load_model(hf, quiet=True)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("way", ["cpu", "disk"])
def test_offloaded_models_run_generate_and_show_their_weights(way: str, family: str, tmp_path: Path) -> None:
    model, plain = offloaded(way, family, tmp_path), Model(tiny_hf(family))
    assert model.hf.get_input_embeddings().weight.is_meta
    assert model.device == torch.device("cpu")
    edit = edits.scale("mlp_out.1", 0.5)
    for one in ({}, {"edits": edit}, {"logits": "last"}, {"start": ("resid_pre.1", torch.randn(2, 9, 32))}):
        assert torch.equal(model.run(IDS, **one).logits, plain.run(IDS, **one).logits)
    assert (
        model.generate(IDS, edits=edit, max_new_tokens=3).new == plain.generate(IDS, edits=edit, max_new_tokens=3).new
    )
    for name in ("W_E", "W_U"):
        torch.testing.assert_close(getattr(model, name), getattr(plain, name))
    torch.testing.assert_close(model.W_Q[1], plain.W_Q[1], rtol=1e-5, atol=1e-6)
    if family == "gpt2":
        torch.testing.assert_close(model.W_pos, plain.W_pos)
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()


def test_a_model_dispatched_in_parts(tmp_path: Path) -> None:
    model = offloaded("parts", "llama", tmp_path)
    assert model.hf.get_input_embeddings().weight.is_meta
    assert torch.equal(model.run(IDS).logits, Model(tiny_hf("llama")).run(IDS).logits)


def test_freed_offloaded_models_are_gone(tmp_path: Path) -> None:
    model = offloaded("cpu", "llama", tmp_path)
    free(model)
    with pytest.raises(BadInput, match="was freed"):
        model.run(IDS)
