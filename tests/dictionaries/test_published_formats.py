"""Checkpoints of other tools than SAELens and OpenAI, made with numpy in exactly the layout on disk, against a forward
pass by hand straight from the format's description. What the tools' own files give is in `test_peer_cases.py`."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from monosem.dictionaries import Dictionary, TrainConfig, load_dictionary
from monosem.dictionaries.training.starts import start_of
from monosem.errors import BadFile, Mismatch
from tiny_saelens import OUT, D, F, X, relu, same, topk, weights

RNG = np.random.default_rng(11)


def layer_norm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """OpenAI's: the normalised x, its mean and its standard deviation (unbiased)."""
    mean, std = x.mean(-1, keepdims=True), x.std(-1, keepdims=True, ddof=1)
    return (x - mean) / (std + 1e-5), mean, std


def pytorch(path: Path, contents: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(as_torch(contents), path)
    return path


def as_torch(value):
    if isinstance(value, dict):
        return {key: as_torch(one) for key, one in value.items()}
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def safe(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return path


def config(path: Path, cfg: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(cfg) if path.suffix == ".yaml" else json.dumps(cfg))


def linear(w: dict[str, np.ndarray], **renamed: str) -> dict[str, np.ndarray]:
    """Weights of two torch.nn.Linear, [out, in]."""
    held = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    return held | {theirs: w[ours] for ours, theirs in renamed.items()}


# ---------------------------------------------------------------------- dictionary_learning


def learned(path: Path, dict_class: str, tensors: dict, **trainer) -> Path:
    told = {"dict_class": dict_class, "activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "EleutherAI/pythia"}
    config(path / "config.json", {"trainer": told | trainer, "buffer": {"io": "out", "ctx_len": 128}})
    pytorch(path / "ae.pt", tensors)
    return path


def of_class(name: str, threshold: float) -> tuple[dict, np.ndarray, dict[str, np.ndarray]]:
    """Tensors of the file, codes, and the weights they came from."""
    w = weights(D, "threshold")
    z = X - (0 if name in ("AutoEncoderNew", "JumpReluAutoEncoder") else w["b_dec"])
    pre = z @ w["W_enc"] + w["b_enc"]
    plain = {key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    scalars = {"k": torch.tensor(4, dtype=torch.int), "threshold": torch.tensor(threshold)}
    above = relu(pre) * (relu(pre) > threshold)
    if name == "GatedAutoEncoder":
        own = {key: RNG.normal(size=F).astype(np.float32) for key in ("r_mag", "gate_bias", "mag_bias")}
        product = z @ w["W_enc"]
        acts = (product + own["gate_bias"] > 0) * relu(np.exp(own["r_mag"]) * product + own["mag_bias"])
        held = {key: value for key, value in linear(w, b_dec="decoder_bias").items() if key != "encoder.bias"}
        return held | own, acts, w
    return {
        "AutoEncoder": lambda: (linear(w, b_dec="bias"), relu(pre), w),
        "AutoEncoderNew": lambda: (linear(w, b_dec="decoder.bias"), relu(pre), w),
        "JumpReluAutoEncoder": lambda: (plain | {"threshold": w["threshold"]}, relu(pre * (pre > w["threshold"])), w),
        "AutoEncoderTopK": lambda: (linear(w, b_dec="b_dec") | scalars, topk(pre), w),
        "BatchTopKSAE": lambda: (linear(w, b_dec="b_dec") | scalars, above, w),
        "MatryoshkaBatchTopKSAE": lambda: (plain | scalars | {"group_sizes": torch.tensor([8, F - 8])}, above, w),
    }[name]()


CLASSES = [
    *("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"),
    "MatryoshkaBatchTopKSAE",
]


@pytest.mark.parametrize("threshold", [1.1, -1.0])  # -1: it was never set, and only the ReLU counts
@pytest.mark.parametrize("name", CLASSES)
def test_dictionary_learning(tmp_path, name, threshold):
    held, acts, w = of_class(name, threshold)
    path = learned(tmp_path / "trainer_0", name, held, k=4, submodule_name="resid_post_layer_3")
    y = acts @ w["W_dec"] + w["b_dec"]
    pytorch(path / "checkpoints" / "ae_1000.pt", held)
    for read in (path, path / "ae.pt", path / "checkpoints" / "ae_1000.pt"):
        dictionary = load_dictionary(read)
        same(dictionary, acts, y)
        assert (str(dictionary.site), dictionary.model_name) == ("resid_post.3", "EleutherAI/pythia")
        assert dictionary.metadata["original_form"]["dict_class"] == name
    if "BatchTopK" in name:
        assert dictionary.kind == ("relu" if threshold < 0 else "jumprelu")


def test_dictionary_learning_compares_strictly(tmp_path):
    w = {"W_enc": np.eye(3, dtype=np.float32), "b_enc": np.zeros(3, np.float32), "W_dec": np.eye(3, dtype=np.float32)}
    held = linear(w) | {"b_dec": np.zeros(3, np.float32), "k": torch.tensor(1), "threshold": torch.tensor(0.5)}
    read = load_dictionary(learned(tmp_path, "BatchTopKSAE", held, activation_dim=3, dict_size=3))
    assert read.encode(torch.tensor([[0.5, 0.75, 0.25]])).dense().tolist() == [[0, 0.75, 0]]


@pytest.mark.parametrize(
    ("trainer", "io", "site"),
    [
        ({"submodule_name": "model.layers.3.mlp"}, "out", "mlp_raw.3"),
        ({"submodule_name": "gpt_neox.layers.3.mlp"}, "in", "mlp_input.3"),
        ({"submodule_name": "transformer.h.5"}, "out", "resid_post.5"),
        ({"submodule_name": "mlp_out_layer_2"}, "out", "mlp_out.2"),
        ({}, "out", "resid_post.3"),
    ],
)
def test_dictionary_learning_says_where(tmp_path, trainer, io, site):
    held, *_ = of_class("AutoEncoder", 1)
    path = learned(tmp_path, "AutoEncoder", held, **trainer)
    cfg = json.loads((path / "config.json").read_text())
    config(path / "config.json", cfg | {"buffer": {"io": io}})
    assert str(load_dictionary(path).site) == site


def test_dictionary_learning_without_a_config(tmp_path):
    for name in ("AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder"):
        held, acts, w = of_class(name, 1)
        same(load_dictionary(pytorch(tmp_path / name / "ae.pt", held)), acts, acts @ w["W_dec"] + w["b_dec"])
    held, *_ = of_class("BatchTopKSAE", 1)
    with pytest.raises(BadFile, match="can be a AutoEncoderTopK or a BatchTopKSAE"):
        load_dictionary(pytorch(tmp_path / "ae.pt", held))
    with pytest.raises(BadFile, match="unknown dict_class 'IdentityDict'; known: AutoEncoder"):
        load_dictionary(learned(tmp_path, "IdentityDict", held))


# ---------------------------------------------------------------------- sparsify, latentsae


def coder(path: Path, w: dict[str, np.ndarray], cfg: dict, **more: np.ndarray) -> Path:
    held = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    safe(path / "sae.safetensors", held | more)
    config(path / "cfg.json", {"d_in": D, "num_latents": F, "k": 4, "expansion_factor": 32} | cfg)
    return path


@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("unit", [True, False])  # plays no part
def test_sparsify(tmp_path, transcode, skip, multi, unit):
    w = weights(D, *["W_skip"] * skip)
    cfg = {"activation": "topk", "normalize_decoder": unit, "multi_topk": multi}
    more = {"W_skip": w["W_skip"]} if skip else {}
    path = coder(tmp_path / "layers.3.mlp", w, cfg | {"transcode": transcode, "skip_connection": skip}, **more)
    acts = topk(relu((X - (0 if transcode else w["b_dec"])) @ w["W_enc"] + w["b_enc"]))
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if skip else 0))
    assert str(dictionary.site) == ("mlp_input.3" if transcode else "mlp_raw.3")
    assert str(dictionary.site_out) == "mlp_raw.3"


def test_sparsify_groups_and_bfloat16(tmp_path):
    w = {name: value[..., :20] if name in ("W_enc", "b_enc") else value for name, value in weights().items()}
    w["W_dec"] = w["W_dec"][:20]
    rounded = {name: torch.from_numpy(value).bfloat16() for name, value in w.items()}
    path = tmp_path / "layers.10"
    coder(path, w, {"activation": "groupmax", "num_latents": 20, "k": 5})
    held = {"encoder.weight": rounded["W_enc"].T.contiguous(), "encoder.bias": rounded["b_enc"]}
    from safetensors.torch import save_file as save_torch

    save_torch(held | {name: rounded[name] for name in ("W_dec", "b_dec")}, path / "sae.safetensors")
    v = {name: value.double().numpy() for name, value in rounded.items()}
    pre = relu((X - v["b_dec"]) @ v["W_enc"] + v["b_enc"]).reshape(-1, 5, 4)
    acts = (pre * (pre == pre.max(-1, keepdims=True))).reshape(-1, 20)
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ v["W_dec"] + v["b_dec"])  # computed in float32, not in bfloat16
    assert str(dictionary.site) == "resid_post.10"


def test_sparsify_sizes_and_options(tmp_path):
    for cfg, message in (
        ({"num_latents": 7}, "'num_latents' is 7, and the tensors have 23"),
        ({"d_in": 7}, "'d_in' is 7, and the tensors have 6; is it another's config"),
        ({"num_latents": 0, "expansion_factor": None}, "'expansion_factor' must be a whole number above 0, not None"),
        ({"num_latents": 0, "expansion_factor": 3}, "'num_latents' is 18, and the tensors have 23"),
        ({"activation": "softplus"}, "unknown activation 'softplus'; known: topk, groupmax"),
        ({"activation": "groupmax"}, "a width of 23 has no 4"),
        ({"k": 0}, "'k' must be a whole number above 0"),
        ({"transcode": "no"}, "'transcode' must be true or false"),
    ):
        with pytest.raises(BadFile, match=message):
            load_dictionary(coder(tmp_path / "embed_tokens", weights(), cfg))


def latents_of(name: str, pre: np.ndarray, held: dict) -> np.ndarray:
    if name == "ABSTOPK":
        return topk(pre, signed=True)
    if name == "BATCHTOPK":
        return topk(relu(pre) * (relu(pre) >= held["batchtopk_threshold"]))
    if name == "JUMPRELU":
        return topk(pre * (pre > np.exp(held["log_threshold"])), k=5)
    return topk(relu(pre), k=6 if name == "MATRYOSHKA" else 4)


@pytest.mark.parametrize("skip", [None, "whole", "low rank"])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("name", ["TOPK", "ABSTOPK", "BATCHTOPK", "JUMPRELU", "MATRYOSHKA"])
def test_latentsae(tmp_path, name, centre, skip):
    w, mean = weights(), RNG.normal(size=D).astype(np.float32) * centre
    down, up = (RNG.normal(size=size).astype(np.float32) for size in ((2, D), (D, 2)))
    more = {"batchtopk_threshold": np.float32(2.5).reshape(())} if name == "BATCHTOPK" else {}
    more |= {"log_threshold": RNG.normal(size=F).astype(np.float32)} if name == "JUMPRELU" else {}
    more |= {"input_mean": mean} if centre else {}
    more |= {"W_skip.weight": up @ down} if skip == "whole" else {}
    more |= {"W_skip_down.weight": down, "W_skip_up.weight": up} if skip == "low rank" else {}
    cfg = {"sae_type": name, "mean_center": centre, "use_skip": bool(skip), "jumprelu_max_active": 5}
    path = coder(tmp_path / "layers.4", w, cfg | {"matryoshka_ks": "2, 4,6"}, **more)
    acts = latents_of(name, (X - mean - w["b_dec"]) @ w["W_enc"] + w["b_enc"], more)
    y = acts @ w["W_dec"] + w["b_dec"] + mean + ((X - mean) @ (up @ down).T if skip else 0)
    dictionary = load_dictionary(path)
    same(dictionary, acts, y)
    assert str(dictionary.site) == str(dictionary.site_out) == "resid_post.4"


@pytest.mark.parametrize("name", ["GATED", "COSINE", "LISTA"])
def test_latentsae_of_another_function_is_named(tmp_path, name):
    with pytest.raises(BadFile, match=f"sae_type '{name}' is not read: "):
        load_dictionary(coder(tmp_path / "layers.4", weights(), {"sae_type": name}))


# ---------------------------------------------------------------------- Gemma Scope, Llama Scope, llamascopium


@pytest.mark.parametrize(
    ("place", "site", "site_out", "model"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "resid_post.20", None, "google/gemma-2-2b"),
        ("models--google--gemma-scope-9b-it-res/s/layer_9/w/l0", "resid_post.9", None, "google/gemma-2-9b-it"),
        ("gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_7", "mlp_out.3", None, "google/gemma-2-2b"),
        ("gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_7", "z.3", None, "google/gemma-2-2b"),
        ("gemma-scope-2b-pt-transcoders/layer_3/width_16k/l0_7", "ln2_normalized.3", "mlp_out.3", "google/gemma-2-2b"),
    ],
)
def test_gemma_scope(tmp_path, place, site, site_out, model):
    w = weights(OUT if site_out else D, "threshold")
    path = tmp_path / place
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **w)
    pre = X @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) * (pre > w["threshold"])
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (str(dictionary.site), str(dictionary.site_out)) == (site, site_out or site)
    assert dictionary.model_name == model
    if site == "z.3":
        heads = torch.from_numpy(X).float().view(9, 2, 3)
        assert torch.equal(dictionary(heads).flatten(1), dictionary(heads.flatten(1)))
    np.savez(path / "params.npz", **{name.lower(): value for name, value in w.items()}, scaling_factor=np.ones(F))
    same(load_dictionary(path / "params.npz"), acts, acts @ w["W_dec"] + w["b_dec"])
    np.savez(path / "params.npz", **w, scaling_factor=np.full(F, 2.0))
    with pytest.raises(BadFile, match="scaling_factor is not 1"):
        load_dictionary(path)


