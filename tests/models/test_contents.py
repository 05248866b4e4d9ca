"""Checkpoints whose files and config do not belong together, or hold more than a language model: one line each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2DoubleHeadsModel,
)

from anymodel import tiny_any
from monosem.errors import BadFile, BadInput, UnknownName
from monosem.models import load_model
from monosem.models.language import text_config
from monosem.models.loading.load import load_hf
from tiny import FAMILIES, tiny_hf

IDS = torch.arange(3, 9)[None]


def folder_of(path: Path, kind: str = "llama", **config: object) -> Path:
    hf = tiny_hf(kind) if kind in FAMILIES else tiny_any(kind)
    hf.save_pretrained(path)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | config))
    return path


def change_weights(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors", {"format": "pt"})


def refusal(path: Path) -> str:
    with pytest.raises(BadFile) as error:
        load_hf(path, quiet=True)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_layers_that_the_config_leaves_out_are_not_left_out_in_silence(tmp_path: Path) -> None:
    said = refusal(folder_of(tmp_path, num_hidden_layers=2))
    assert "config.json says 2 layers, and the weights have layer 2 as well; correct num_hidden_layers" in said


def test_layers_that_the_files_lack(tmp_path: Path) -> None:
    assert "9 weights are missing" in refusal(folder_of(tmp_path, num_hidden_layers=4))


@pytest.mark.parametrize(("kind", "other"), [("lfm2", "conv"), ("qwen3_5_text", "linear_attn")])
def test_a_list_of_layers_against_the_weights(kind: str, other: str, tmp_path: Path) -> None:
    layers = tiny_any(kind).config.layer_types
    full = layers.index("full_attention")
    swapped = [
        "full_attention" if n == full - 1 else layers[full - 1] if n == full else x for n, x in enumerate(layers)
    ]
    said = refusal(folder_of(tmp_path, kind, layer_types=swapped))
    assert f"disagree about layers {full - 1}, {full}: by the config layer {full - 1} has self_attn." in said
    assert f"in the file it has {other}." in said


@pytest.mark.parametrize("layers", [2, 5])
def test_a_list_of_layers_against_their_number(layers: int, tmp_path: Path) -> None:
    said = refusal(folder_of(tmp_path, "gemma3_text", layer_types=["full_attention"] * layers))
    assert f"`num_hidden_layers` (3) must be equal to the number of `layer_types` ({layers})" in said
    assert said.endswith("correct config.json")


def test_a_model_type_of_a_later_release(tmp_path: Path) -> None:
    said = refusal(folder_of(tmp_path, model_type="llama9"))
    assert "has no model type 'llama9'; a newer one may: pip install -U transformers" in said


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("qwen3_next", "mtp.fc.weight"),  # left out in silence by transformers
        ("deepseek_v3", "model.layers.4.eh_proj.weight"),  # as a layer after the last
        ("glm4_moe", "model.mtp.0.weight"),
    ],
)
def test_a_head_that_predicts_several_tokens_ahead_is_said(kind: str, key: str, tmp_path: Path) -> None:
    folder_of(tmp_path, kind)
    change_weights(tmp_path, lambda weights: weights | {key: torch.zeros(2, 2)})
    assert load_hf(tmp_path, quiet=True)[3][0] == f"its head that predicts several tokens ahead is not read ({key})"


def test_weights_that_mlx_quantised(tmp_path: Path) -> None:
    folder_of(tmp_path, quantization={"group_size": 64, "bits": 4})
    change_weights(
        tmp_path,
        lambda weights: (
            {key: x[:, :4].int() if "proj" in key else x for key, x in weights.items()}
            | {key.replace(".weight", ".scales"): torch.ones(1) for key in weights if "proj" in key}
        ),
    )
    assert "quantised in a way that transformers does not read (MLX); take the original" in refusal(tmp_path)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_a_quantised_variant_without_its_package(method: str, tmp_path: Path) -> None:
    config = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    folder_of(tmp_path, quantization_config=config)
    with pytest.raises(BadInput, match="pip install") as error:
        load_hf(tmp_path, quiet=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["model.onnx", "onnx/model.onnx", "openvino_model.xml", "tf_model.h5"])
def test_a_variant_for_another_program(file: str, tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    shutil.move(tmp_path / "model.safetensors", tmp_path / file)
    said = refusal(tmp_path)
    assert f"it holds {file}, for another program" in said
    assert "model.safetensors" in said


def test_a_checkpoint_without_an_unembedding(tmp_path: Path) -> None:
    config = AutoConfig.for_model(FAMILIES["llama"][0], **FAMILIES["llama"][1])
    AutoModel.from_config(config).save_pretrained(tmp_path)
    assert "LlamaModel without an unembedding, not a language model" in refusal(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering]
)
def test_a_head_that_predicts_no_tokens(auto: Any, tied: bool, tmp_path: Path) -> None:
    """A tied one would be read as a language model whose unembedding was never trained."""
    config = AutoConfig.for_model(FAMILIES["llama"][0], **FAMILIES["llama"][1] | {"tie_word_embeddings": tied})
    hf = auto.from_config(config)
    hf.save_pretrained(tmp_path)
    for given in (tmp_path, hf):
        with pytest.raises(BadInput) as error:
            load_model(given, quiet=True)
        said = str(error.value)
        assert f"is a {type(hf).__name__}, whose head does not predict tokens; load the language model" in said
        assert "\n" not in said
    assert ("for its streams" in said) == (auto is not AutoModelForQuestionAnswering)
    if auto is AutoModelForQuestionAnswering:  # its body has another name, so that it cannot be loaded so
        return
    streams = load_model(AutoModelForCausalLM.from_pretrained(tmp_path), quiet=True).run(IDS, "resid_post.2")
    body = hf.base_model.eval().requires_grad_(False)
    torch.testing.assert_close(body.norm(streams["resid_post.2"]), body(IDS).last_hidden_state)


def test_a_second_head_beside_the_unembedding(tmp_path: Path) -> None:
    hf = GPT2DoubleHeadsModel(tiny_hf("gpt2").config)
    with pytest.raises(BadInput, match="GPT2DoubleHeadsModel, with a second head that is not read; load it with"):
        load_model(hf, quiet=True)
    hf.save_pretrained(tmp_path)
    loaded, _, _, notes = load_hf(tmp_path, quiet=True)  # a file has the language model whole
    torch.testing.assert_close(loaded(IDS).logits, hf.eval()(IDS).logits)
    assert any("multiple_choice_head" in note for note in notes)


def test_models_without_logits_of_tokens_are_refused_where_they_are_given() -> None:
    config = AutoConfig.for_model(FAMILIES["llama"][0], **FAMILIES["llama"][1])
    with pytest.raises(BadInput, match="LlamaModel has no unembedding.*AutoModelForCausalLM"):
        load_model(AutoModel.from_config(config), quiet=True)


def test_a_model_in_a_wrapper_with_a_second_head() -> None:
    class WithValueHead(torch.nn.Module):  # as trl makes it
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_model = tiny_hf("llama")
            self.v_head = torch.nn.Linear(32, 1)

    with pytest.raises(BadInput, match=r"WithValueHead: give its \.pretrained_model"):
        load_model(WithValueHead(), quiet=True)  # type: ignore[arg-type]


def test_two_language_models_side_by_side() -> None:
    whole = SimpleNamespace(config=AutoConfig.for_model("musicgen"))
    with pytest.raises(UnknownName, match="holds several language models .*: pass one of them"):
        text_config(whole)  # type: ignore[arg-type]


def test_a_loaded_model_is_of_its_native_class(tmp_path: Path) -> None:
    hf = load_hf(folder_of(tmp_path), quiet=True)[0]
    assert type(hf) is type(tiny_hf("llama"))
    assert not [name for name in vars(hf) if "monosem" in name]


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("llama", {"vocab_size": 0}, "config.json has a size that cannot be (Padding_idx must be within"),
        (
            "llama",
            {"num_attention_heads": 0},
            "config.json has a size that cannot be (integer modulo by zero); correct",
        ),
        ("llama", {"intermediate_size": -1}, "config.json has a size that cannot be"),
        (
            "llama",
            {"hidden_act": "nonsense"},
            "config.json names 'nonsense', which transformers does not know; correct",
        ),
        ("llama", {"num_attention_heads": 8}, "weights are missing or of another shape"),
        ("mixtral", {"num_experts_per_tok": 99}, "config.json chooses 99 of 4 experts for each token; correct num_exp"),
        ("mixtral", {"num_experts_per_tok": 0}, "config.json chooses 0 of 4 experts for each token"),
        ("mixtral", {"num_local_experts": 2}, "weights are missing or of another shape"),
    ],
)
def test_sizes_that_contradict_each_other_or_the_weights(kind: str, config: dict[str, Any], says: str, tmp_path: Path):
    assert says in refusal(folder_of(tmp_path, kind, **config))


def test_a_tied_head_that_is_not(tmp_path: Path) -> None:
    """transformers takes the file's own head; so do the weight views."""
    folder_of(tmp_path, tie_word_embeddings=True)
    head = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    change_weights(tmp_path, lambda weights: weights | {"lm_head.weight": head})
    model = load_model(tmp_path, quiet=True)
    torch.testing.assert_close(model.W_U.T, head)
    run = model.run(IDS, "final_norm")
    torch.testing.assert_close(run.logits, run["final_norm"] @ head.T)


