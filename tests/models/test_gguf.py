"""GGUF files of every architecture, with everything that scales rotations: the same logits as the model they hold."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from monosem.errors import BadFile
from monosem.models import Model
from monosem.models.loading.gguf import load_gguf
from tiny_gguf_kinds import KINDS, gguf_hf, write_kind

IDS = torch.randint(3, 100, (2, 30), generator=torch.Generator().manual_seed(1))
FREQS = "rope_freqs.weight"
BASE = {"rope_theta": 10000.0}
DEFAULT = BASE | {"rope_type": "default"}
LINEAR = BASE | {"rope_type": "linear", "factor": 8.0}
YARN = BASE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = BASE | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONG = BASE | {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 4.0, 9.0],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 16,
}


def load(path: Path) -> tuple[Any, list[str]]:
    return load_gguf(path, dtype=torch.float32, device=torch.device("cpu"))


def scaling(arch: str, **keys: Any) -> dict[str, tuple[Any, str]]:
    """Keys below `rope.scaling` with their types, as gguf's writer has them."""
    kinds = {str: "string", float: "float32", int: "uint32", bool: "bool"}
    return {f"{arch}.rope.scaling.{name}": (value, kinds[type(value)]) for name, value in keys.items()}


def llama3_divisors(d_head: int = 8) -> np.ndarray:
    """As llama.cpp's converter computes them from the config."""
    low, high = 128 / LLAMA3["low_freq_factor"], 128 / LLAMA3["high_freq_factor"]
    found = []
    for i in range(0, d_head, 2):
        wavelength = 2 * math.pi * LLAMA3["rope_theta"] ** (i / d_head)
        if wavelength < high:
            found.append(1.0)
        elif wavelength > low:
            found.append(LLAMA3["factor"])
        else:
            smooth = (128 / wavelength - 1.0) / (4.0 - 1.0)
            found.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    assert len(set(found)) >= 3  # one of every kind
    return np.array(found, dtype=np.float32)


# name -> (architecture, config of the oracle, keys of the file, tensors of the file)
SCALED: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "linear": ("llama", {"rope_parameters": LINEAR}, scaling("llama", type="linear", factor=8.0), {}),
    "linear, without its type": ("qwen3", {"rope_parameters": LINEAR}, scaling("qwen3", factor=8.0), {}),
    "linear, old key": ("llama", {"rope_parameters": LINEAR}, {"llama.rope.scale_linear": (8.0, "float32")}, {}),
    "none": ("llama", {}, scaling("llama", type="none", factor=8.0, finetuned=True), {}),
    "yarn": (
        "qwen2",
        {"rope_parameters": YARN},
        scaling("qwen2", type="yarn", factor=4.0, original_context_length=16),
        {},
    ),
    "yarn, all keys": (
        "qwen3moe",
        {"rope_parameters": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.7}},
        scaling("qwen3moe", type="yarn", factor=4.0, original_context_length=16)
        | scaling("qwen3moe", yarn_beta_fast=16.0, yarn_beta_slow=2.0, yarn_attn_factor=0.7, yarn_ext_factor=1.0),
        {},
    ),
    "yarn, llama.cpp's multiplier": (
        "qwen2",
        {"rope_parameters": YARN | {"attention_factor": (0.1 * math.log(4) + 1) * 0.7}},
        scaling("qwen2", type="yarn", factor=4.0, original_context_length=16, attn_factor=0.7),
        {},
    ),
    "llama3": ("llama", {"rope_parameters": LLAMA3}, {}, {FREQS: llama3_divisors()}),
    "divisors and a factor": (
        "llama",
        {"rope_parameters": LINEAR},
        scaling("llama", factor=2.0),
        {FREQS: np.full(4, 4.0)},
    ),
    "divisors that are all 1": ("llama", {}, {}, {FREQS: np.ones(4)}),
    "gemma3": (
        "gemma3",
        {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": DEFAULT}},
        scaling("gemma3", type="linear", factor=8.0),
        {},
    ),
    "gemma3, local base": (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            }
        },
        scaling("gemma3", type="linear", factor=8.0) | {"gemma3.rope.freq_base_swa": (50.0, "float32")},
        {},
    ),
    "phi3": (
        "phi3",
        {"rope_parameters": LONG | {"attention_factor": 1.2}, "original_max_position_embeddings": 16},
        scaling("phi3", attn_factor=1.2, original_context_length=16),
        {f"rope_factors_{name}.weight": LONG[f"{name}_factor"] for name in ("long", "short")},
    ),
    "phi3, longrope": (
        "phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 16},
        scaling("phi3", type="longrope", original_context_length=16),
        {f"rope_factors_{name}.weight": LONG[f"{name}_factor"] for name in ("long", "short")},
    ),
}