def test_gemma_scope_of_the_embedding(tmp_path):
    w = weights(D, "threshold")
    path = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **w)
    pre = X @ (w["W_enc"] / math.sqrt(D)) + w["b_enc"]
    acts = relu(pre) * (pre > w["threshold"])
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ (w["W_dec"] * math.sqrt(D)) + w["b_dec"])
    assert str(dictionary.site) == "embed"


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(
    ("place", "hooks", "sites", "affine"),
    [
        ("resid_post/layer_3_width_16k_l0_small", ("output",), ("resid_post.3", "resid_post.3"), False),
        ("attn_out_all/layer_3_width_16k_l0_small", ("self_attn.o_proj.input",), ("z.3", "z.3"), False),
        (
            "transcoder_all/layer_3_width_16k_l0_small_affine",
            ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
            ("ln2_output.3", "mlp_out.3"),
            True,
        ),
    ],
)
def test_gemma_scope_2(tmp_path, place, hooks, sites, affine, said):
    transcoder = len(hooks) == 2
    w = weights(OUT if transcoder else D, "threshold", *["W_skip"] * affine)
    path = tmp_path / "gemma-scope-2-270m-pt" / place
    held = {name.lower(): value for name, value in w.items() if name != "W_skip"}
    safe(path / "params.safetensors", held | ({"affine_skip_connection": w["W_skip"].T} if affine else {}))
    if said:
        cfg = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt", "affine_connection": affine}
        names = zip(("in", "out"), hooks)
        config(path / "config.json", cfg | {f"hf_hook_point_{side}": f"model.layers.3.{hook}" for side, hook in names})
    pre = X @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) * (pre > w["threshold"])
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if affine else 0))
    assert (str(dictionary.site), str(dictionary.site_out)) == sites
    assert dictionary.model_name == "google/gemma-3-270m"
    assert dictionary.transcoder is transcoder


