"""Checkpoints that say that their weights are quantised: what is exact is said, what would be wrong is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from monosem.errors import BadFile, BadInput
from monosem.models import load_model, verify
from monosem.models.loading.load import load_hf
from tiny import tiny_hf

IDS = torch.arange(3, 9)[None]


def folder_of(path: Path, quantised: dict[str, Any] | None) -> Path:
    tiny_hf("llama").save_pretrained(path)
    settings = json.loads((path / "config.json").read_text())
    more = {} if quantised is None else {"quantization_config": quantised}
    (path / "config.json").write_text(json.dumps(settings | more))
    return path


def packed(path: Path, scale: str) -> dict[str, torch.Tensor]:
    """Puts a folder's projections into fp8, with a scale for each block of 16 x 16; the numbers that they mean."""
    weights, meant = load_file(path / "model.safetensors"), {}
    for key in [key for key in weights if key.endswith("_proj.weight")]:
        blocks = weights[key].unflatten(0, (-1, 16)).unflatten(2, (-1, 16))
        sizes = blocks.abs().amax((1, 3)) / 448
        small = (blocks / sizes[:, None, :, None]).to(torch.float8_e4m3fn)
        meant[key] = (small.float() * sizes[:, None, :, None]).flatten(2, 3).flatten(0, 1)
        weights[key], weights[f"{key.removesuffix('weight')}{scale}"] = small.flatten(2, 3).flatten(0, 1), sizes
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return meant


def refusal(path: Path) -> str:
    with pytest.raises((BadFile, BadInput)) as error:
        load_hf(path, quiet=True)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="layers stay packed there")
def test_fp8_is_unpacked_exactly_and_the_user_is_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"})
    meant = packed(folder, "weight_scale_inv")
    hf, _, _, notes = load_hf(folder, quiet=True, device="cpu")
    assert any(
        "quantised in the file (fp8) and were unpacked to float32: sites and weights are exact" in n for n in notes
    )
    for key, value in meant.items():
        torch.testing.assert_close(hf.get_parameter(key).data, value)
    model = load_model(folder, quiet=True, device="cpu")
    assert verify(model).ok
    torch.testing.assert_close(model.W_O[1].flatten(0, 1), meant["model.layers.1.self_attn.o_proj.weight"].T)


def test_scales_without_a_word_in_the_config_are_not_left_out_in_silence(tmp_path: Path) -> None:
    packed(folder_of(tmp_path, None), "weight_scale_inv")
    assert "down_proj.weight_scale_inv is the scale of one), and config.json has no quantization_config" in refusal(
        tmp_path
    )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"quant_method": "modelopt", "quant_algo": "FP8"},
            "by 'modelopt', which transformers does not read; take the",
        ),
        ({"group_size": 64, "bits": 4}, r"and not how (no quant_method, as in MLX's); take the original"),
        ({"quant_method": "nvfp4"}, "its weights are quantised (nvfp4)"),
        ({"quant_method": "gptq", "bits": 4}, "its weights are quantised (gptq)"),
    ],
)
def test_what_transformers_does_not_read_here(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in refusal(folder_of(tmp_path, config))


def test_layers_that_stay_packed_are_said_to(tmp_path: Path) -> None:
    hf: Any = tiny_hf("llama")
    hf.is_quantized = True  # as after a loading that keeps them
    hf.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    notes = load_hf(hf, quiet=True)[3]
    assert any("its layers stay quantised (bitsandbytes): sites hold what they compute" in note for note in notes)
