"""What is written for other tools, against what they compute from a file, by their formula in numpy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as tensors_of
from safetensors.torch import save_file as save_tensors

from monosem.dictionaries import WRITERS, Dictionary, DictionaryParts, DictionaryTensors, load_dictionary
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from tiny_saelens import OUT, D, F, K, X, relu, topk, weights

INPUT = torch.from_numpy(X).float()
SITES = {"site": "ln2_normalized.1", "site_out": "mlp_out.1", "transcoder": True}


def made(kind: str = "relu", *, skip: bool = False, d_out: int = D, threshold: np.ndarray | None = None, **parts):
    """A dictionary with biases, decoder rows of other norms than 1, and where it is needed a threshold."""
    w = weights(d_out, *["W_skip"] * skip)
    tensors = DictionaryTensors(**{name: torch.from_numpy(value) for name, value in w.items()})
    if threshold is not None:
        tensors = replace(tensors, threshold=torch.from_numpy(threshold).float())
    return Dictionary(
        DictionaryParts(tensors, kind, model_name="gpt2", name="mine", **({"site": "resid_post.1"} | parts))
    )


def computed(dictionary: Dictionary, x: torch.Tensor = INPUT) -> tuple[np.ndarray, np.ndarray]:
    codes = dictionary.encode(x)
    return codes.dense().numpy(), dictionary.decode(codes, like=x).numpy()


def sparsify(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """eai-sparsify 1.3.3's encode and forward."""
    w, cfg = load_file(folder / "sae.safetensors"), json.loads((folder / "cfg.json").read_text())
    assert w["encoder.weight"].shape == w["W_dec"].shape == (cfg["num_latents"], cfg["d_in"])
    z = X if cfg["transcode"] else X - w["b_dec"]
    pre = relu(z @ w["encoder.weight"].T + w["encoder.bias"])
    if cfg["activation"] == "groupmax":
        groups = pre.reshape(len(pre), cfg["k"], -1)
        acts = (groups * (groups == groups.max(-1, keepdims=True))).reshape(pre.shape)
    else:
        acts = topk(pre, cfg["k"])
    return acts, acts @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if cfg["skip_connection"] else 0)


def circuit_tracer(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """circuit-tracer 0.5.0's encode and forward."""
    w = load_file(folder / "layer_1.safetensors")
    assert w["W_enc"].shape == w["W_dec"].shape
    pre = X @ w["W_enc"].T + w["b_enc"]
    name = "activation_function.threshold"
    acts = pre * (pre > w[name]) if name in w else relu(pre)
    return acts, acts @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if "W_skip" in w else 0)


def agree(found: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)
    assert (wanted[0] != 0).any()
    assert (wanted[0] == 0).any()


@pytest.mark.parametrize(
    "dictionary",
    [
        made("topk", k=K),
        made("topk", k=K, **SITES),
        made("topk", k=K, skip=True, **SITES),
        made("groupmax", k=1),
        made("relu"),
        made("jumprelu", threshold=-np.ones(F)),  # never above what a relu keeps
    ],
    ids=["topk", "transcoder", "skip", "groupmax", "relu", "jumprelu"],
)
def test_sparsify(tmp_path, dictionary):
    dictionary.save(tmp_path / "layers.1.mlp", format="sparsify")
    agree(sparsify(tmp_path / "layers.1.mlp"), computed(dictionary))


def test_groups_of_several(tmp_path):
    w = weights()
    even = DictionaryTensors(
        *(torch.from_numpy(one) for one in (w["W_enc"][:, 1:], w["b_enc"][1:], w["W_dec"][1:], w["b_dec"]))
    )
    dictionary = Dictionary(DictionaryParts(even, "groupmax", k=2, site="resid_post.1"))
    dictionary.save(tmp_path / "d", format="sparsify")
    agree(sparsify(tmp_path / "d"), computed(dictionary))