@pytest.mark.parametrize("out", [None, 7.0])
def test_llama_scope(tmp_path, out):
    """The threshold is one number, in units of raw activations."""
    w, theta, norm = weights(OUT if out else D), 0.8, 11.0
    path = tmp_path / "Llama3_1-8B-Base-L15R-8x"
    safe(path / "checkpoints" / "final.safetensors", linear(w, b_dec="decoder.bias"))
    hooks = {"hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post"}
    hooks |= (
        {"hook_point_in": "blocks.15.ln2.hook_normalized", "hook_point_out": "blocks.15.hook_mlp_out"} if out else {}
    )
    norms = {"in": norm, "out": out or norm}
    cfg = {"d_model": D, "d_sae": F, "jump_relu_threshold": theta, "dataset_average_activation_norm": norms}
    config(path / "hyperparams.json", cfg | hooks)
    s_in, s_out = math.sqrt(D) / norm, math.sqrt(D) / (out or norm)
    pre = s_in * X @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) * (pre > theta * s_in)
    dictionary = load_dictionary(path)
    same(dictionary, acts, (acts @ w["W_dec"] + w["b_dec"]) / s_out)
    assert str(dictionary.site) == ("ln2_normalized.15" if out else "resid_post.15")
    assert str(dictionary.site_out) == ("mlp_out.15" if out else "resid_post.15")
    assert dictionary.model_name == "meta-llama/Llama-3.1-8B"