def test_a_compiled_model_says_what_to_give() -> None:
    hf = tiny_hf("llama")
    with pytest.raises(BadInput, match=r"not OptimizedModule: give its \._orig_mod"):
        load_model(torch.compile(hf), quiet=True)
    hf.model.layers[1].mlp.compile()
    with pytest.raises(BadInput, match=r"its module model\.layers\.1\.mlp is compiled by torch\.compile"):
        load_model(hf, quiet=True)


def test_layers_that_were_cut_off_a_model() -> None:
    hf = tiny_any("qwen3_next")
    hf.model.layers = hf.model.layers[1:]
    with pytest.raises(BadInput, match="has 3 blocks, and its config lists 4 kinds of layers: set config.layer_types"):
        load_model(hf, quiet=True)
    hf = tiny_any("gemma3_text")
    hf.config.layer_types = ["full_attention"]
    with pytest.raises(BadInput, match="has 4 blocks, and its config lists 1 kinds of layers"):
        load_model(hf, quiet=True)
    hf = tiny_any("mamba")
    hf.backbone.layers = hf.backbone.layers[:2]
    with pytest.raises(BadInput, match="has 2 blocks, and its config lists 4 kinds of layers"):
        load_model(hf, quiet=True)
    hf.config.num_hidden_layers = 2  # Mamba's list follows it
    assert len(load_model(hf, quiet=True).generate([[3, 4, 5]], max_new_tokens=2, stop_at_eos=False).new[0]) == 2
