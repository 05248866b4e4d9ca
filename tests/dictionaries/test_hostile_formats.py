"""Damaged and hostile checkpoints of every format, drawn by hypothesis: read and usable, or one line of ours."""

import contextlib
import json
import math
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_formats import openai_file
from test_kinds import temporal_folder
from test_published_formats import as_torch, coder, config, hypothesis_state, learned, linear, pytorch, safe, scopium
from typer.testing import CliRunner

from monosem.cli import app
from monosem.dictionaries import FORMATS, SeveralSites, load_dictionary
from monosem.dictionaries.formats.common import Place
from monosem.dictionaries.formats.state_dicts import STATE_DICTS
from monosem.errors import BadFile, MonosemError
from tiny_saelens import D, F, X, folder, weights

QUICK = settings(
    max_examples=int(os.environ.get("HOSTILE", 20)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
W = weights(D, "threshold")
PLAIN = weights()
PURSUIT = {"W_dec": W["W_dec"], "b_dec": W["b_dec"]}
MADE: dict[str, Callable[[Path], Any]] = {
    "saelens": lambda path: folder(path, W, architecture="jumprelu"),
    "compact": lambda path: load_dictionary(folder(path, W, architecture="jumprelu")).save(path, "compact"),
    "saelens matching pursuit": lambda path: folder(path, PURSUIT, architecture="matching_pursuit", max_iterations=4),
    "saelens temporal": lambda path: temporal_folder(path, True, True),
    "openai": lambda path: openai_file(path / "8.pt", "TopK"),
    "dictionary_learning": lambda path: learned(path, "AutoEncoderTopK", linear(W, b_dec="b_dec"), k=4),
    "sparsify": lambda path: coder(path, W, {"activation": "topk"}),
    "latentsae": lambda path: coder(path, W, {"sae_type": "TOPK", "mean_center": True}, input_mean=W["b_dec"]),
    "gemma_scope": lambda path: (path.mkdir(), np.savez(path / "params.npz", **W)),
    "gemma_scope_2": lambda path: (
        safe(path / "params.safetensors", {name.lower(): value for name, value in W.items()}),
        config(path / "config.json", {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.3.output"}),
    ),
    "llama_scope": lambda path: (
        safe(path / "checkpoints" / "final.safetensors", linear(W, b_dec="decoder.bias")),
        config(
            path / "hyperparams.json",
            {
                "d_model": D,
                "d_sae": F,
                "jump_relu_threshold": 0.5,
                "dataset_average_activation_norm": {"in": 3.0, "out": 2.0},
            },
        ),
    ),
    "llama_scope_r1": lambda path: (
        safe(
            path / "sae_weights.safetensors", linear(W, b_dec="decoder.bias") | {"log_jumprelu_threshold": W["b_enc"]}
        ),
        config(path / "config.json", {"d_model": D, "dataset_average_activation_norm": {"in": 3.0}}),
    ),
    "llamascopium": lambda path: scopium(path, W, "jumprelu", None, norm_activation="dataset-wise"),
    "circuit_tracer": lambda path: (
        safe(
            path / "layer_3.safetensors", PLAIN | {"W_enc": W["W_enc"].T, "activation_function.threshold": W["b_enc"]}
        ),
        config(path / "config.yaml", {"model_kind": "transcoder_set", "feature_input_hook": "hook_resid_mid"}),
    ),
    "circuit_tracer_clt": lambda path: cross_layers(path),
    "gemma_scope_2_clt": lambda path: [
        safe(path / f"params_layer_{i}.safetensors", small(w_dec=np.stack([W["W_dec"]] * 2, 1))) for i in range(2)
    ],
    "crosscoder": lambda path: (
        pytorch(
            path / "c.pt",
            {
                "W_enc": np.stack([W["W_enc"]] * 2),
                "b_enc": W["b_enc"],
                "W_dec": np.stack([W["W_dec"]] * 2, 1),
                "b_dec": np.stack([W["b_dec"]] * 2),
            },
        ),
        config(path / "c_cfg.json", {"site": "resid_post", "model_name": "gpt2-small", "dict_size": F}),
    ),
    "temporal_saes": lambda path: (
        safe(path / "latest_ckpt.safetensors", temporal_as_published(path)),
        config(path / "conf.yaml", {"sae": {"n_heads": 2, "n_attn_layers": 2, "bottleneck_factor": 4, "kval_topk": 3}}),
    ),
    "bussmann": lambda path: (
        pytorch(path / "sae.pt", PLAIN),
        config(
            path / "config.json",
            {"sae_type": "topk", "top_k": 4, "input_unit_norm": True, "act_size": D, "dict_size": F},
        ),
    ),
    "hypothesaes": lambda path: pytorch(
        path / "h.pt", {"config": {"k_active_neurons": 4}, "state_dict": hypothesis_state(W, 0.5)}
    ),
    "prefscope": lambda path: pytorch(
        path / "p.pt", {"config": {"sae_type": "batchtopk"}, "state_dict": hypothesis_state(W, 0.5)}
    ),
    "saev": lambda path: saev(path / "s.pt"),
    "overcomplete": lambda path: pytorch(
        path / "o.pt",
        {
            "encoder.final_block.0.weight": W["W_enc"].T,
            "encoder.final_block.0.bias": W["b_enc"],
            "dictionary._weights": W["W_dec"],
            "dictionary.multiplier": torch.tensor(0.1),
            "thresholds": W["b_enc"],
        },
    ),
    "goodfire": lambda path: pytorch(
        path / "Llama-3.1-8B-Instruct-SAE-l19.pth",
        {name.replace("coder.", "coder_linear."): value for name, value in linear(W, b_dec="decoder.bias").items()},
    ),
    "qresearch": lambda path: pytorch(path / "q.pt", linear(W, b_dec="decoder.bias")),
    "qwen_scope": lambda path: pytorch(
        path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_4" / "layer2.sae.pt",
        PLAIN | {"W_enc": W["W_enc"].T, "W_dec": W["W_dec"].T},
    ),
    "mistral_sae": lambda path: pytorch(
        path / "m.pt", {"w_enc": W["W_enc"], "w_dec": W["W_dec"], "b_enc": W["b_enc"], "b_pre": W["b_dec"]}
    ),
    "deeplens": lambda path: pytorch(path / "d.pt", linear(W) | {"norm.weight": W["b_dec"], "norm.bias": W["b_dec"]}),
    "attention_sae": lambda path: (
        pytorch(path / "a.pt", PLAIN),
        config(path / "a_cfg.json", {"act_name": "blocks.5.attn.hook_z"}),
    ),
}
HINTS: dict[str, dict[str, Any]] = {"mistral_sae": {"k": 4}, "deeplens": {"kind": "topk", "k": 4}}


def small(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return {name.lower(): value for name, value in W.items()} | changed


def cross_layers(path: Path) -> None:
    for i in range(2):
        held = {"W_enc": W["W_enc"].T, "b_enc": W["b_enc"], "b_dec": W["b_dec"], "threshold": W["threshold"]}
        safe(path / f"W_enc_{i}.safetensors", {f"{name}_{i}": value for name, value in held.items()})
        safe(path / f"W_dec_{i}.safetensors", {f"W_dec_{i}": np.stack([W["W_dec"]] * (2 - i), 1)})
    config(path / "config.yaml", {"model_kind": "cross_layer_transcoder", "feature_input_hook": "hook_resid_mid"})


def temporal_as_published(path: Path) -> dict[str, np.ndarray]:
    _, w = temporal_folder(path.with_name("own"), True, True)
    return {{"W_dec": "D", "b_dec": "b"}.get(name, name): value for name, value in w.items()}


def saev(path: Path) -> None:
    path.parent.mkdir()
    with open(path, "wb") as file:
        file.write(json.dumps({"d_vit": D, "exp_factor": 4}).encode() + b"\n")
        torch.save(as_torch(PLAIN), file)


def weights_file(path: Path) -> Path:
    """The file of the tensors."""
    endings = (".safetensors", ".npz", ".pt", ".pth")
    return next(one for one in sorted(path.rglob("*")) if one.suffix in endings)


def loaded(name: str, path: Path) -> Any:
    """Of a folder, or of the file where that is the checkpoint."""
    file = weights_file(path)
    is_file = not any(one.detect(Place(path)) for one in FORMATS.values()) and file.is_file()
    return load_dictionary(file if is_file else path, **HINTS.get(name, {}))


def refused_or_used(name: str, path: Path) -> None:
    """What is read computes; what is not is an error of ours, in one line."""
    error = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dictionary = loaded(name, path)
            x = torch.from_numpy(X).float()
            if isinstance(dictionary, SeveralSites):
                dictionary(torch.zeros(len(dictionary.facts.sites), 3, dictionary.d_in))
                with contextlib.suppress(MonosemError):
                    _ = str(dictionary), dictionary.sites, dictionary.sites_out
                return
            x = torch.zeros(1, 3, dictionary.d_in) if dictionary.d_in != D or dictionary.whole_texts else x
            dictionary(x)
            _ = str(dictionary), dictionary.fingerprint
            with contextlib.suppress(MonosemError):
                _ = dictionary.site, dictionary.site_out
        except MonosemError as refused:
            error = str(refused)
    assert "\n" not in error


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("formats")
    for name, make in MADE.items():
        make(place / name)
    return place


@pytest.fixture
def fresh(home: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copied(name: str) -> Path:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        return Path(shutil.copytree(home / name, tmp_path / name))

    return copied


def test_every_format_is_among_them(home: Path) -> None:
    assert {name.split()[0] for name in MADE} == set(FORMATS)
    for name in MADE:
        assert loaded(name, home / name).width in (F, 16)


odd_texts = st.sampled_from(
    ["", "\x1b[2J", "\ud800", "a" * 300, "../..", "nan", "none", "model.layers.99999999999.mlp"]
)
odd_numbers = st.sampled_from([0, -1, 3, 7, 10**12, 10**30, 1.5, -0.0, 1e300, 1e-300, math.inf, math.nan])
leaves = st.one_of(st.none(), st.booleans(), odd_numbers, odd_texts)
values = st.recursive(
    leaves, lambda one: st.lists(one, max_size=3) | st.dictionaries(odd_texts, one, max_size=3), max_leaves=4
)


def spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from spots(one, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


CONFIGS = ("cfg.json", "config.json", "hyperparams.json", "config.yaml", "conf.yaml", "a_cfg.json", "c_cfg.json")


SIZES = {
    "saelens": ("d_in", "d_sae"),
    "compact": ("d_in", "d_sae"),
    "saelens matching pursuit": ("d_in", "d_sae", "max_iterations"),
    "saelens temporal": ("d_in", "d_sae", "n_heads", "n_attn_layers", "bottleneck_factor"),
    "dictionary_learning": ("trainer.activation_dim", "trainer.dict_size"),
    "sparsify": ("d_in", "num_latents", "k"),
    "latentsae": ("d_in", "num_latents", "k"),
    "llama_scope": ("d_model", "d_sae"),
    "llama_scope_r1": ("d_model",),
    "llamascopium": ("d_model",),
    "crosscoder": ("dict_size",),
    "temporal_saes": ("sae.n_heads", "sae.n_attn_layers", "sae.bottleneck_factor", "sae.kval_topk"),
    "bussmann": ("top_k", "act_size", "dict_size"),
}
UNSET = {"num_latents"}  # what 0 is no size for
CHECKED_BY_USE = ("k", "top_k", "max_iterations", "n_heads", "n_attn_layers", "bottleneck_factor", "kval_topk")


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in SIZES.items() for key in keys])
def test_a_size_that_is_none_is_named(home: Path, fresh: Any, name: str, key: str) -> None:
    target, last = fresh(name), key.rpartition(".")[2]
    file = next(one for one in target.rglob("*") if one.name in CONFIGS)
    whole = (yaml.safe_load if file.suffix == ".yaml" else json.loads)(file.read_text())
    for bad in (-1, 0, "16", math.nan, 1.5, True, [3]):
        if bad == 0 and last in UNSET:
            continue
        config(file, changed(whole, tuple(key.split(".")), bad))
        with pytest.raises(BadFile, match=rf"'{last}' must be a whole number( above 0)?, not ") as caught:
            loaded(name, target)
        assert "\n" not in str(caught.value)
    if last not in CHECKED_BY_USE:
        config(file, changed(whole, tuple(key.split(".")), 5))
        with pytest.raises(BadFile, match=rf"'{last}' is 5, and the tensors|expected \[|no multiple"):
            loaded(name, target)


ARRAYS = {"gemma_scope", "gemma_scope_2_clt"}
BARE = {"openai", *ARRAYS, *(name for name in MADE if name in STATE_DICTS and name != "attention_sae")}
BARE |= {"hypothesaes", "prefscope", "saev", "overcomplete"}  # their config is not a file of its own
PICKLES = [name for name in MADE if name in BARE - ARRAYS - {"saev"}]
PICKLES += ["dictionary_learning", "bussmann", "crosscoder"]


@pytest.mark.parametrize("name", sorted(MADE.keys() - BARE))
def test_values_of_any_kind_in_a_config(home: Path, fresh: Any, name: str) -> None:
    files = [one.name for one in (home / name).rglob("*") if one.name in CONFIGS]
    read = yaml.safe_load if files[0].endswith(".yaml") else json.loads
    whole = read((home / name / files[0]).read_text())

    @QUICK
    @given(st.sampled_from(list(spots(whole))), values)
    def check(path: tuple[Any, ...], new: Any) -> None:
        target = fresh(name)
        config(target / files[0], changed(whole, path, new))
        refused_or_used(name, target)

    check()


@pytest.mark.parametrize("name", MADE)
def test_bytes_of_any_kind(home: Path, fresh: Any, name: str) -> None:
    file = weights_file(home / name)
    whole = file.read_bytes()

    @QUICK
    @given(st.integers(0, len(whole)), st.binary(max_size=12), st.integers(0, 40) | st.just(10**6))
    def check(at: int, new: bytes, cut: int) -> None:
        target = fresh(name)
        (target / file.relative_to(home / name)).write_bytes(whole[:at] + new + whole[at + cut :])
        refused_or_used(name, target)

    check()


def tensors_of(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        return load_file(file)
    if file.suffix == ".npz":
        return {name: torch.from_numpy(value) for name, value in np.load(file).items()}
    return torch.load(file, weights_only=True)


def written(tensors: dict[str, Any], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file({name: t.contiguous() for name, t in tensors.items()}, file)
    elif file.suffix == ".npz":
        np.savez(file, **{name: t.numpy() for name, t in tensors.items()})
    else:
        torch.save(tensors, file)


DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8]
SHAPES = [(), (0,), (1,), (D,), (F,), (D, F), (F, D), (1, D, F), (F, 0)]


@pytest.mark.parametrize("name", [name for name in MADE if name != "saev"])
def test_tensors_of_any_kind(home: Path, fresh: Any, name: str) -> None:
    file = weights_file(home / name)
    whole = tensors_of(file)
    inner = whole.get("state_dict", whole)
    names = [key for key, value in inner.items() if isinstance(value, torch.Tensor)]
    dtypes = [one for one in DTYPES if file.suffix != ".npz" or one != torch.bfloat16]

    @QUICK
    @given(
        st.sampled_from([*names, "unknown"]),
        st.sampled_from([None, *dtypes]),
        st.sampled_from(SHAPES),
        st.sampled_from([0.0, 1.0, -1.0, 1e38, math.inf, math.nan]),
    )
    def check(key: str, dtype: torch.dtype | None, shape: tuple[int, ...], size: float) -> None:
        target = fresh(name)
        new = torch.full(shape, size) if dtype is None or dtype.is_floating_point else torch.ones(shape)
        held = {other: value for other, value in inner.items() if other != key}
        held |= {} if dtype is None else {key: new.to(dtype)}
        written(
            {**whole, "state_dict": held} if "state_dict" in whole else held, target / file.relative_to(home / name)
        )
        refused_or_used(name, target)

    check()


@pytest.mark.parametrize("name", [name for name in MADE if name != "saev"])
def test_every_tensor_of_every_wrong_shape(home: Path, fresh: Any, name: str) -> None:
    file = weights_file(home / name)
    whole, target = tensors_of(file), fresh(name)
    inner = whole.get("state_dict", whole)
    for key in [key for key, value in inner.items() if isinstance(value, torch.Tensor)]:
        for shape in ((), (0,), (F + 1,), (D, F + 1), (1, D, F)):
            held = inner | {key: torch.ones(shape)}
            held = {**whole, "state_dict": held} if "state_dict" in whole else held
            written(held, target / file.relative_to(home / name))
            refused_or_used(name, target)


NO_TORCH = [b"", b"abc", b"\x80\x02\x8a", b"<html>not found</html>", b"PK\x03\x04", bytes(500), bytes(range(256))]


@pytest.mark.parametrize("name", [*PICKLES, "attention_sae"])
def test_what_torch_did_not_write_is_called_so(home: Path, fresh: Any, name: str) -> None:
    target = fresh(name)
    file = weights_file(target)
    for content in NO_TORCH:
        file.write_bytes(content)
        with pytest.raises(BadFile, match="truncated or not a PyTorch file"):
            loaded(name, target)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BadFile, match="Git LFS pointer instead of the file; run `git lfs pull`"):
        loaded(name, target)


MISSING = object()


@pytest.mark.parametrize("name", sorted(MADE.keys() - BARE))
def test_every_key_of_a_config_dropped_or_of_another_type(home: Path, fresh: Any, name: str) -> None:
    target = fresh(name)
    file = next(one for one in target.rglob("*") if one.name in CONFIGS)
    whole = (yaml.safe_load if file.suffix == ".yaml" else json.loads)(file.read_text())
    for path in [path for path in spots(whole) if path and isinstance(path[-1], str)]:
        for new in (MISSING, None, "x", -1, 0, math.nan, [], {}, True):
            made = changed(whole, path, new)
            if new is MISSING:
                inside = made
                for key in path[:-1]:
                    inside = inside[key]
                del inside[path[-1]]
            config(file, made)
            refused_or_used(name, target)


@pytest.mark.parametrize("name", [name for name in MADE if name != "saev"])
def test_every_tensor_dropped_nan_or_turned(home: Path, fresh: Any, name: str) -> None:
    target = fresh(name)
    file = weights_file(target)
    whole = tensors_of(file)
    inner = whole.get("state_dict", whole)
    for key, value in inner.items():
        if not isinstance(value, torch.Tensor):
            continue
        nan = torch.full_like(value, math.nan) if value.is_floating_point() else -value
        turned = value.transpose(-1, -2) if value.ndim > 1 else value.reshape(1, -1)
        for new in (None, nan, turned.contiguous()):
            held = {other: one for other, one in inner.items() if other != key} | ({} if new is None else {key: new})
            written({**whole, "state_dict": held} if "state_dict" in whole else held, file)
            refused_or_used(name, target)


@pytest.mark.parametrize("name", MADE)
def test_the_command_line_says_it_in_one_line(home: Path, fresh: Any, name: str, tmp_path: Path) -> None:
    target = fresh(name)
    file = weights_file(target)
    given = file if name in BARE - {"gemma_scope_2_clt"} or name in ("crosscoder", "attention_sae") else target
    for damage in (lambda whole: whole[: len(whole) // 2], lambda whole: b"abc", lambda whole: b""):
        file.write_bytes(damage((home / name / file.relative_to(target)).read_bytes()))
        done = CliRunner().invoke(app, ["convert", str(given), "--to", "saelens", "--out", str(tmp_path / "out")])
        assert (done.exit_code, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


class Hostile:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", [*PICKLES, "attention_sae"])
def test_code_in_a_pickle_is_refused_and_not_run(home: Path, fresh: Any, name: str, tmp_path: Path) -> None:
    target, trap = fresh(name), tmp_path / "ran"
    file = weights_file(target)
    torch.save({**tensors_of(file), "more": Hostile(trap)}, file)
    with pytest.raises(BadFile, match="refused: it holds something other than tensors"):
        loaded(name, target)
    file.write_bytes(pickle.dumps({"more": Hostile(trap)}))
    with pytest.raises(BadFile):
        loaded(name, target)
    assert not trap.exists()


def test_code_behind_other_front_doors(home: Path, fresh: Any, tmp_path: Path) -> None:
    trap, target = tmp_path / "ran", fresh("saev")
    file = weights_file(target)
    with open(file, "wb") as out:
        out.write(json.dumps({"d_vit": D}).encode() + b"\n")
        torch.save({"W_enc": Hostile(trap)}, out)
    with pytest.raises(BadFile, match="refused: it holds something other than tensors"):
        loaded("saev", target)
    target = fresh("gemma_scope")
    np.savez(target / "params.npz", W_enc=np.array([Hostile(trap)], dtype=object))
    with pytest.raises(BadFile, match="no archive of plain numbers"):
        loaded("gemma_scope", target)
    assert not trap.exists()


@pytest.mark.parametrize("name", MADE)
def test_truncated_files_are_called_so(home: Path, fresh: Any, name: str) -> None:
    target = fresh(name)
    file = weights_file(target)
    whole = file.read_bytes()
    for length in (0, 40, len(whole) // 2):
        file.write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"truncated|damaged|first line"):
            loaded(name, target)