def test_llama_scope_r1_needs_its_scale(tmp_path):
    w, s = weights(D, "threshold"), 0.37
    path = tmp_path / "L15R"
    held = linear(w, b_dec="decoder.bias") | {"log_jumprelu_threshold": np.log(w["threshold"])}
    safe(path / "sae_weights.safetensors", held)
    cfg = {"d_model": D, "expansion_factor": 4, "hook_point_in": "blocks.15.hook_resid_post"}
    config(path / "config.json", cfg)
    with pytest.raises(BadFile, match=r"norm_scaling_factor=sqrt\(d_in\)"):
        load_dictionary(path)
    pre = s * X @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) * (pre > w["threshold"])
    same(load_dictionary(path, norm_scaling_factor=s), acts, (acts @ w["W_dec"] + w["b_dec"]) / s)
    config(path / "config.json", cfg | {"dataset_average_activation_norm": {"in": math.sqrt(D) / s}})
    same(load_dictionary(path), acts, (acts @ w["W_dec"] + w["b_dec"]) / s)


def scopium(path: Path, w: dict[str, np.ndarray], act: str, out: float | None, **cfg) -> tuple[Path, float, float]:
    here, there = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"
    held = {"W_E": w["W_enc"], "b_E": w["b_enc"], "W_D": w["W_dec"]}
    held |= {"b_D": w["b_dec"]} if cfg.get("use_decoder_bias", True) else {}
    norms = {here: 5.0} | ({there: out} if out else {})
    held |= {f"dataset_average_activation_norm.{name}": np.float32(norm).reshape(()) for name, norm in norms.items()}
    if act == "jumprelu":
        held["activation_function.log_jumprelu_threshold"] = np.log(w["threshold"])
    if cfg.get("use_glu_encoder"):
        held |= {"W_E_glu": w["W_glu"], "b_E_glu": w["b_glu"]}
    safe(path / "sae_weights.safetensors", held)
    base = {"sae_type": "sae", "d_model": D, "expansion_factor": 4.0, "act_fn": act, "top_k": 4}
    config(path / "config.json", base | {"hook_point_in": here, "hook_point_out": there if out else here} | cfg)
    return path, math.sqrt(D) / 5.0, math.sqrt(D) / (out or 5.0)


