"""Loading from folders, the Hub, and models that are loaded already; dtype and device; damaged and hostile files."""

import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from typer.testing import CliRunner

from monosem.cli import app
from monosem.errors import BadFile, BadInput, MonosemError, UnknownName
from monosem.models import load_model
from monosem.models.loading.checkpoint import check_finite
from monosem.models.loading.load import load_hf, load_tokenizer
from monosem.models.loading.precision import choose_device, choose_dtype, describe
from tiny import tiny_hf, tiny_tokenizer

IDS = torch.arange(12)[None] * 5 + 4


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_hf("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny-llama"))


def load(source: Any, **options: Any) -> Any:
    return load_hf(source, quiet=True, device="cpu", **options)


def one_line(error: pytest.ExceptionInfo[MonosemError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------------- folders and loaded models
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_folder_gives_the_same_model(family: str, tmp_path: Path) -> None:
    saved = tiny_hf(family, seed=3)
    saved.save_pretrained(tmp_path / "m")
    hf, tokenizer, name, notes = load(tmp_path / "m")
    assert torch.equal(hf(IDS).logits, saved(IDS).logits)
    assert name == "m"
    assert tokenizer is None
    assert "no tokenizer" in notes[0]
    assert not hf.training
    assert not any(p.requires_grad for p in hf.parameters())


def test_folder_with_tokenizer(folder: Path) -> None:
    _, tokenizer, name, notes = load(str(folder))
    assert (name, notes) == ("tiny-llama", [])
    assert tokenizer("the cat sat")["input_ids"] == tiny_tokenizer()("the cat sat")["input_ids"]
    model = load_model(folder, quiet=True, device="cpu")
    assert model.name == "tiny-llama"
    assert model.tokenizer is not None


def test_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    given = tiny_tokenizer()
    assert load(folder, tokenizer=given)[1] is given
    (tmp_path / "other").mkdir()
    given.save_pretrained(tmp_path / "other")
    assert load(folder, tokenizer=tmp_path / "other")[1].name_or_path == str(tmp_path / "other")


def test_loaded_model_is_taken_as_it_is(folder: Path) -> None:
    hf = tiny_hf("gpt2").to(torch.bfloat16).train().requires_grad_(True)
    taken, tokenizer, name, _ = load_hf(hf, quiet=True)
    assert taken is hf
    assert (taken.dtype, tokenizer, name) == (torch.bfloat16, None, "gpt2")
    assert not taken.training
    assert not any(p.requires_grad for p in taken.parameters())
    assert load_hf(hf, dtype="float32", quiet=True)[0].dtype == torch.float32
    from_folder = load(load(folder)[0])  # the tokenizer is found where the model came from
    assert (from_folder[2], len(from_folder[1])) == ("tiny-llama", 100)


def test_says_what_was_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(folder, dtype="bf16", device="cpu")
    said = capsys.readouterr()
    assert "tiny-llama: bfloat16 on cpu" in said.err
    assert said.out == ""
    load_model(folder, device="cpu", quiet=True)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------- dtype and device
@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("bf16", torch.bfloat16),
        ("torch.float16", torch.float16),
        ("FP32", torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtype_names(asked: Any, got: torch.dtype, folder: Path) -> None:
    assert choose_dtype(asked, torch.device("cpu")) == got
    assert load(folder, dtype=asked)[0].dtype == got


def test_dtype_defaults(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    cpu = torch.device("cpu")
    assert choose_dtype(None, cpu) == torch.float32
    assert choose_dtype(None, torch.device("cuda")) is None  # the checkpoint's own
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert choose_dtype("auto", cpu) == dtype
        assert ("bf16" in describe("m", torch.float32, cpu, chosen_here=True)) == native
    tiny_hf("llama").to(torch.bfloat16).save_pretrained(folder)
    assert load(folder)[0].dtype == torch.float32  # a CPU computes in float32 whatever the file holds


def test_dtype_and_device_refused(folder: Path) -> None:
    with pytest.raises(UnknownName, match="bfloat16") as error:
        load(folder, dtype="bflot16")
    one_line(error)
    with pytest.raises(BadInput, match="int8"):
        load(folder, dtype=torch.int8)
    for device in ("cuda:99", "warp", "meta"):
        with pytest.raises(BadInput, match="try device='cpu'") as error:
            choose_device(device)
        one_line(error)


# ---------------------------------------------------------------------- damaged, hostile and missing files
def rewrite(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights(folder: Path, bad: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda state: state[name].view(-1)[7:9].fill_(bad))
    with pytest.raises(BadFile, match=rf"2 NaN or infinite values in {name}") as error:
        load(folder)
    one_line(error)


def test_non_finite_weights_of_a_loaded_model() -> None:
    hf = tiny_hf("gpt2")
    hf.transformer.wpe.weight.data[3, 3] = float("nan")
    with pytest.raises(BadFile, match="wpe"):
        load(hf)


def test_weights_that_no_norm_could_square_are_refused() -> None:
    module = torch.nn.Linear(64, 64)
    module.weight.data.fill_(1e16)
    check_finite(module, "m")
    module.weight.data[3, 5] = -1e38
    with pytest.raises(BadFile, match=r"m has 1 values beyond 1e\+17 in weight, such as -1e\+38"):
        check_finite(module, "m")
    module.weight.data[3, 5] = torch.inf
    with pytest.raises(BadFile, match="m has 1 NaN or infinite values in weight, such as inf"):
        check_finite(module, "m")


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_key_value_heads"])
def test_absurd_numbers_of_parts_are_refused_before_they_are_built(folder: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: 10**9}))
    with pytest.raises(BadFile, match=f"{key} is 1e.09 in config.json, more than any model has"):
        load(folder)


@pytest.mark.parametrize("keep", [3, 500, 0.6, -1])
def test_truncated_safetensors(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(BadFile, match="truncated or damaged") as error:
        load(folder)
    one_line(error)


def test_weights_missing_in_the_file(folder: Path) -> None:
    rewrite(folder, lambda state: state.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(BadFile, match=r"missing or of another shape \(model.layers.2.mlp.up_proj.weight") as error:
        load(folder)
    one_line(error)


def test_weights_of_another_shape(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(BadFile, match="model.norm.weight") as error:
        load(folder)
    one_line(error)


def test_unused_weights_are_reported(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({"extra.weight": torch.ones(3)}))
    assert "extra.weight" in load(folder)[3][0]


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "plain pickle"])
def test_pickle_with_code_is_refused_and_not_run(folder: Path, tmp_path: Path, form: str) -> None:
    marker, weights = tmp_path / "ran", folder / "pytorch_model.bin"
    (folder / "model.safetensors").unlink()
    if form == "zip":
        torch.save({"model.norm.weight": Hostile(marker)}, weights)
    else:
        weights.write_bytes(pickle.dumps({"model.norm.weight": Hostile(marker)}))
    with pytest.raises(BadFile, match="could run code") as error:
        load(folder)
    one_line(error)
    assert not marker.exists()
    with open(weights, "rb") as file:  # the trap is live: without the restricted unpickler it does fire
        torch.load(file, weights_only=False) if form == "zip" else pickle.load(file)
    assert marker.exists()


def test_harmless_pickled_weights_load(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(load(folder)[0](IDS).logits, tiny_hf("llama")(IDS).logits)


def test_incomplete_folders(folder: Path, tmp_path: Path) -> None:
    for source, words in [
        (tmp_path, "no config.json"),
        (tmp_path / "nowhere", "no folder"),
        ("./nowhere", "no folder"),
        (folder / "config.json", "is a file"),
    ]:
        with pytest.raises(BadFile, match=words) as error:
            load(source)
        one_line(error)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadFile, match="give the file itself: .*model.gguf"):
        load(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadFile, match=r"model\.safetensors") as error:
        load(folder)
    one_line(error)


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_type": "no-such-thing"}'])
def test_unusable_config(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(BadFile) as error:
        load(folder)
    assert "cannot load" in one_line(error)


def test_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BadFile, match="cannot load the tokenizer") as error:
        load(folder)
    one_line(error)
    assert load(folder, tokenizer=tiny_tokenizer())[1] is not None


@pytest.mark.parametrize("source", ["", 3, None, ["smollm2"]])
def test_not_a_model(source: Any) -> None:
    with pytest.raises(BadInput, match="a model is a name, a path"):
        load(source)


# ---------------------------------------------------------------------- the Hub
@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A Hub that is not reachable, with an empty local cache."""
    state = SimpleNamespace(error=ConnectionError("Name or service not known"), asked=[], cache=tmp_path / "hub")

    def model_info(self: Any, name: str, **options: Any) -> None:
        state.asked.append(name)
        assert options["timeout"] <= 10
        raise state.error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(state.cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return state


def fill_cache(cache: Path, folder: Path, name: str) -> None:
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))


def test_hub_not_reachable(hub: SimpleNamespace) -> None:
    with pytest.raises(BadInput, match=r"cannot be reached \(Name or service not known\); use 'smollm2'") as error:
        load("gpt2")
    one_line(error)
    assert hub.asked == ["gpt2"]  # asked once, nothing retried
    with pytest.raises(BadInput, match="did you mean 'smollm2'"):
        load("smolm2")


def test_hub_switched_off(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="switched off by HF_HUB_OFFLINE"):
        load("google/gemma-2-2b")
    assert hub.asked == []


def test_hub_cache_is_used_when_it_is_not_reachable(hub: SimpleNamespace, folder: Path) -> None:
    fill_cache(hub.cache, folder, "someone/tiny")
    hf, tokenizer, name, notes = load("someone/tiny")
    assert torch.equal(hf(IDS).logits, tiny_hf("llama")(IDS).logits)
    assert (len(tokenizer), name) == (100, "someone/tiny")
    assert "local cache" in notes[0]
    assert len(load_tokenizer("someone/tiny")) == 100


def test_hub_without_the_model(hub: SimpleNamespace) -> None:
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    hub.error = RepositoryNotFoundError("404", response=response)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="did you mean 'smollm2'.*the Hub has no such model") as error:
        load("smollm3")
    one_line(error)


def test_impossible_hub_id(hub: SimpleNamespace) -> None:
    hub.error = huggingface_hub.errors.HFValidationError("Repo id must ...")
    with pytest.raises(UnknownName, match="a model is one of smollm2, gemma3-270m, (planted-[a-z-]+, )+a folder"):
        load("a b c")


def test_loaded_model_of_the_hub_without_a_tokenizer(hub: SimpleNamespace) -> None:
    hf = tiny_hf("llama")
    hf.config.name_or_path = "someone/elsewhere"
    _, tokenizer, name, notes = load_hf(hf, quiet=True)
    assert (tokenizer, name) == (None, "someone/elsewhere")
    assert "no tokenizer" in notes[0]


# ---------------------------------------------------------------------- the embedded model
@pytest.mark.smollm2
def test_smollm2_is_the_model_it_says(smollm2: Any) -> None:
    config = smollm2.hf.config
    assert type(smollm2.hf).__name__ == "LlamaForCausalLM"
    assert smollm2.name == "smollm2"
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (30, 576, 9)
    assert (config.num_key_value_heads, config.max_position_embeddings) == (3, 8192)
    assert config.rope_parameters["rope_theta"] == 100_000
    assert smollm2.hf.get_input_embeddings().weight is smollm2.hf.get_output_embeddings().weight
    assert sum(p.numel() for p in smollm2.hf.parameters()) == 134_515_008
    stored = smollm2.hf.get_input_embeddings().weight  # Q8_0: 32 values share a half-precision step
    steps = stored[1000].view(-1, 32) / (stored[1000].view(-1, 32).abs().amax(-1, keepdim=True) / 127)
    assert (steps - steps.round()).abs().max() < 1e-4


@pytest.mark.smollm2
def test_smollm2_tokenizer(smollm2: Any) -> None:
    tokenizer = smollm2.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (tokenizer.unk_token, tokenizer.model_max_length) == ("<|endoftext|>", 8192)
    # a blank line before a digit is one token, each digit is one: the original splits digits off first
    assert tokenizer.tokenize("  42 items\n\n1. one") == ["ĠĠ", "4", "2", "Ġitems", "ĊĊ", "1", ".", "Ġone"]
    for text in ["It's 12.5% of  the\n\n\tsum.", "héllo 😀 日本語", "<|im_start|>user\nHi<|im_end|>\n", " a", ""]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.smollm2
def test_smollm2_answers_in_a_chat(smollm2: Any) -> None:
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = smollm2.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>assistant\n")
    ids = smollm2.tokenizer(prompt, return_tensors="pt")
    out = smollm2.hf.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert smollm2.tokenizer.decode(out, skip_special_tokens=True) == "The capital of France is Paris."


class RoundedOnce(TorchDispatchMode):
    """Compute each operation on bf16 values in float32 and round its result to bf16 once, up or down at random.

    This is what correct bf16 arithmetic is, whatever the kernels. The mean of a randomly rounded value is the value, so
    runs with several seeds show how large an error the rounding makes; its variance is twice that of the nearest value.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        half = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16]
        if not half or func.is_view or func is torch.ops.aten._to_copy.default:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(
            torch.Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, (args, kwargs)
        )
        return tree_map_only(torch.Tensor, self.rounded, func(*args, **kwargs))

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            return x
        below = torch.randint(1 << 16, x.shape, generator=self.draw, dtype=torch.int32)  # the 16 bits that bf16 lacks
        bits = (x.contiguous().view(torch.int32) + below) & -(1 << 16)
        return bits.view(torch.float32).bfloat16()


@pytest.mark.smollm2
def test_smollm2_bf16_is_near(smollm2: Any) -> None:
    """The weights are the float32 ones, rounded; the logits err at most 4 times as much as random rounding does.

    Kernels that round more often than once (AVX2, which has no bf16 unit) came to 2.0 times, native ones to 1.4. A gate
    exchanged with its up projection, or one norm with the other, came to 14 times or more in each of five layers, the
    keys' weights exchanged with the values' to 10 times or more.
    """
    half = load_hf("smollm2", dtype="bf16", device="cpu", quiet=True)[0]
    assert half.dtype == torch.bfloat16
    weights = half.state_dict()
    for name, weight in smollm2.hf.state_dict().items():
        assert torch.equal(weights[name], weight.bfloat16()), name
    ids = smollm2.tokenizer("The quick brown fox jumps over the lazy", return_tensors="pt")["input_ids"]
    exact = smollm2.hf(ids).logits[0]

    def error() -> torch.Tensor:
        return (half(ids).logits[0].float() - exact).norm(dim=-1)

    found, squares = error(), []
    for seed in range(8):
        with RoundedOnce(seed):
            squares.append(error().square())
    allowed = 4 * torch.stack(squares).mean(0).sqrt()
    assert bool((found <= allowed).all()), (found / allowed).tolist()


# ---------------------------------------------------------------------- code that a folder brings
CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
OWN = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


def bring_code(folder: Path, marker: Path, files: dict[str, dict[str, Any]]) -> None:
    """Python code beside the weights, which the named files ask for."""
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    for name, keys in files.items():
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | keys))


@pytest.fixture
def willing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who answers every question with yes; copies of foreign code go to the test's folder."""
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    for module in ("dynamic_module_utils", "utils", "utils.hub"):
        monkeypatch.setattr(f"transformers.{module}.HF_MODULES_CACHE", str(tmp_path / "code"), raising=False)


@pytest.mark.usefixtures("willing")
@pytest.mark.parametrize("what", ["model", "tokenizer", "adapter"])
def test_code_of_a_folder_runs_only_when_it_is_allowed(folder: Path, tmp_path: Path, what: str) -> None:
    marker, source = tmp_path / "ran", folder
    expected = load(folder)[0](IDS).logits
    if what == "tokenizer":
        names = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
        bring_code(folder, marker, {"tokenizer_config.json": names})
    else:
        bring_code(folder, marker, {"config.json": {"model_type": "own", "auto_map": OWN}})
    if what == "adapter":
        peft = pytest.importorskip("peft")
        source = tmp_path / "adapter"
        peft.get_peft_model(tiny_hf("llama"), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(source)
        config = json.loads((source / "adapter_config.json").read_text())
        (source / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(folder)}))
    with pytest.raises(BadFile, match="trust_remote_code=True, or --trust-remote-code") as error:
        load(source)
    one_line(error)
    assert not marker.exists()
    hf, tokenizer, *_ = load(source, trust_remote_code=True)
    assert marker.exists()
    assert torch.equal(hf(IDS).logits, expected)
    assert type(tokenizer).__name__ == ("OwnTokenizer" if what == "tokenizer" else "TokenizersBackend")


@pytest.mark.usefixtures("willing")
def test_native_classes_come_before_code(folder: Path, tmp_path: Path) -> None:
    bring_code(folder, tmp_path / "ran", {"config.json": {"auto_map": OWN}})
    assert type(load(folder)[0]).__name__ == "LlamaForCausalLM"
    assert load_tokenizer(str(folder)) is not None
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("willing")
def test_the_command_line_allows_code_by_name(folder: Path, tmp_path: Path) -> None:
    bring_code(folder, tmp_path / "ran", {"config.json": {"model_type": "own", "auto_map": OWN}})
    command = ["list", "sites", str(folder), "--json"]
    refused = CliRunner().invoke(app, command, input="y\n")
    assert refused.exit_code == 2
    assert not (tmp_path / "ran").exists()
    allowed = CliRunner().invoke(app, [*command, "--trust-remote-code"])
    assert allowed.exit_code == 0
    assert any(row["site"] == "resid_post.L" for row in json.loads(allowed.stdout))
