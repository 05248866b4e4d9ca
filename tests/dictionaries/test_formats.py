"""Checkpoints of every format, made with numpy in exactly the layout on disk, against a forward pass by hand."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from monosem.dictionaries import (
    Dictionary,
    DictionaryParts,
    DictionaryTensors,
    load_dictionary,
    loading,
    shipped_dictionaries,
)
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from tiny_saelens import METADATA, OUT, RNG, D, F, K, X, folder, relu, same, topk, weights

# ---------------------------------------------------------------------- SAELens


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "abstopk"])
def test_saelens_architectures(tmp_path, architecture, subtract):
    w = weights(D, "threshold") if architecture == "jumprelu" else weights()
    path = folder(tmp_path / "sae", w, architecture=architecture, apply_b_dec_to_input=subtract, k=K)
    pre = (X - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = {
        "standard": lambda: relu(pre),
        "jumprelu": lambda: relu(pre) * (pre > w["threshold"]),
        "topk": lambda: topk(pre),
        "abstopk": lambda: topk(pre, signed=True),
    }[architecture]()
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    assert str(dictionary.site) == "resid_pre.3"
    assert dictionary.site_out == dictionary.site
    assert dictionary.model_name == "gpt2-small"
    assert dictionary.metadata["original_form"]["apply_b_dec_to_input"] is subtract


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_saelens_topk_that_selects_on_rescaled_activations(tmp_path, architecture):
    w = weights()
    path = folder(tmp_path / "sae", w, architecture=architecture, k=K, rescale_acts_by_decoder_norm=True)
    norm = np.linalg.norm(w["W_dec"], axis=1)
    scaled = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm
    acts = topk(scaled, signed=architecture == "abstopk")
    same(load_dictionary(path), acts, (acts / norm) @ w["W_dec"] + w["b_dec"])
    plain = topk(scaled / norm, signed=architecture == "abstopk")
    assert ((plain != 0) != (acts != 0)).any()  # else this would not see the rescaling left out


@pytest.mark.parametrize(
    ("architecture", "skip", "jump"),
    [
        ("transcoder", False, False),
        ("skip_transcoder", True, False),
        ("jumprelu_transcoder", False, True),
        ("jumprelu_skip_transcoder", True, True),
    ],
)
def test_saelens_transcoders(tmp_path, architecture, skip, jump):
    w = weights(OUT, *["W_skip"] * skip, *["threshold"] * jump)
    metadata = METADATA | {"hook_name": "blocks.2.hook_resid_mid", "hook_name_out": "blocks.2.hook_mlp_out"}
    path = folder(
        tmp_path / "t", w, architecture=architecture, d_out=OUT, apply_b_dec_to_input=False, metadata=metadata
    )
    pre = X @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) * (pre > w["threshold"] if jump else True)
    y = acts @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if skip else 0)
    dictionary = load_dictionary(path)
    same(dictionary, acts, y)
    assert (str(dictionary.site), str(dictionary.site_out)) == ("resid_mid.2", "mlp_out.2")
    dictionary.save(tmp_path / "again")
    same(load_dictionary(tmp_path / "again"), acts, y)
    assert json.loads((tmp_path / "again" / "cfg.json").read_text())["architecture"] == architecture
    if skip:
        with pytest.raises(BadInput, match="depends on its input"):
            dictionary.decode(dictionary.encode(torch.from_numpy(X).float()))


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
@pytest.mark.parametrize("where", ["argument", "activation_scaler.json"])
def test_saelens_input_scale(tmp_path, architecture, where):
    """The encoder reads x * s - b_dec; the output is divided by s; activations and thresholds are in scaled units."""
    s = 0.37
    w = weights(D, "threshold") if architecture == "jumprelu" else weights()
    path = folder(tmp_path / "sae", w, architecture=architecture, k=K, normalize_activations="expected_average_only_in")
    pre = (X * s - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = topk(pre) if architecture == "topk" else relu(pre) * (pre > w.get("threshold", 0))
    if where == "argument":
        dictionary = load_dictionary(path, norm_scaling_factor=s)
    else:
        (path / where).write_text(json.dumps({"scaling_factor": s, "has_whitening": False}))
        dictionary = load_dictionary(path)
    same(dictionary, acts, (acts @ w["W_dec"] + w["b_dec"]) / s)


def test_saelens_missing_scale_is_an_error_that_says_what_to_give(tmp_path):
    path = folder(tmp_path / "sae", weights(), normalize_activations="expected_average_only_in")
    with pytest.raises(BadFile, match="norm_scaling_factor="):
        load_dictionary(path)
    with pytest.raises(BadFile, match="leave it out"):
        load_dictionary(folder(tmp_path / "other", weights()), norm_scaling_factor=0.5)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("s", [None, 0.37])
def test_saelens_batchtopk_checkpoint_is_a_threshold(tmp_path, rescale, s):
    w = weights() | {"topk_threshold": np.array(1.1)}
    path = folder(
        tmp_path / "sae",
        w,
        architecture="batchtopk",
        k=3.5,
        rescale_acts_by_decoder_norm=rescale,
        normalize_activations="expected_average_only_in" if s else "none",
    )
    scale = s or 1.0
    norm = np.linalg.norm(w["W_dec"], axis=1) if rescale else np.ones(F)
    pre = ((X * scale - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm
    acts = relu(pre) * (pre > 1.1)
    dictionary = load_dictionary(path, norm_scaling_factor=s)
    # SAELens scales first and takes the norms after, so that activations come out in raw units when it rescales
    same(dictionary, acts / scale if rescale else acts, ((acts / norm) @ w["W_dec"] + w["b_dec"]) / scale)
    assert dictionary.kind == "jumprelu"
    assert dictionary.metadata["training_architecture"] == "batchtopk"
    np.testing.assert_allclose(dictionary.threshold.numpy(), 1.1 / scale if rescale else 1.1, rtol=1e-6)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_saelens_whitening(tmp_path, architecture, subtract):
    w = weights(D, "threshold") if architecture == "jumprelu" else weights()
    matrix = RNG.normal(size=(D, D)) + 2 * np.eye(D)
    mean, inverse = RNG.normal(size=D), np.linalg.inv(matrix)
    path = folder(
        tmp_path / "sae",
        w,
        architecture=architecture,
        k=K,
        rescale_acts_by_decoder_norm=True,
        apply_b_dec_to_input=subtract,
        normalize_activations="covariance_whitening",
    )
    save_file(
        {"mean": mean, "matrix": matrix, "inverse_matrix": np.ascontiguousarray(inverse)},
        path / "activation_whitening.safetensors",
    )
    norm = np.linalg.norm(w["W_dec"], axis=1) if architecture == "topk" else np.ones(F)
    z = (X - mean) @ matrix
    pre = ((z - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm
    acts = topk(pre) if architecture == "topk" else relu(pre) * (pre > w["threshold"])
    same(load_dictionary(path), acts, ((acts / norm) @ w["W_dec"] + w["b_dec"]) @ inverse + mean)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_saelens_normalisation_of_each_token(tmp_path, norm, architecture):
    w = weights()
    path = folder(tmp_path / "sae", w, architecture=architecture, k=K, normalize_activations=norm)
    if norm == "layer_norm":
        mean, scale = X.mean(-1, keepdims=True), X.std(-1, keepdims=True, ddof=1)
        z = (X - mean) / (scale + 1e-5)
    else:
        mean, scale = 0, np.linalg.norm(X, axis=-1, keepdims=True) / np.sqrt(D)
        z = X / scale
    pre = (z - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = topk(pre) if architecture == "topk" else relu(pre)
    y = (acts @ w["W_dec"] + w["b_dec"]) * scale + mean
    dictionary = load_dictionary(path)
    same(dictionary, acts, y)
    np.testing.assert_allclose(dictionary.token_scale(torch.from_numpy(X)).numpy(), scale, rtol=1e-5)
    dictionary.save(tmp_path / "again")
    same(load_dictionary(tmp_path / "again"), acts, y)


def test_saelens_before_version_6(tmp_path):
    """A flat config: renamed keys, booleans for normalisation, TopK as an activation function, log thresholds."""
    w = weights()
    flat = {"d_in": D, "d_sae": F, "hook_point": "blocks.1.attn.hook_z", "model_name": "gpt2", "dtype": "torch.float32"}
    flat |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False}
    path = folder(tmp_path / "sae", w)
    (path / "cfg.json").write_text(json.dumps(flat))
    acts = topk((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    assert str(dictionary.site) == "z.1"
    heads = torch.from_numpy(X).float().view(9, 2, 3)
    assert torch.equal(dictionary(heads).flatten(1), dictionary(heads.flatten(1)))
    (path / "cfg.json").write_text(json.dumps(flat | {"normalize_activations": True}))
    with pytest.raises(BadFile, match="norm_scaling_factor="):
        load_dictionary(path)


def test_saelens_log_threshold_and_finetuning_factor(tmp_path):
    w = weights(D, "threshold")
    factor = np.random.default_rng(5).uniform(0.5, 2, size=F).astype(np.float32)
    stored = {name: value for name, value in w.items() if name != "threshold"}
    stored |= {"log_threshold": np.log(w["threshold"]), "scaling_factor": factor}
    path = folder(tmp_path / "sae", stored, architecture="jumprelu", finetuning_scaling_factor=True)
    pre = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) * (pre > w["threshold"]) * factor
    same(load_dictionary(path), acts, acts @ w["W_dec"] + w["b_dec"])
    folder(path, stored, architecture="jumprelu")
    with pytest.raises(BadFile, match="scaling_factor"):
        load_dictionary(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "abstopk"])
def test_saelens_round_trip_is_exact(tmp_path, architecture, dtype):
    w = weights(D, "threshold") if architecture == "jumprelu" else weights()
    first = load_dictionary(folder(tmp_path / "sae", w, architecture=architecture, k=K))
    first.card = {"data": "made up"}
    first.save(tmp_path / "again", dtype=dtype)
    second = load_dictionary(tmp_path / "again")
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor.to(dtype).float())
    cfg = json.loads((tmp_path / "again" / "cfg.json").read_text())
    assert cfg["dtype"] == "float32"  # SAELens converts the weights to it and computes in it
    assert second.metadata == first.metadata
    assert second.card == first.card
    assert (second.kind, second.k, second.site) == (first.kind, first.k, first.site)


def test_what_is_written_has_the_names_that_saelens_reads(tmp_path):
    """Key and tensor names of SAELens 6.54.12 (`SAEConfig`, `JumpReLUSAE`), and the meaning that it would give them."""
    w = weights(D, "threshold")
    load_dictionary(folder(tmp_path / "sae", w, architecture="jumprelu")).save(tmp_path / "out")
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert {key: cfg[key] for key in cfg if key != "metadata"} == {
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "architecture": "jumprelu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    assert cfg["metadata"]["sae_lens_version"].startswith("6.")
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_pre"
    v = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert {name: t.shape for name, t in v.items()} == {name: t.shape for name, t in w.items()}
    old = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    new = X @ v["W_enc"] + v["b_enc"]
    np.testing.assert_allclose(new, old, atol=1e-5)
    np.testing.assert_array_equal(v["W_dec"], w["W_dec"])
    np.testing.assert_array_equal(v["threshold"], w["threshold"])


def test_saving_what_saelens_cannot_hold_is_refused(tmp_path):
    t = {name: torch.from_numpy(value) for name, value in weights(OUT).items()}
    dictionary = Dictionary(
        DictionaryParts(DictionaryTensors(**t), "topk", k=K, site="resid_mid.1", site_out="mlp_out.1")
    )
    with pytest.raises(BadInput, match="no architecture for a topk transcoder"):
        dictionary.save(tmp_path / "x")
    with pytest.raises(UnknownName, match="there are saelens, sparsify, circuit-tracer"):
        dictionary.save(tmp_path / "x", format="gguf")
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------- OpenAI


def openai_file(path: Path, activation: str, /, **changes) -> tuple[Path, dict[str, np.ndarray]]:
    w = weights()
    state = {
        "pre_bias": torch.from_numpy(w["b_dec"]),
        "encoder.weight": torch.from_numpy(w["W_enc"].T.copy()),
        "latent_bias": torch.from_numpy(w["b_enc"]),
        "decoder.weight": torch.from_numpy(w["W_dec"].T.copy()),
        "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
        "latents_activation_frequency": torch.ones(F, dtype=torch.long),
        "latents_mean_square": torch.ones(F),
        "activation": activation,
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state | changes, path)
    return path, w


def test_openai_v5_topk(tmp_path):
    path, w = openai_file(tmp_path / "resid_post_mlp_v5_32k" / "autoencoders" / "8.pt", "TopK")
    mean, std = X.mean(-1, keepdims=True), X.std(-1, keepdims=True, ddof=1)
    acts = topk(((X - mean) / (std + 1e-5) - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    dictionary = load_dictionary(path)
    same(dictionary, acts, (acts @ w["W_dec"] + w["b_dec"]) * std + mean)
    assert str(dictionary.site) == "resid_post.8"
    assert dictionary.model_name == "gpt2"


@pytest.mark.parametrize(
    ("location", "site"),
    [("resid_delta_attn", "attn_out.2"), ("resid_post_attn_v4", "resid_mid.2"), ("mlp_post_act", "mlp_post.2")],
)
def test_openai_v1_relu_reads_the_raw_activation(tmp_path, location, site):
    path, w = openai_file(tmp_path / location / "autoencoders" / "2.pt", "ReLU")
    acts = relu((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    assert str(dictionary.site) == site


def test_openai_without_an_activation_is_a_relu_as_for_its_own_loader(tmp_path):
    path, w = openai_file(tmp_path / "mlp_post_act_v4" / "autoencoders" / "2.pt", "ReLU")
    state = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in state.items() if not key.startswith("activation")}, path)
    acts = relu((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    same(load_dictionary(path), acts, acts @ w["W_dec"] + w["b_dec"])
    assert load_dictionary(path).metadata["original_form"]["activation"] == "ReLU"


@pytest.mark.parametrize(("place", "state"), [("resid_post_mlp_v5_32k", {}), ("mlp_post_act", {"k": K})])
def test_openai_without_an_activation_is_refused_where_the_rest_says_topk(tmp_path, place, state):
    path, _ = openai_file(tmp_path / place / "autoencoders" / "2.pt", "TopK", activation_state_dict=state)
    held = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in held.items() if key != "activation"}, path)
    with pytest.raises(BadFile, match="names no activation, which OpenAI's own loader takes for a ReLU, and is of a T"):
        load_dictionary(path)


def test_openai_without_a_telling_path_needs_a_site(tmp_path):
    path, _ = openai_file(tmp_path / "downloaded.pt", "TopK")
    with pytest.raises(BadInput, match="site="):
        _ = load_dictionary(path).site
    assert str(load_dictionary(path, site="blocks.4.hook_mlp_out").site) == "mlp_out.4"


def test_openai_what_does_not_fit_is_named(tmp_path):
    wrong = {
        "decoder.weight": (torch.zeros(F, D), r"decoder.weight has shape \[23, 6\], expected \[6, 23\].*transposed"),
        "latent_bias": (torch.zeros(F + 1), r"latent_bias has shape \[24\], expected \[23\]"),
        "activation": ("GELU", "unknown activation 'GELU'"),
        "activation_state_dict": ({"k": K, "postact_fn": "Identity"}, "postact_fn"),
        "pre_bias": (None, "lacks the tensors pre_bias"),
    }
    for key, (value, message) in wrong.items():
        path, _ = openai_file(tmp_path / f"{key}.pt", "TopK", **{key: value})
        with pytest.raises(BadFile, match=message):
            load_dictionary(path)


# ---------------------------------------------------------------------- bad files


class Hostile:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, zipped):
    trap, path = tmp_path / "ran", tmp_path / "sae.pt"
    if zipped:
        torch.save({"pre_bias": torch.zeros(2), "activation": Hostile(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"pre_bias": Hostile(trap)}))
    with pytest.raises(BadFile, match=r"refused|not a PyTorch file"):
        load_dictionary(path)
    assert not trap.exists()
    if zipped:  # the trap works where a file is trusted
        torch.load(path, weights_only=False)
        assert trap.exists()


def test_truncated_and_missing_files(tmp_path):
    path = folder(tmp_path / "sae", weights())
    whole = (path / "sae_weights.safetensors").read_bytes()
    for length in (0, 5, 200, len(whole) - 7):
        (path / "sae_weights.safetensors").write_bytes(whole[:length])
        with pytest.raises(BadFile, match="truncated or not a safetensors file"):
            load_dictionary(path)
    (path / "sae_weights.safetensors").unlink()
    with pytest.raises(BadFile, match="sae_weights.safetensors: it does not exist"):
        load_dictionary(path)
    (path / "cfg.json").write_text("{")
    with pytest.raises(BadFile, match="not valid JSON"):
        load_dictionary(path)
    (path / "cfg.json").unlink()
    with pytest.raises(BadFile, match="not a dictionary in a known format"):
        load_dictionary(path)
    torch_file, _ = openai_file(tmp_path / "x.pt", "TopK")
    torch_file.write_bytes(torch_file.read_bytes()[:300])
    with pytest.raises(BadFile):
        load_dictionary(torch_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"W_enc": np.zeros((F, D), np.float32)},
            r"W_enc has shape \[23, 6\], expected \[6, 23\]; it looks transposed",
        ),
        ({"b_enc": np.zeros(F - 1, np.float32)}, r"b_enc has shape \[22\], expected \[23\]"),
        ({"b_dec": np.full(D, np.nan, np.float32)}, r"b_dec has 6 values that are not finite"),
        ({"W_dec": np.full((F, D), np.inf, np.float32)}, r"W_dec has 138 values that are not finite"),
        ({"b_enc": None}, "lacks the tensors b_enc; it has"),
    ],
)
def test_bad_tensors_are_named(tmp_path, change, message):
    tensors = {name: value for name, value in (weights() | change).items() if value is not None}
    with pytest.raises(BadFile, match=message):
        load_dictionary(folder(tmp_path / "sae", tensors, apply_b_dec_to_input=False))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"architecture": "jumpreloo"}, "unknown architecture 'jumpreloo'.*did you mean 'jumprelu'.*known: standard"),
        ({"architecture": "topk"}, "'k' must be a whole number above 0, not None"),
        ({"d_sae": "23"}, "'d_sae' must be a whole number, not '23'"),
        ({"normalize_activations": "batch_norm"}, "unknown normalize_activations 'batch_norm'"),
        ({"architecture": "transcoder", "d_out": D}, "a transcoder's b_dec belongs to its output"),
        ({"architecture": "jumprelu"}, "lacks the tensors threshold"),
    ],
)
def test_bad_configs(tmp_path, cfg, message):
    with pytest.raises(BadFile, match=message):
        load_dictionary(folder(tmp_path / "sae", weights(), **cfg))


# ---------------------------------------------------------------------- names


def test_an_unknown_name_lists_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "ASSETS", tmp_path)
    with pytest.raises(UnknownName, match="shipped: none"):
        load_dictionary("nothing-like-this")
    folder(tmp_path / "tiny" / "resid_pre.3", weights())
    assert shipped_dictionaries() == ["tiny/resid_pre.3"]
    assert load_dictionary("tiny/resid_pre.3").name == "tiny/resid_pre.3"
    with pytest.raises(UnknownName, match="did you mean 'tiny/resid_pre.3'"):
        load_dictionary("./resid_pre.3")


def test_device_dtype_and_overrides(tmp_path):
    path = folder(tmp_path / "sae", weights(), metadata=METADATA | {"hook_name": "encoder.7.weird"})
    dictionary = load_dictionary(path, dtype=torch.bfloat16, model_name="mine")
    assert dictionary.W_enc.dtype == torch.bfloat16
    assert dictionary.model_name == "mine"
    with pytest.raises(BadInput, match=r"'encoder.7.weird', which is not a site"):
        _ = dictionary.site
    assert dictionary(torch.from_numpy(X).float()).dtype == torch.float32
    with pytest.raises(Mismatch):
        dictionary.encode(torch.zeros(2, D + 1))