@pytest.mark.parametrize("glu", [True, False])
@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("out", [None, 2.0])
@pytest.mark.parametrize("act", ["relu", "jumprelu", "topk"])
def test_llamascopium(tmp_path, act, out, by_norm, glu):
    w = weights(OUT if out else D, "threshold")
    w |= {"W_glu": RNG.normal(size=(D, F)).astype(np.float32), "b_glu": RNG.normal(size=F).astype(np.float32)}
    told = {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": by_norm, "use_glu_encoder": glu}
    path, s_in, s_out = scopium(tmp_path / "L1", w, act, out, **told)
    pre = s_in * X @ w["W_enc"] + w["b_enc"]
    pre = pre / (1 + np.exp(-(s_in * X @ w["W_glu"] + w["b_glu"]))) if glu else pre
    n = np.linalg.norm(w["W_dec"], axis=1) if by_norm else np.ones(F)
    acts = {
        "relu": lambda: relu(pre),
        "jumprelu": lambda: pre * (pre * n > w["threshold"]),
        "topk": lambda: topk(pre * n) / n,
    }[act]()
    y = (acts @ w["W_dec"] + w["b_dec"]) / s_out
    dictionary = load_dictionary(path)
    same(dictionary, acts * n if act == "topk" else acts, y)
    assert (str(dictionary.site), str(dictionary.site_out)) == ("resid_post.1", "mlp_out.1" if out else "resid_post.1")


def test_llamascopium_norms_and_biases(tmp_path):
    w = weights(D, "threshold")
    told = {"use_decoder_bias": False, "sparsity_include_decoder_norm": False}
    path, *_ = scopium(tmp_path / "a", w, "jumprelu", None, norm_activation="inference", **told)
    pre = X @ w["W_enc"] + w["b_enc"]
    acts = pre * (pre > w["threshold"])
    same(load_dictionary(path), acts, acts @ w["W_dec"])
    path, *_ = scopium(tmp_path / "b", w, "relu", None, norm_activation="token-wise")
    scale = np.linalg.norm(X, axis=1, keepdims=True) / math.sqrt(D)
    acts = relu(X / scale @ w["W_enc"] + w["b_enc"])
    same(load_dictionary(path), acts, (acts @ w["W_dec"] + w["b_dec"]) * scale)


@pytest.mark.parametrize(
    ("act", "out", "cfg", "message"),
    [
        ("batchtopk", None, {}, "selects over a batch"),
        ("relu", None, {"sae_type": "lorsa"}, "unknown sae_type 'lorsa'; known: sae, clt, crosscoder"),
        ("relu", None, {"norm_activation": "batch-wise"}, "unknown norm_activation 'batch-wise'"),
        ("relu", 2.0, {"norm_activation": "token-wise"}, "scaled by the output's own norm"),
        ("relu", None, {"hook_point_out": "blocks.2.hook_mlp_out"}, "lacks dataset_average_activation_norm.blocks.2"),
    ],
)
def test_llamascopium_that_cannot_be_read_says_why(tmp_path, act, out, cfg, message):
    with pytest.raises(BadFile, match=message):
        load_dictionary(scopium(tmp_path / "x", weights(OUT if out else D), act, out, **cfg)[0])


# ---------------------------------------------------------------------- circuit-tracer


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("threshold", [None, 0.0, -1.0])  # added to thresholds from .1 to 1.5
@pytest.mark.parametrize("d_out", [D, OUT])
def test_circuit_tracer(tmp_path, threshold, skip, d_out):
    w = weights(d_out, "threshold", *["W_skip"] * skip)
    theta = None if threshold is None else w.pop("threshold") + np.float32(threshold)
    w.pop("threshold", None)
    held = w | {"W_enc": w["W_enc"].T} | ({} if theta is None else {"activation_function.threshold": theta})
    for layer in (0, 5):
        safe(tmp_path / f"layer_{layer}.safetensors", held)
    cfg = {
        "model_kind": "transcoder_set",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
    }
    config(tmp_path / "config.yaml", cfg | {"model_name": "google/gemma-2-2b", "scan": "gemma"})
    pre = X @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) if theta is None else pre * (pre > theta)
    y = acts @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if skip else 0)
    dictionary = load_dictionary(tmp_path / "layer_5")
    same(dictionary, acts, y)
    assert (acts < 0).any() == (threshold == -1)
    assert (str(dictionary.site), str(dictionary.site_out)) == ("resid_mid.5", "mlp_out.5")
    assert dictionary.model_name == "google/gemma-2-2b"
    with pytest.raises(BadFile, match="holds 2 dictionaries; give one, such as .*layer_0.safetensors"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("name", ["wandb-config.yaml", "wanb-config.yaml"])
def test_mwhannas_transcoders_read_what_the_mlp_is_given(tmp_path, name):
    w = weights()
    path = safe(tmp_path / "qwen3-14b-transcoders" / "layer_7.safetensors", w | {"W_enc": w["W_enc"].T})
    config(path.parent / name, {"d_model": {"value": D}, "d_feature": {"value": F}})
    acts = relu(X @ w["W_enc"] + w["b_enc"])
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (str(dictionary.site), str(dictionary.site_out)) == ("mlp_input.7", "mlp_out.7")
    assert dictionary.model_name == "Qwen/Qwen3-14B"


# ---------------------------------------------------------------------- state dicts


@pytest.mark.parametrize(
    ("name", "site", "model"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", "resid_post.19", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Llama-3.3-70B-Instruct-SAE-l50.pt", "resid_post.50", "meta-llama/Llama-3.3-70B-Instruct"),
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", "resid_post.19", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
    ],
)
def test_goodfire_and_qresearch(tmp_path, name, site, model):
    w = weights()
    held = linear(w, b_dec="decoder.bias")
    if name.startswith("Llama"):
        held = {key.replace("coder.", "coder_linear."): value for key, value in held.items()}
    acts = relu(X @ w["W_enc"] + w["b_enc"])
    dictionary = load_dictionary(pytorch(tmp_path / name, held))
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (str(dictionary.site), dictionary.model_name) == (site, model)
    same(load_dictionary(pytorch(tmp_path / "copy.pt", held)), acts, acts @ w["W_dec"] + w["b_dec"])


