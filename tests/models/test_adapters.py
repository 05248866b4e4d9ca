"""Adapters of peft: models that hold one, folders of one; peft's own logits and merged weights are the oracle."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from monosem import edits
from monosem.errors import BadFile, BadInput, UnknownName
from monosem.models import InferredFamily, Model, load_model, verify
from monosem.models.turns import TrainingMode
from tiny import _LLAMA, randomise, tiny_hf, tiny_tokenizer

IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(1))
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
QV = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=[*QV, "o_proj"], lora_dropout=0.5, task_type="CAUSAL_LM"),
    "dora": peft.LoraConfig(r=4, target_modules=QV, use_dora=True),
    "lora on the ends": peft.LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "k_proj"]),
    "saved ends": peft.LoraConfig(r=4, target_modules=QV, modules_to_save=["embed_tokens", "lm_head"]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(r=4, target_modules=QV),
    "oft": peft.OFTConfig(r=0, oft_block_size=8, target_modules=QV, use_cayley_neumann=False),
}
MERGES = [kind for kind in KINDS if kind != "saved ends"]


def adapted(kind: str, hf: PreTrainedModel | None = None) -> Any:
    """With random numbers in all of the adapter: fresh ones change nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(hf or tiny_hf("llama"), KINDS[kind]).eval()
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_", "ia3_", "hada_", "oft_", "modules_to_save")):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    return model


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_peft_are_read_with_their_adapter(kind: str) -> None:
    whole = adapted(kind)
    expected, bare = logits_of(whole), logits_of(tiny_hf("llama"))
    assert (expected - bare).abs().max() > 0.1
    model = load_model(whole, tokenizer=tiny_tokenizer(), quiet=True)
    assert isinstance(model.hf, PreTrainedModel)
    run = model.run(IDS, capture=["embed", "q.1", "resid_pre.1", "ln1_normalized.1", "resid_post.2"])
    torch.testing.assert_close(run.logits, expected, **CLOSE)
    result = verify(model)
    assert result.ok, result.table[~result.table.ok].to_string()
    torch.testing.assert_close(model.W_E[IDS], run["embed"], **CLOSE)
    ends = model.run(IDS, capture="final_norm")["final_norm"]
    torch.testing.assert_close(ends @ model.W_U + model.b_U, expected, **CLOSE)
    assert (model.cfg.d_mlp, model.cfg.d_head, model.cfg.d_vocab) == (48, 8, 100)


@pytest.mark.parametrize("kind", MERGES)
def test_weights_are_the_merged_ones(kind: str) -> None:
    found = load_model(adapted(kind), quiet=True)
    plain = Model(adapted(kind).merge_and_unload())
    for name in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"):
        torch.testing.assert_close(getattr(found, name)[1], getattr(plain, name)[1], **CLOSE)
    torch.testing.assert_close(found.W_E, plain.W_E, **CLOSE)
    torch.testing.assert_close(found.W_U, plain.W_U, **CLOSE)


def test_rows_are_inferred_past_the_parts_of_an_adapter() -> None:
    config = AutoConfig.for_model("arcee", **_LLAMA)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(hf, 0)
    model_config = peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj", "up_proj", "down_proj"])
    whole = peft.get_peft_model(hf, model_config).eval()  # fresh: what is inside a layer gives what the layer gives
    with pytest.warns(InferredFamily):
        model = load_model(whole, quiet=True)
    assert "base_layer" not in str(model.family)
    torch.testing.assert_close(model.run(IDS).logits, logits_of(whole), **CLOSE)


def test_merged_switched_off_and_added_after_wrapping() -> None:
    whole = adapted("lora")
    expected = logits_of(whole)
    model = load_model(whole, quiet=True)
    whole.merge_adapter()
    torch.testing.assert_close(model.run(IDS).logits, expected, **CLOSE)
    with whole.disable_adapter():
        torch.testing.assert_close(model.run(IDS).logits, logits_of(tiny_hf("llama")), **CLOSE)
    later = Model(tiny_hf("llama"))
    added = adapted("lora", later.hf).train()
    with pytest.warns(TrainingMode):
        found = later.run(IDS, edits=edits.scale("q.0", 1.0)).logits
    torch.testing.assert_close(found, logits_of(added.eval()), **CLOSE)


def test_the_class_itself_takes_no_model_of_peft() -> None:
    with pytest.raises(BadInput, match="load_model"):
        Model(adapted("lora"))


def test_what_is_on_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    whole = adapted("lora")
    load_model(whole)
    assert "an adapter is on (default: lora, 12 layers); sites and weights have it" in capsys.readouterr().err
    with whole.disable_adapter():
        load_model(whole)
    assert "switched off" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.LoraConfig(r=4, target_modules=QV, alora_invocation_tokens=[5], task_type="CAUSAL_LM"),
        peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2),
    ],
    ids=lambda config: str(config.peft_type),
)
def test_adapters_outside_the_layers_are_refused_in_words(config: Any) -> None:
    with pytest.raises(UnknownName) as error:
        load_model(peft.get_peft_model(tiny_hf("llama"), config), quiet=True)
    assert "\n" not in str(error.value)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_hf("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("kind", ["lora", "ia3", "saved ends"])
def test_folders_load_with_the_base_that_they_name(kind: str, base: Path, tmp_path: Path) -> None:
    whole = adapted(kind, load_model(base, quiet=True).hf)
    whole.save_pretrained(tmp_path / "tuned")
    model = load_model(tmp_path / "tuned", quiet=True)
    assert model.name == "tuned"
    torch.testing.assert_close(model.run(IDS).logits, logits_of(whole), **CLOSE)
    assert model.run("the cat sat").logits is not None


def test_adapter_folders_that_cannot_be_loaded(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    adapted("lora", load_model(base, quiet=True).hf).save_pretrained(folder)
    said = json.loads((folder / "adapter_config.json").read_text())

    def refused(match: str, **changes: Any) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(said | changes))
        with pytest.raises(BadFile, match=match) as error:
            load_model(folder, quiet=True)
        assert "\n" not in str(error.value)

    refused("names no base", base_model_name_or_path=None)
    refused("is an adapter of './gone'.*no folder", base_model_name_or_path="./gone")
    tiny_hf("gpt2").save_pretrained(tmp_path / "other")
    refused("cannot load the adapter", base_model_name_or_path=str(tmp_path / "other"))
    refused("does not fit", target_modules=["q_proj"])
    refused("cannot load the adapter.*size mismatch", r=said["r"] + 1)
    refused("which is an adapter as well", base_model_name_or_path=str(folder))
    (folder / "adapter_model.safetensors").rename(folder / "elsewhere")
    refused("no weights")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(BadFile, match="is not valid JSON"):
        load_model(folder, quiet=True)