@pytest.mark.parametrize(
    "dictionary",
    [
        made("relu", **SITES),
        made("relu", skip=True, **SITES),
        made("jumprelu", threshold=np.linspace(-1, 1, F), **SITES),  # theirs would let negatives through
        made("jump", threshold=np.linspace(-1, 1, F), **SITES),
        made("relu"),
    ],
    ids=["relu", "skip", "jumprelu", "jump", "sae"],
)
def test_circuit_tracer(tmp_path, dictionary):
    dictionary.save(tmp_path, format="circuit-tracer")
    agree(circuit_tracer(tmp_path), computed(dictionary))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    hooks = ("ln2.hook_normalized", "hook_mlp_out") if dictionary.transcoder else ("hook_resid_post",) * 2
    assert (config["feature_input_hook"], config["feature_output_hook"]) == hooks
    assert (config["model_kind"], config["model_name"]) == ("transcoder_set", "gpt2")


def test_a_set_is_written_layer_by_layer(tmp_path):
    for layer in range(3):
        places = {"site": f"ln2_normalized.{layer}", "site_out": f"mlp_out.{layer}"}
        made("relu", transcoder=True, **places).save(tmp_path, format="circuit-tracer")
    assert sorted(file.name for file in tmp_path.glob("layer_*")) == [f"layer_{i}.safetensors" for i in range(3)]
    with pytest.raises(Mismatch, match="is a set with feature_input_hook 'ln2.hook_normalized', not 'hook_resid_post'"):
        made("relu", site="resid_post.3").save(tmp_path, format="circuit-tracer")


def test_signed_thresholds_that_are_not_negative_are_saelens_jumprelu(tmp_path):
    dictionary = made("jump", threshold=np.linspace(0, 1, F))
    dictionary.save(tmp_path)
    assert load_dictionary(tmp_path).kind == "jumprelu"
    agree(computed(load_dictionary(tmp_path)), computed(dictionary))