def test_qwen_scope(tmp_path):
    w = weights()
    held = w | {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"].T}
    acts = topk(X @ w["W_enc"] + w["b_enc"])
    path = pytorch(tmp_path / "Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_4" / "layer12.sae.pt", held)
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (str(dictionary.site), dictionary.model_name) == ("resid_post.12", "Qwen/Qwen3-1.7B-Base")
    path = pytorch(tmp_path / "layer12.sae.pt", held)
    with pytest.raises(BadFile, match="does not say how many latents a token has: give k="):
        load_dictionary(path)
    same(load_dictionary(path, k=4), acts, acts @ w["W_dec"] + w["b_dec"])


def test_mistral_sae(tmp_path):
    w = weights()
    path = pytorch(tmp_path / "sae_layer16.pt", {f"{k[0].lower()}{k[1:]}": v for k, v in w.items() if k != "b_dec"})
    held = {"w_enc": w["W_enc"], "w_dec": w["W_dec"], "b_enc": w["b_enc"], "b_pre": w["b_dec"]}
    pytorch(path, held | {"stats_last_nonzero": torch.zeros(F, dtype=torch.long)})
    z, mean, std = layer_norm(X)
    acts = topk((z - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    same(load_dictionary(path, k=4), acts, (acts @ w["W_dec"] + w["b_dec"]) * std + mean)
    with pytest.raises(BadFile, match="give k="):
        load_dictionary(path)


def test_deeplens(tmp_path):
    w = weights()
    gain, bias = RNG.normal(size=(2, D)).astype(np.float32)
    path = pytorch(tmp_path / "best_model.pt", linear(w) | {"norm.weight": gain, "norm.bias": bias})
    z = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5) * gain + bias
    acts = relu(z @ w["W_enc"] + w["b_enc"])
    same(load_dictionary(path, kind="relu"), acts, acts @ w["W_dec"])  # its output is not normalised back
    few = topk(acts)
    same(load_dictionary(path, kind="topk", k=4), few, few @ w["W_dec"])
    with pytest.raises(BadFile, match="does not say its activation: give kind='relu', or kind='topk' and k="):
        load_dictionary(path)


def test_attention_saes_of_a_state_dict_and_a_config_beside_it(tmp_path):
    w = weights()
    path = pytorch(tmp_path / "gpt2-small_L5_Hcat_z.pt", w)
    config(
        tmp_path / "gpt2-small_L5_Hcat_z_cfg.json", {"act_name": "blocks.5.attn.hook_z", "act_size": D, "dict_size": F}
    )
    acts = relu((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    dictionary = load_dictionary(path)
    same(dictionary, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (str(dictionary.site), dictionary.model_name) == ("z.5", "gpt2")
    pytorch(path, w | {"W_enc": np.stack([w["W_enc"]] * 2)})  # Neel Nanda's crosscoders have the same files
    with pytest.raises(BadFile, match=r"W_dec has shape .*, expected \[23, 2, 6\]"):
        load_dictionary(path)
    pytorch(path, w)
    (tmp_path / "gpt2-small_L5_Hcat_z_cfg.json").unlink()
    with pytest.raises(BadFile, match="not a dictionary in a known format; it holds W_enc, b_enc, W_dec, b_dec"):
        load_dictionary(path)


# ---------------------------------------------------------------------- others


def hypothesis_state(w: dict[str, np.ndarray], threshold: float) -> dict:
    held = {"encoder.weight": w["W_enc"].T, "decoder.weight": w["W_dec"].T, "input_bias": w["b_dec"]}
    return held | {"neuron_bias": w["b_enc"], "threshold": torch.tensor(threshold)}


@pytest.mark.parametrize("batch", [True, False])
def test_hypothesaes(tmp_path, batch):
    w = weights()
    cfg = {"input_dim": D, "m_total_neurons": F, "k_active_neurons": 4, "use_batch_topk": batch, "prefix_lengths": None}
    path = pytorch(tmp_path / "SAE_M=23_K=4.pt", {"config": cfg, "state_dict": hypothesis_state(w, 1.3)})
    pre = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) * (relu(pre) > 1.3) if batch else topk(pre)
    same(load_dictionary(path), acts, acts @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("name", [None, "batchtopk", "simple-topk", "jumprelu"])
def test_prefscope(tmp_path, name):
    w = weights(D, "threshold")
    held = hypothesis_state(w, 1.3) | {"steps_since_activation": torch.zeros(F, dtype=torch.long)}
    held |= {"log_threshold": np.log(w["threshold"])} if name == "jumprelu" else {}
    cfg = {"input_dim": D, "m_total_neurons": F, "k_active_neurons": 4} | ({"sae_type": name} if name else {})
    path = pytorch(tmp_path / "sae_model.pt", {"state_dict": held, "config": cfg})
    pre = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    acts = {
        "simple-topk": lambda: topk(pre, signed=True),
        "jumprelu": lambda: pre * (pre > w["threshold"]),
    }.get(name, lambda: pre * (np.abs(pre) > 1.3))()
    same(load_dictionary(path), acts, acts @ w["W_dec"] + w["b_dec"])
    (tmp_path / "whiten.npz").write_bytes(b"")
    with pytest.raises(BadFile, match="whitens beforehand"):
        load_dictionary(path)


def test_saev(tmp_path):
    w, path = weights(), tmp_path / "sae.pt"
    with open(path, "wb") as file:
        file.write(json.dumps({"d_vit": D, "exp_factor": 4, "sparsity_coeff": 4e-4}).encode() + b"\n")
        torch.save(as_torch(w), file)
    acts = relu((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    same(load_dictionary(path), acts, acts @ w["W_dec"] + w["b_dec"])
    path.write_bytes(b'{"d_model": 3}\n' + path.read_bytes())
    with pytest.raises(BadFile, match="its first line is not a config of saev"):
        load_dictionary(path)


def test_overcomplete(tmp_path):
    w, path = weights(D, "threshold"), tmp_path / "sae.pt"
    held = {"encoder.final_block.0.weight": w["W_enc"].T, "encoder.final_block.0.bias": w["b_enc"]}
    held |= {"dictionary._weights": w["W_dec"], "dictionary.multiplier": torch.tensor(0.4)}
    rows = w["W_dec"] / (np.linalg.norm(w["W_dec"], axis=1, keepdims=True) + 1e-8) * math.exp(0.4)
    pre = relu(X @ w["W_enc"] + w["b_enc"])
    pytorch(path, held)
    same(load_dictionary(path, kind="relu"), pre, pre @ rows)
    same(load_dictionary(path, kind="topk", k=4), topk(pre), topk(pre) @ rows)
    with pytest.raises(BadFile, match="does not say its activation: give kind='relu'"):
        load_dictionary(path)
    pytorch(path, held | {"thresholds": np.log(w["threshold"])})
    acts = pre * (pre >= np.exp(np.log(w["threshold"])))
    same(load_dictionary(path), acts, acts @ rows)
    pytorch(path, held | {"encoder.final_block.1.weight": w["b_enc"]})
    with pytest.raises(BadFile, match="only linear encoders are read, this one also has encoder.final_block.1.weight"):
        load_dictionary(path)


def test_overcomplete_keeps_what_equals_the_threshold(tmp_path):
    eye = np.eye(3, dtype=np.float32)
    held = {"encoder.final_block.0.weight": eye, "encoder.final_block.0.bias": np.zeros(3, np.float32)}
    held |= {
        "dictionary._weights": eye,
        "dictionary.multiplier": torch.tensor(0.0),
        "thresholds": np.zeros(3, np.float32),
    }
    read = load_dictionary(pytorch(tmp_path / "sae.pt", held))
    below = float(np.nextafter(np.float32(1), np.float32(0)))
    assert read.encode(torch.tensor([[1.0, below, 2.0]])).dense().tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("name", ["vanilla", "topk", "jumprelu", "batch-topk", "global-matryoshka-topk"])
def test_bussmanns_saes(tmp_path, name, unit):
    w = weights(D, "threshold")
    held = {key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    held |= {"jumprelu.log_threshold": np.log(w["threshold"])} if name == "jumprelu" else {}
    held |= {"threshold": torch.tensor(0.9)} if "-topk" in name else {}
    pytorch(tmp_path / "sae.pt", held)
    cfg = {"sae_type": name, "input_unit_norm": unit, "top_k": 4, "hook_point": "blocks.8.hook_resid_pre"}
    config(tmp_path / "config.json", cfg | {"model_name": "gpt2-small", "dtype": "torch.float32"})
    x, mean, std = layer_norm(X) if unit else (X, 0, 1)
    z = x if name == "jumprelu" else x - w["b_dec"]
    pre = z @ w["W_enc"] + (w["b_enc"] if name in ("vanilla", "jumprelu") else 0)
    acts = {
        "vanilla": lambda: relu(pre),
        "topk": lambda: topk(relu(pre)),
        "jumprelu": lambda: relu(pre) * (relu(pre) > w["threshold"]),
    }.get(name, lambda: relu(pre) * (relu(pre) > 0.9))()
    dictionary = load_dictionary(tmp_path)
    same(dictionary, acts, (acts @ w["W_dec"] + w["b_dec"]) * std + mean)
    assert (str(dictionary.site), dictionary.model_name) == ("resid_pre.8", "gpt2-small")


def test_a_batchtopk_without_a_threshold_is_refused(tmp_path):
    pytorch(tmp_path / "sae.pt", weights())
    config(tmp_path / "config.json", {"sae_type": "batchtopk", "top_k": 4})
    with pytest.raises(BadFile, match="selects over the batch and stores no threshold"):
        load_dictionary(tmp_path)


def test_temporal_saes_as_published(tmp_path):
    """The same function as SAELens's `temporal`, whose formula is in `test_kinds.py`, from other names."""
    from test_kinds import temporal, temporal_folder

    _, w = temporal_folder(tmp_path / "own", True, True)
    renamed = {"W_dec": "D", "b_dec": "b"}
    path = tmp_path / "layer_12" / "temporal"
    safe(path / "latest_ckpt.safetensors", {renamed.get(name, name): value for name, value in w.items()})
    sae = {"n_heads": 2, "n_attn_layers": 2, "bottleneck_factor": 4, "sae_diff_type": "topk", "kval_topk": 3}
    config(path / "conf.yaml", {"llm": {"dimin": D}, "sae": sae | {"tied_weights": True, "scaling_factor": 0.37}})
    dictionary: Dictionary = load_dictionary(path)
    acts, y = temporal(w, X, True, True, 3, 0.37)
    codes = dictionary.encode(torch.from_numpy(X).float()[None])
    np.testing.assert_allclose(codes.dense()[0], acts, atol=1e-5)
    np.testing.assert_allclose(dictionary.decode(codes)[0], y, atol=3e-5)
    assert str(dictionary.site) == "resid_post.12"


def test_what_is_told_in_vain_is_refused(tmp_path):
    held, *_ = of_class("BatchTopKSAE", 1.1)
    with pytest.raises(BadFile, match="k=4 was given, but this is a jumprelu dictionary; leave it out"):
        load_dictionary(learned(tmp_path / "a", "BatchTopKSAE", held, k=4), k=4)
    w = weights()
    normed = linear(w) | {"norm.weight": w["b_dec"], "norm.bias": w["b_dec"]}
    with pytest.raises(BadFile, match="k=4 was given, but this is a relu dictionary"):
        load_dictionary(pytorch(tmp_path / "d.pt", normed), kind="relu", k=4)
    path, *_ = scopium(tmp_path / "s", w, "relu", None, norm_activation="inference")
    with pytest.raises(BadFile, match="norm_scaling_factor was given, but .* has norm_activation 'inference'"):
        load_dictionary(path, norm_scaling_factor=0.5)
    with pytest.raises(BadFile, match="kind was given, but such a file says all"):
        load_dictionary(path, kind="relu")


def test_tensors_that_the_tool_itself_would_refuse_are_refused(tmp_path):
    w = weights(D, "W_skip")
    held = linear(w, b_dec="b_dec") | {"k": torch.tensor(4), "threshold": torch.tensor(0.5), "post_bias": w["b_dec"]}
    with pytest.raises(BadFile, match="has tensors that no such file has, post_bias"):
        load_dictionary(learned(tmp_path / "a", "BatchTopKSAE", held))
    with pytest.raises(BadFile, match="has tensors that no such file has, W_skip"):
        load_dictionary(coder(tmp_path / "layers.3", w, {"skip_connection": False}, W_skip=w["W_skip"]))
    with pytest.raises(BadFile, match="has tensors that no such file has, input_mean"):
        load_dictionary(coder(tmp_path / "layers.4", w, {"sae_type": "TOPK"}, input_mean=w["b_dec"]))


def test_llamascopium_where_the_tool_looks_for_weights(tmp_path):
    w = weights()
    path, s_in, s_out = scopium(tmp_path / "L1", w, "relu", None)
    acts = relu(s_in * X @ w["W_enc"] + w["b_enc"])
    from safetensors.torch import load_file

    held = load_file(path / "sae_weights.safetensors")
    (path / "sae_weights.safetensors").unlink()
    pytorch(path / "checkpoints" / "final.pt", {"sae": held})
    same(load_dictionary(path), acts, (acts @ w["W_dec"] + w["b_dec"]) / s_out)
    pytorch(path / "checkpoints" / "final.pt", held)
    with pytest.raises(BadFile, match="lacks the table 'sae'"):
        load_dictionary(path)


def test_a_run_does_not_start_from_what_is_not_trained(tmp_path):
    from test_kinds import temporal_folder

    w = weights()
    w |= {"W_glu": w["W_enc"], "b_glu": w["b_enc"]}
    glu, *_ = scopium(tmp_path / "glu", w, "relu", None, use_glu_encoder=True)
    told = {"model": "tiny", "site": "resid_post.1", "texts": ["x"], "k": 4, "tokens": 64}
    with pytest.raises(Mismatch, match="has a gated linear unit, which is not trained"):
        start_of(TrainConfig(**told, width=F, start=str(glu)))
    with pytest.raises(Mismatch, match="is a temporal dictionary, which is not trained"):
        start_of(TrainConfig(**told, width=16, start=str(temporal_folder(tmp_path / "t", True, True)[0])))