@pytest.mark.parametrize("arch", KINDS)
def test_every_architecture(arch: str, tmp_path: Path) -> None:
    hf = gguf_hf(arch)
    loaded, notes = load(write_kind(tmp_path / "t.gguf", arch, hf))
    torch.testing.assert_close(loaded(IDS).logits, hf(IDS).logits, rtol=1e-5, atol=1e-5)
    assert notes == []


@pytest.mark.parametrize("case", SCALED)
def test_scaled_rotations(case: str, tmp_path: Path) -> None:
    arch, config, keys, tensors = SCALED[case]
    hf = gguf_hf(arch, **config)
    loaded, notes = load(write_kind(tmp_path / "t.gguf", arch, hf, keys, tensors))
    assert notes == []
    for ids in (IDS, IDS[:, :9]):  # beyond the original context of the long factors, and within
        torch.testing.assert_close(loaded(ids).logits, hf(ids).logits, rtol=1e-5, atol=1e-5)
    if config:
        plain = gguf_hf(arch, **(config | {"rope_parameters": gguf_hf(arch).config.rope_parameters}))
        assert (plain(IDS).logits - hf(IDS).logits).abs().max() > 1e-2
    loaded.save_pretrained(tmp_path / "again")  # it is all in the config
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    torch.testing.assert_close(again(IDS).logits, hf(IDS).logits, rtol=1e-5, atol=1e-5)


def test_rows_and_context_of_a_file_with_long_factors(tmp_path: Path) -> None:
    arch, config, keys, tensors = SCALED["phi3"]
    model = Model(load(write_kind(tmp_path / "t.gguf", arch, gguf_hf(arch, **config), keys, tensors))[0], None)
    rows = [IDS[0, :9].tolist(), IDS[1].tolist()]
    out = model.run(rows).logits
    for row, logits in zip(rows, out):
        torch.testing.assert_close(
            logits[: len(row)], gguf_hf(arch, **config)(torch.tensor([row])).logits[0], rtol=1e-4, atol=1e-5
        )
    assert model.cfg.n_ctx == 64


