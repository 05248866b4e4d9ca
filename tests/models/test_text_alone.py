"""Multimodal checkpoints loaded for text alone: the logits of the whole model, without its towers in memory."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from monosem.errors import BadFile, BadInput
from monosem.models import load_model, verify
from monosem.models.loading.load import load_hf
from monosem.models.loading.towers import Absent, beside
from tiny import _LLAMA, randomise
from tiny_multimodal import MULTIMODAL, OTHERS, tiny_multimodal

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))


def logits(hf: PreTrainedModel) -> Tensor:
    # Llama 4 as a whole cannot be run on text in transformers 5.24: it reads `image_outputs` of its language model
    part = hf.language_model if type(hf).__name__ == "Llama4ForConditionalGeneration" else hf
    with torch.no_grad():
        return part(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def tower_names(hf: PreTrainedModel) -> list[str]:
    return [path.rpartition(".")[2] for path, _ in beside(hf)]


def sharded(hf: PreTrainedModel, folder: Path) -> tuple[Path, Path]:
    """The checkpoint in two shards, one of the towers and one of the rest: these files."""
    hf.save_pretrained(folder)
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    is_tower = {key: any(name in key.split(".") for name in tower_names(hf)) for key in tensors}
    files = folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    for file, of_tower in zip(files, (True, False), strict=True):
        part = {key: tensor for key, tensor in tensors.items() if is_tower[key] is of_tower}
        assert part
        save_file(part, file, {"format": "pt"})
    index = {key: files[not of_tower].name for key, of_tower in is_tower.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return files


@pytest.mark.parametrize("kind", [*MULTIMODAL, *OTHERS])
def test_text_is_read_as_the_whole_reads_it_and_no_tower_is_in_memory(kind: str, tmp_path: Path) -> None:
    hf = tiny_multimodal(kind)
    hf.save_pretrained(tmp_path)
    towers = {id(p) for _, part in beside(hf) for p in part.parameters()}
    assert towers
    lean, _, _, notes = load_hf(tmp_path, quiet=True)
    torch.testing.assert_close(logits(lean), logits(hf), rtol=1e-6, atol=1e-6)
    if kind == "mllama":  # its layers that look at pictures, among the others
        towers |= {id(p) for p in hf.model.language_model.layers[1].parameters()}
    expected = sum(p.numel() for p in hf.parameters() if id(p) not in towers)
    assert sum(p.numel() for p in lean.parameters()) == expected
    assert not any(p.is_meta for p in lean.parameters())
    assert notes[0].startswith("loaded for text alone")
    assert not any("unused" in note for note in notes)


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_vl", "qwen3_5", "llama4"])
def test_a_shard_of_towers_is_not_even_opened(kind: str, tmp_path: Path) -> None:
    hf = tiny_multimodal(kind)
    towers, rest = sharded(hf, tmp_path)
    towers.write_bytes(b"damaged")
    torch.testing.assert_close(logits(load_hf(tmp_path, quiet=True)[0]), logits(hf), rtol=1e-6, atol=1e-6)
    towers.unlink()
    torch.testing.assert_close(logits(load_hf(tmp_path, quiet=True)[0]), logits(hf), rtol=1e-6, atol=1e-6)
    rest.unlink()
    with pytest.raises(BadFile, match="cannot load"):
        load_hf(tmp_path, quiet=True)


def test_towers_in_the_same_file_are_not_read(tmp_path: Path) -> None:
    hf = tiny_multimodal("mistral3")
    hf.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    spoiled = {key: x * torch.nan if "vision" in key or "projector" in key else x for key, x in tensors.items()}
    save_file(spoiled, path, {"format": "pt"})
    torch.testing.assert_close(logits(load_hf(tmp_path, quiet=True)[0]), logits(hf), rtol=1e-6, atol=1e-6)


def test_a_loaded_model_keeps_its_towers_and_a_part_that_is_missing_says_so(tmp_path: Path) -> None:
    hf = tiny_multimodal("gemma3")
    assert load_model(hf, quiet=True).hf is hf
    assert not any(isinstance(module, Absent) for module in hf.modules())
    hf.save_pretrained(tmp_path)
    lean = load_model(tmp_path, quiet=True).hf
    assert type(lean).__name__ == type(hf).__name__
    assert isinstance(lean, type(hf))
    with pytest.raises(BadInput, match=r"model\.vision_tower was not loaded, because only text is read"):
        lean.model.vision_tower(torch.zeros(1, 3, 28, 28))


def test_layers_that_look_at_pictures_are_left_out(tmp_path: Path) -> None:
    hf = tiny_multimodal("mllama")
    hf.save_pretrained(tmp_path)
    model = load_model(tmp_path, quiet=True)
    assert model.cfg.n_layers == 2
    assert "its layers 1 look at pictures and are left out; the others are numbered on" in load_hf(tmp_path)[3]
    assert verify(model).ok
    ids = IDS
    for _ in range(3):
        with torch.no_grad():
            ids = torch.cat([ids, hf(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert model.generate(IDS, max_new_tokens=3, stop_at_eos=False).new == ids[:, 9:].tolist()


def test_in_the_precision_asked_for(tmp_path: Path) -> None:
    tiny_multimodal("gemma3").to(torch.bfloat16).save_pretrained(tmp_path)
    for asked, expected in (("bf16", torch.bfloat16), (None, torch.float32)):
        assert {p.dtype for p in load_hf(tmp_path, dtype=asked, quiet=True)[0].parameters()} == {expected}


def test_gemma_3n_is_read_without_the_package_of_its_tower(tmp_path: Path) -> None:
    """The whole cannot be built without timm, so that the checkpoint is made from the language model."""
    text = _LLAMA | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
    more = {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 100, "num_kv_shared_layers": 0}
    more |= {"activation_sparsity_pattern": [0.5, 0.0, 0.0], "laurel_rank": 4, "tie_word_embeddings": True}
    config = AutoConfig.for_model("gemma3n", text_config=text | more)
    hf = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.float32)
    randomise(hf, 0)
    hf.eval().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {re.sub(r"^model\.", "model.language_model.", key): tensor for key, tensor in load_file(path).items()}
    others: dict[str, Any] = {"model.vision_tower.timm_model.conv.weight": torch.ones(2)}
    save_file(tensors | others | {"model.embed_vision.embedding.weight": torch.ones(2)}, path, {"format": "pt"})
    config.save_pretrained(tmp_path)
    lean, _, _, notes = load_hf(tmp_path, quiet=True)
    torch.testing.assert_close(logits(lean), logits(hf), rtol=1e-6, atol=1e-6)
    assert notes[0] == "loaded for text alone, as Gemma3nForCausalLM"