@pytest.mark.parametrize(
    ("format", "dictionary", "message"),
    [
        (
            "sparsify",
            made("jumprelu", threshold=np.linspace(-1, 1, F)),
            "sparsify has no architecture for a jumprelu SAE",
        ),
        ("sparsify", made("abstopk", k=K), "no architecture for a abstopk"),
        ("sparsify", made("topk", k=K, token_norm="layer_norm"), "does not normalise tokens so.*'layer_norm'"),
        ("sparsify", made("topk", k=K, d_out=5, **SITES), "d_in 6 and d_out 5"),
        ("circuit-tracer", made("topk", k=K, **SITES), "circuit-tracer has no architecture for a topk transcoder"),
        ("circuit-tracer", made("relu", site=None), r"an unknown place is none: give load_dictionary\(..., site=\)"),
        ("circuit-tracer", made("relu", transcoder=True), r"an unknown place.*site_out=\)"),
        ("circuit-tracer", made("relu", site="z.1"), "z.1 is none"),
        ("circuit-tracer", made("relu", site="embed"), "embed is none"),
        ("circuit-tracer", made("relu", site_out="mlp_out.2"), "read and write in one layer"),
        (
            "saelens",
            made("jump", threshold=np.linspace(-1, 1, F)),
            "SAELens has no architecture for a jump SAE; it has",
        ),
        ("saelens", made("topk", k=K, **SITES), "SAELens has no architecture for a topk transcoder"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, format, dictionary, message):
    with pytest.raises(BadInput, match=message):
        dictionary.save(tmp_path / "d", format=format)
    assert not (tmp_path / "d").exists()


def test_unknown_formats_are_named(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'sparsify'"):
        made().save(tmp_path, format="sparsefy")
    assert set(WRITERS) == {"saelens", "sparsify", "circuit-tracer", "compact"}


GOLDEN = Path(__file__).parent / "golden"
ROUND = [
    ("sparsify_bf16", "sparsify", "layers.3.mlp"),
    ("sparsify_groupmax", "sparsify", "layers.3.mlp"),
    ("sparsify_skip_transcoder", "sparsify", "layers.3.mlp"),
    ("circuittracer_plt_jumprelu", "circuit-tracer", "layer_1.safetensors"),
    ("circuittracer_plt_skip_relu", "circuit-tracer", "layer_1.safetensors"),
]


@pytest.mark.parametrize(("name", "format", "inside"), ROUND, ids=[name for name, *_ in ROUND])
def test_a_peers_file_is_written_back_as_it_was(tmp_path, name, format, inside):
    old = GOLDEN / name / inside
    dictionary = load_dictionary(old)
    file = old if old.is_file() else old / "sae.safetensors"
    new = tmp_path / "other name" if format == "sparsify" else tmp_path
    with safe_open(file, "pt") as held:
        dtype = held.get_tensor(next(iter(held.keys()))).dtype
    dictionary.save(new, format=format, dtype=dtype)
    before, after = tensors_of(file), tensors_of(new / file.name)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype
        # b_enc - b_dec W_enc and back again; a negative threshold of theirs stays
        torch.testing.assert_close(after[key], tensor, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    again = load_dictionary(new if old.is_dir() else new / file.name)
    x = torch.randn(9, dictionary.d_in, generator=torch.Generator().manual_seed(0))
    agree(computed(again, x), computed(dictionary, x))
    for about in ("site", "site_out", "transcoder", "kind", "k", "model_name"):
        assert getattr(again, about) == getattr(dictionary, about)
    if old.is_dir():
        cfg = json.loads((new / "cfg.json").read_text())
        assert json.loads((old / "cfg.json").read_text()).items() <= cfg.items()


@pytest.mark.parametrize("format", ["saelens", "sparsify", "circuit-tracer"])
def test_the_dtype_of_a_file(tmp_path, format):
    made().save(tmp_path, format=format, dtype=torch.bfloat16)
    (file,) = tmp_path.glob("*.safetensors")
    assert {tensor.dtype for tensor in tensors_of(file).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "dictionary",
    [
        made("jumprelu", threshold=np.linspace(-0.4, 1.2, F)),
        made("topk", k=K),
        made("relu", d_out=OUT, skip=True, **SITES),
    ],
    ids=["jumprelu", "topk", "skip transcoder"],
)
def test_compact_files_hold_integers_and_a_scale_a_latent(tmp_path, dictionary):
    """By numpy from the file alone: value = integer · scale, rounded to the nearest, vectors exact."""
    dictionary.card = {"site": "here"}
    dictionary.save(tmp_path, "compact")
    held = load_file(tmp_path / "compact_weights.safetensors")
    read = load_dictionary(tmp_path)
    for name, tensor in dictionary.tensors.present().items():
        found = read.tensors.present()[name].numpy()
        if tensor.ndim == 1:
            np.testing.assert_array_equal(found, tensor.numpy())
            continue
        axis = 0 if name == "W_enc" else 1
        scale = np.expand_dims(held[f"{name}.scale"], axis)
        assert held[name].dtype == np.int8
        np.testing.assert_array_equal(found, held[name] * scale)
        np.testing.assert_allclose(scale, np.abs(tensor.numpy()).max(axis, keepdims=True) / 127, rtol=1e-6)
        assert (np.abs(found - tensor.numpy()) <= scale * 0.5001).all()
    assert (read.kind, read.k, str(read.site), read.card) == (
        dictionary.kind,
        dictionary.k,
        str(dictionary.site),
        {"site": "here"},
    )


def test_compact_files_keep_silent_latents_and_are_told_apart_from_saelens(tmp_path):
    dictionary = made("relu")
    with torch.no_grad():
        dictionary.W_dec[3] = 0
    dictionary.save(tmp_path, "compact")
    assert not (load_dictionary(tmp_path).W_dec[3] != 0).any()
    assert not (tmp_path / "sae_weights.safetensors").exists()


@pytest.mark.parametrize("wrong", ["no scale", "shape", "no integers", "other matrix"])
def test_compact_files_whose_parts_do_not_belong_together(tmp_path, wrong):
    made("relu").save(tmp_path, "compact")
    path = tmp_path / "compact_weights.safetensors"
    held = tensors_of(path)
    change = {
        "no scale": lambda: held.pop("W_dec.scale"),
        "shape": lambda: held.update({"W_dec.scale": torch.ones(F + 1)}),
        "no integers": lambda: held.update({"W_dec": held["W_dec"].float()}),
        "other matrix": lambda: held.update({"b_enc": held["b_enc"].to(torch.int8), "b_enc.scale": torch.ones(1)}),
    }
    change[wrong]()
    save_tensors(held, path)
    with pytest.raises(BadFile, match=r"b_enc|W_dec"):
        load_dictionary(tmp_path)