@pytest.mark.parametrize("pattern", [(3, "uint32"), ([True, True, False] * 2, "array")])
def test_layers_of_gemma3_follow_the_file(pattern: tuple[Any, str], tmp_path: Path) -> None:
    types = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    hf = gguf_hf("gemma3", layer_types=types, query_pre_attn_scalar=25, final_logit_softcapping=3.0)
    keys = {"gemma3.attention.sliding_window_pattern": pattern, "gemma3.attention.scale": (0.2, "float32")}
    loaded = load(write_kind(tmp_path / "t.gguf", "gemma3", hf, keys))[0]
    assert loaded.config.layer_types == types
    torch.testing.assert_close(loaded(IDS).logits, hf(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("arch", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_divide_by_the_width_that_their_sizes_give(arch: str, layers: int, tmp_path: Path) -> None:
    """As llama.cpp has it: 4608 / 32 and 5376 / 32 in the 27B models, whose heads are 128 wide."""
    sizes = {"num_hidden_layers": layers, "layer_types": None, "head_dim": 12, "query_pre_attn_scalar": 8}
    hf = gguf_hf(arch, **sizes)
    loaded = load(write_kind(tmp_path / "t.gguf", arch, hf))[0]
    assert loaded.config.query_pre_attn_scalar == hf.config.hidden_size // hf.config.num_attention_heads == 8
    torch.testing.assert_close(loaded(IDS).logits, hf(IDS).logits, rtol=1e-5, atol=1e-5)


def test_tokens_are_the_files_own(tmp_path: Path) -> None:
    keys = {"phi3.tokenizer": None, "tokenizer.ggml.eos_token_id": (7, "uint32")}
    config = load(write_kind(tmp_path / "t.gguf", "phi3", gguf_hf("phi3"), keys))[0].config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 7, None)  # not Phi-3-mini's


# ---------------------------------------------------------------------- named or refused
def test_what_nothing_reads_is_named(tmp_path: Path) -> None:
    keys = {"llama.something.new": (3, "uint32"), "general.url": ("x", "string"), "strange.key": (1, "uint32")}
    path = write_kind(tmp_path / "t.gguf", "llama", gguf_hf("llama"), keys, {"mm.0.weight": np.ones((2, 2))})
    notes = "\n".join(load(path)[1])
    assert "1 keys of the file are not used (llama.something.new)" in notes
    assert "(strange.key)" in notes
    assert "1 unused tensors in the file (mm.0.weight)" in notes
    assert "general.url" not in notes


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "a type": ("llama", scaling("llama", type="alibi", factor=2.0), {}, "rope.scaling.type is 'alibi'"),
    "log multiplier": (
        "qwen2",
        scaling("qwen2", type="yarn", factor=4.0, yarn_log_multiplier=0.1),
        {},
        "yarn_log_multiplier is 0.1",
    ),
    "extrapolation": ("qwen2", scaling("qwen2", type="yarn", factor=4.0, yarn_ext_factor=0.5), {}, "yarn_ext_factor"),
    "alpha": ("llama", scaling("llama", alpha=1000.0), {}, "rope.scaling.alpha is 1000.0"),
    "long without short": ("phi3", {}, {"rope_factors_long.weight": np.ones(4)}, "rope_factors_short.weight belong"),
    "longrope without factors": ("phi3", scaling("phi3", type="longrope"), {}, "belong together, and one is missing"),
    "yarn and divisors": (
        "llama",
        scaling("llama", type="yarn", factor=4.0),
        {FREQS: [2.0] * 4},
        "as well",
    ),
    "attention without factors": ("llama", scaling("llama", attn_factor=1.5), {}, "rope.scaling.attn_factor is 1.5"),
    "yarn on Phi-3": ("phi3", scaling("phi3", type="yarn", factor=4.0), {}, "must be one of"),
    "number of divisors": ("llama", {}, {FREQS: np.ones(5)}, "must hold 4 positive numbers"),
    "divisor of 0": ("llama", {}, {FREQS: [1.0, 1.0, 0.0, 1.0]}, "must hold 4 positive numbers"),
    "divisor of NaN": ("llama", {}, {FREQS: [1.0, 1.0, math.nan, 1.0]}, "must hold 4 positive"),
    "a window's base": ("llama", {"llama.rope.freq_base_swa": (5.0, "float32")}, {}, "rope.freq_base_swa is 5"),
    "part of a head": ("llama", {"llama.rope.dimension_count": (4, "uint32")}, {}, "rope.dimension_count is 4"),
    "experts": ("llama", {"llama.expert_count": (8, "uint32")}, {}, "expert_count is 8"),
    "soft cap": ("llama", {"llama.attn_logit_softcapping": (50.0, "float32")}, {}, "attn_logit_softcapping is 50.0"),
    "both directions": ("llama", {"llama.attention.causal": (False, "bool")}, {}, "attention.causal is False"),
    "unequal heads": ("llama", {"llama.attention.value_length": (16, "uint32")}, {}, "attention.value_length is 16"),
    "wide heads": (
        "qwen2",
        {"qwen2.attention.key_length": (16, "uint32"), "qwen2.attention.value_length": (16, "uint32")},
        {},
        "attention.key_length is 16",
    ),
    "a bias": ("llama", {}, {"blk.1.attn_q.bias": np.ones(32)}, "has no place for blk.1.attn_q.bias"),
    "one of several files": ("llama", {"split.count": (3, "uint16")}, {}, "one of 3 parts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_wrong_is_refused(case: str, tmp_path: Path) -> None:
    arch, keys, tensors, words = REFUSED[case]
    path = write_kind(tmp_path / "t.gguf", arch, gguf_hf(arch), keys, tensors)
    with pytest.raises(BadFile) as error:
        load(path)
    assert words in str(error.value)
    assert str(error.value).startswith("cannot load t.gguf: ")
    assert "\n" not in str(error.value)


HOSTILE = [
    ("rope.scaling.factor", math.nan, "float32"),
    ("rope.scaling.factor", -4.0, "float32"),
    ("rope.scaling.factor", "8", "string"),
    ("rope.scaling.type", 3, "uint32"),
    ("rope.scaling.original_context_length", 0, "uint32"),
    ("rope.scaling.original_context_length", 8.5, "float32"),
    ("rope.freq_base", math.inf, "float32"),
    ("rope.freq_base", 0.0, "float32"),
    ("rope.dimension_count", 4_000_000_000, "uint32"),
    ("block_count", 4_000_000_000, "uint32"),
    ("block_count", "three", "string"),
    ("context_length", [1, 2], "array"),
    ("embedding_length", 1_000_000, "uint32"),
    ("feed_forward_length", 4_000_000_000, "uint32"),
    ("attention.head_count", 0, "uint32"),
    ("attention.key_length", -8, "int32"),
    ("attention.layer_norm_rms_epsilon", math.nan, "float32"),
]


@pytest.mark.parametrize(("key", "value", "kind"), HOSTILE)
def test_values_that_cannot_be(key: str, value: Any, kind: str, tmp_path: Path) -> None:
    hf = gguf_hf("llama")
    with pytest.raises(BadFile) as error:
        load(write_kind(tmp_path / "t.gguf", "llama", hf, {f"llama.{key}": (value, kind)}))
    assert "\n" not in str(error.value)


def test_scaling_of_other_architectures_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "minimax-m2")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_tensor(FREQS, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadFile, match=r"rope.scaling.type, rope_freqs.weight: transformers does not scale rotations"):
        load(tmp_path / "t.gguf")
