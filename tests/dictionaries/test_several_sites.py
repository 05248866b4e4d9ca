"""Dictionaries of several sites (cross-layer transcoders, crosscoders): files of every format against a slow formula in
NumPy, and what circuit-tracer computes from files of its own."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file

import monosem as ms
from monosem.dictionaries import (
    Crosscoder,
    CrossLayer,
    Dictionary,
    SeveralSites,
    evaluate,
    load_dictionary,
    one_site,
)
from monosem.dictionaries.formats import cross_layer
from monosem.dictionaries.several import ONE_SITE
from monosem.dictionaries.several_parts import CrosscoderParts
from monosem.errors import BadFile, BadInput, Mismatch, MonosemError, UnknownName
from monosem.latents import build_index
from monosem.models import Model
from tiny import tiny_model

GOLDEN = Path(__file__).parent / "golden" / "circuittracer_clt_relu"
L, D, F = 3, 5, 11
RNG = np.random.default_rng(5)
X = RNG.normal(size=(L, 2, 4, D)).astype(np.float32)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    made = {
        "W_enc": rng.normal(size=(L, D, F)),
        "b_enc": rng.normal(size=(L, F)) * 0.3,
        "b_dec": rng.normal(size=(L, D)),
        "threshold": rng.uniform(-0.8, 1.0, size=(L, F)),
        "W_skip": rng.normal(size=(L, D, D)),
        "full": rng.normal(size=(L, F, L, D)) * rng.uniform(0.3, 2.0, size=(L, F, 1, 1)),  # from, latent, to
    }
    return {name: value.astype(np.float32) for name, value in made.items()}


def encoded(w: dict[str, np.ndarray], x: np.ndarray, threshold: np.ndarray | None) -> np.ndarray:
    pre = np.stack([x[s] @ w["W_enc"][s] + w["b_enc"][s] for s in range(L)])
    return np.maximum(pre, 0) if threshold is None else pre * (pre > threshold[:, None, None])


def decoded(w: dict[str, np.ndarray], acts: np.ndarray) -> np.ndarray:
    y = np.zeros(X.shape) + w["b_dec"][:, None, None]
    for s in range(L):
        for t in range(s, L):
            y[t] += acts[s] @ w["full"][s, :, t]
    return y


def tracer(path: Path, w: dict[str, np.ndarray], thresholds: bool = True, **cfg: str) -> Path:
    """A folder of circuit-tracer's."""
    path.mkdir()
    for i in range(L):
        held = {f"W_enc_{i}": w["W_enc"][i].T, f"b_enc_{i}": w["b_enc"][i], f"b_dec_{i}": w["b_dec"][i]}
        held |= {f"threshold_{i}": w["threshold"][i]} if thresholds else {}
        saved(path / f"W_enc_{i}.safetensors", held)
        saved(path / f"W_dec_{i}.safetensors", {f"W_dec_{i}": w["full"][i][:, i:]})
    if cfg:
        (path / "config.yaml").write_text(yaml.safe_dump({"model_kind": "cross_layer_transcoder"} | cfg))
    return path


def gemma(path: Path, w: dict[str, np.ndarray], affine: bool = True) -> Path:
    """A folder of Gemma Scope 2's, with decoders of layers that cannot be written to, which nothing reads."""
    path.mkdir(parents=True)
    for i in range(L):
        held = {"w_enc": w["W_enc"][i], "b_enc": w["b_enc"][i], "b_dec": w["b_dec"][i], "w_dec": w["full"][i]}
        held |= {"threshold": w["threshold"][i]} | ({"affine_skip_connection": w["W_skip"][i]} if affine else {})
        saved(path / f"params_layer_{i}.safetensors", held)
    return path


def scopium(path: Path, w: dict[str, np.ndarray], act: str, **cfg: object) -> Path:
    path.mkdir()
    held = {"W_E": w["W_enc"], "b_E": w["b_enc"]}
    held |= {f"W_D.{t}": w["full"][: t + 1, :, t] for t in range(L)} | {f"b_D.{t}": w["b_dec"][t] for t in range(L)}
    hooks = {side: [f"blocks.{i}.hook_{site}" for i in range(L)] for side, site in HOOKS.items()}
    norm = "dataset_average_activation_norm"
    held |= {f"{norm}.{hook}": np.float32(norm_in(i)) for i, hook in enumerate(hooks["in"])}
    held |= {f"{norm}.{hook}": np.float32(norm_out(i)) for i, hook in enumerate(hooks["out"])}
    if act == "jumprelu":
        held["activation_function.log_jumprelu_threshold"] = np.log(np.abs(w["threshold"]))
    saved(path / "sae_weights.safetensors", {name: np.asarray(value) for name, value in held.items()})
    base = {"sae_type": "clt", "d_model": D, "act_fn": act, "top_k": 4, "norm_activation": "dataset-wise"}
    named = {f"hook_points_{side}": names for side, names in hooks.items()}
    (path / "config.json").write_text(json.dumps(base | named | cfg))
    return path


HOOKS = {"in": "resid_mid", "out": "mlp_out"}


def norm_in(layer: int) -> float:
    return 2.0 + layer


def norm_out(layer: int) -> float:
    return 1.0 + layer / 2


def saved(path: Path, held: dict[str, np.ndarray]) -> None:
    save_file({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in held.items()}, path)


def same(clt: CrossLayer, acts: np.ndarray, y: np.ndarray) -> None:
    codes = clt.encode(torch.from_numpy(X))
    np.testing.assert_allclose(np.stack([one.dense() for one in codes]), acts, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(clt(torch.from_numpy(X)), y, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(clt.decode(codes, like=torch.from_numpy(X)), y, atol=2e-5, rtol=1e-5)


# ---------------------------------------------------------------------- cross-layer transcoders


def test_circuit_tracers_own_numbers():
    clt = load_dictionary(GOLDEN)
    assert isinstance(clt, CrossLayer)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    x, acts, recon = (torch.tensor(expected[key]) for key in ("x", "acts", "recon"))
    codes = clt.encode(x)
    np.testing.assert_allclose(torch.stack([one.dense() for one in codes]), acts, atol=1e-5)
    np.testing.assert_allclose(clt.decode(codes), recon, atol=1e-5)
    assert [str(site) for site in clt.sites] == ["resid_mid.0", "resid_mid.1", "resid_mid.2"]
    assert [str(site) for site in clt.sites_out] == ["mlp_out.0", "mlp_out.1", "mlp_out.2"]
    assert max(one.values.shape[-1] for one in codes) < clt.width  # sparse


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("thresholds", [True, False])
def test_circuit_tracer(tmp_path, monkeypatch, thresholds, in_files):
    if in_files:
        monkeypatch.setattr(cross_layer, "IN_MEMORY", 0)
    w = weights()
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    clt = load_dictionary(tracer(tmp_path / "clt", w, thresholds, model_name="gpt2", scan="mine", **hooks))
    assert isinstance(clt, CrossLayer)
    acts = encoded(w, X, w["threshold"] if thresholds else None)
    assert thresholds == bool((acts < 0).any())  # thresholds below 0 let negative codes through
    same(clt, acts, decoded(w, acts))
    assert (clt.model_name, clt.name, str(clt.sites[1])) == ("gpt2", "mine", "mlp_input.1")
    assert (clt.files is not None) == in_files
    np.testing.assert_array_equal(clt.rows(1, [7, 2]), w["full"][1][[7, 2], 1:])


def test_large_decoders_stay_in_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cross_layer, "IN_MEMORY", 0)
    path = tracer(tmp_path / "clt", weights())
    clt = load_dictionary(path)
    assert not [name for name, _ in clt.named_parameters() if name.startswith("W_dec")]
    x = torch.from_numpy(X)
    codes = clt.encode(x)
    (path / "W_dec_1.safetensors").write_bytes(b"")
    with pytest.raises(BadFile, match="W_dec_1.safetensors: rows of W_dec_1 cannot be read"):
        clt.decode(codes)


def test_activations_by_site_come_back_by_site(tmp_path):
    clt = load_dictionary(tracer(tmp_path / "clt", weights()))
    x = {f"resid_mid.{layer}": torch.from_numpy(X[layer]).bfloat16() for layer in (2, 0, 1)}
    y = clt(x)
    assert [str(site) for site in y] == ["mlp_out.0", "mlp_out.1", "mlp_out.2"]
    assert y[clt.sites_out[1]].dtype == torch.bfloat16
    stacked = torch.stack([x[f"resid_mid.{layer}"] for layer in range(L)])
    torch.testing.assert_close(torch.stack(list(y.values())), clt(stacked), atol=0, rtol=0)
    with pytest.raises(BadInput, match="reads resid_mid.2, too"):
        clt.encode({site: part for site, part in x.items() if site != "resid_mid.2"})
    with pytest.raises(Mismatch, match=r"\[3, ..., 5\] is needed"):
        clt.encode(stacked[:2])
    with pytest.raises(Mismatch, match="decodes codes of 3 layers"):
        clt.decode(clt.encode(stacked)[:2])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("in_files", [False, True])
def test_gemma_scope_2(tmp_path, monkeypatch, affine, in_files):
    if in_files:
        monkeypatch.setattr(cross_layer, "IN_MEMORY", 0)
    w = weights()
    clt = load_dictionary(gemma(tmp_path / "gemma-scope-2-1b-it" / "clt", w, affine))
    assert isinstance(clt, CrossLayer)
    acts = encoded(w, X, w["threshold"])
    skip = np.stack([X[t] @ w["W_skip"][t] for t in range(L)]) if affine else 0
    same(clt, acts, decoded(w, acts) + skip)
    assert (str(clt.sites[2]), str(clt.sites_out[2])) == ("ln2_output.2", "mlp_out.2")
    assert clt.model_name == "google/gemma-3-1b-it"
    if affine:
        with pytest.raises(BadInput, match="depends on its input"):
            clt.decode(clt.encode(torch.from_numpy(X)))


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("act", ["relu", "jumprelu", "topk"])
def test_llamascopium(tmp_path, act, by_norm):
    w = weights()
    clt = load_dictionary(scopium(tmp_path / "clt", w, act, sparsity_include_decoder_norm=by_norm))
    assert isinstance(clt, CrossLayer)
    s_in = np.array([math.sqrt(D) / norm_in(i) for i in range(L)])[:, None, None, None]
    s_out = np.array([math.sqrt(D) / norm_out(i) for i in range(L)])[:, None, None, None]
    norms = np.sqrt(sum(np.square(w["full"][:, :, t]).sum(-1) * (np.arange(L) <= t)[:, None] for t in range(L)))
    n = norms[:, None, None] if by_norm else 1.0
    gated = encoded(w, X * s_in, np.full((L, F), -np.inf)) * n
    if act == "jumprelu":
        acts = gated * (gated > np.abs(w["threshold"])[:, None, None]) / n
    elif act == "topk":
        gated = np.maximum(gated, 0)
        acts = gated * (gated >= np.sort(gated, -1)[..., -4:-3]) / n
    else:
        acts = np.maximum(gated, 0) / n
    unit = n if act == "topk" else 1.0  # as an SAE's: with unit decoder rows
    same(clt, acts * unit, decoded(w, acts) / s_out)
    assert str(clt.sites_out[1]) == "mlp_out.1"


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"act_fn": "layertopk"}, "'layertopk' is not|unknown act_fn 'layertopk'"),
        ({"act_fn": "batchtopk"}, "selects over a batch"),
        ({"sae_type": "molt"}, "unknown sae_type 'molt'; known: sae, clt, crosscoder"),
        ({"hook_points_in": ["blocks.0.hook_resid_mid"]}, "W_E has 3 layers, and .* names 1 and 3 hooks"),
        ({"hook_points_out": 3}, "'hook_points_out' must be a list of hooks"),
        ({"norm_activation": "token-wise"}, "unknown norm_activation 'token-wise'"),
        ({"hook_points_in": ["a", "b", "c"]}, "lacks dataset_average_activation_norm.a"),
    ],
)
def test_llamascopium_that_cannot_be_read_says_why(tmp_path, cfg, message):
    with pytest.raises(BadFile, match=message):
        load_dictionary(scopium(tmp_path / "clt", weights(), "relu", **cfg))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("thresholds", [True, False])
def test_written_as_circuit_tracer_does_and_read_again(tmp_path, thresholds, dtype):
    path = tracer(tmp_path / "one", weights(), thresholds, model_name="gpt2")
    clt = load_dictionary(path)
    clt.save(tmp_path / "two", dtype=dtype)
    files = sorted(one.name for one in path.iterdir())
    assert files == sorted(one.name for one in (tmp_path / "two").iterdir())
    if dtype is None:
        for name in files[:-1] if files[-1] == "config.yaml" else [one for one in files if one != "config.yaml"]:
            theirs, ours = load_file(path / name), load_file(tmp_path / "two" / name)
            assert theirs.keys() == ours.keys()
            assert all((theirs[key] == ours[key]).all() for key in theirs)
    again = load_dictionary(tmp_path / "two")
    assert (again.kind, again.sites, again.sites_out, again.model_name) == (
        clt.kind,
        clt.sites,
        clt.sites_out,
        "gpt2",
    )
    assert yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())["model_kind"] == "cross_layer_transcoder"


def test_what_circuit_tracers_files_cannot_hold_is_refused(tmp_path):
    with pytest.raises(BadInput, match="without a skip connection.* this one is a jump with a skip connection"):
        load_dictionary(gemma(tmp_path / "g", weights())).save(tmp_path / "out")
    with pytest.raises(UnknownName, match="no format to save a cross-layer transcoder in 'saelens'"):
        load_dictionary(GOLDEN).save(tmp_path / "out", "saelens")
    with pytest.raises(UnknownName, match="no format to save a crosscoder in 'saelens'"):
        load_dictionary(neel(tmp_path, crosscoder_weights())).save(tmp_path / "out", "saelens")
    assert not (tmp_path / "out").exists()


def test_a_topk_is_written_with_its_k_where_circuit_tracer_refuses_it(tmp_path):
    read = load_dictionary(scopium(tmp_path / "s", weights(), "topk"))
    read.save(tmp_path / "out")
    again, x = load_dictionary(tmp_path / "out"), torch.from_numpy(X)
    for one, other in zip(again.encode(x), read.encode(x)):
        torch.testing.assert_close(one.dense(), other.dense())
    assert (again.kind, again.k, again.sites) == ("topk", read.k, read.sites)
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["model_kind"] != "cross_layer_transcoder"  # circuit-tracer knows this one and transcoder_set
    for wrong, message in (({"k": F + 1}, "k must be from 1 to the width"), ({"k": 1.5}, "'k' must be a whole number")):
        (tmp_path / "out" / "config.yaml").write_text(yaml.safe_dump(config | wrong))
        with pytest.raises(BadFile, match=message):
            load_dictionary(tmp_path / "out")


def test_a_topk_crosscoder_is_written_with_its_k(tmp_path):
    w = crosscoder_weights()
    facts = replace(load_dictionary(neel(tmp_path, w)).facts, kind="topk", k=2)
    made = Crosscoder(CrosscoderParts(facts=facts, **{name: torch.tensor(value) for name, value in w.items()}))
    made.save(tmp_path / "out")
    held = torch.load(tmp_path / "out" / "crosscoder.pt", weights_only=True)
    assert held.keys() == {*w, "k"}  # a key that Neel Nanda's class refuses
    acts = one_code(w, X)
    largest = np.sort(acts, axis=-1)[..., -2:-1]
    expected = np.where(acts >= largest, acts, 0)
    np.testing.assert_allclose(
        load_dictionary(tmp_path / "out").encode(torch.from_numpy(X)).dense(), expected, atol=1e-5
    )
    for k, message in ((1.5, "k is 1.5; a topk has a whole number"), (F + 1.0, "k must be from 1 to the width")):
        torch.save(held | {"k": torch.tensor(k)}, tmp_path / "out" / "crosscoder.pt")
        with pytest.raises(BadFile, match=message):
            load_dictionary(tmp_path / "out")


# ---------------------------------------------------------------------- crosscoders


def crosscoder_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    made = {
        "W_enc": rng.normal(size=(L, D, F)),
        "b_enc": rng.normal(size=F),
        "W_dec": rng.normal(size=(F, L, D)),
        "b_dec": rng.normal(size=(L, D)),
    }
    return {name: value.astype(np.float32) for name, value in made.items()}


def neel(path: Path, w: dict[str, np.ndarray], **cfg: object) -> Path:
    torch.save({name: torch.from_numpy(value) for name, value in w.items()}, path / "3.pt")
    told = {"dict_size": F, "model_name": "gpt2-small", "site": "resid_post", "enc_dtype": "fp32"} | cfg
    (path / "3_cfg.json").write_text(json.dumps(told))
    return path / "3.pt"


def one_code(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return np.maximum(sum(x[s] @ w["W_enc"][s] for s in range(L)) + w["b_enc"], 0)


def test_neel_nandas_crosscoder(tmp_path):
    w = crosscoder_weights()
    read = load_dictionary(neel(tmp_path, w))
    assert isinstance(read, Crosscoder)
    acts = one_code(w, X)
    y = np.stack([acts @ w["W_dec"][:, s] + w["b_dec"][s] for s in range(L)])
    codes = read.encode(torch.from_numpy(X))
    np.testing.assert_allclose(codes.dense(), acts, atol=1e-5)
    np.testing.assert_allclose(read.decode(codes), y, atol=1e-5)
    assert [str(site) for site in read.sites] == ["resid_post.0", "resid_post.1", "resid_post.2"]
    by_site = read({f"resid_post.{s}": torch.from_numpy(X[s]) for s in range(L)})
    np.testing.assert_allclose(torch.stack(list(by_site.values())), y, atol=1e-5)
    np.testing.assert_array_equal(read.rows([4, 0]), w["W_dec"][[4, 0]])
    assert read.model_name == "gpt2-small"
    silent = torch.zeros(L, 0, D)
    assert read(silent).shape == (L, 0, D)


@pytest.mark.parametrize("thresholds", [False, True])
def test_a_crosscoder_is_written_and_read_again(tmp_path, thresholds):
    """With the tensors of Neel Nanda's class, and thresholds as one more."""
    w = crosscoder_weights()
    read = load_dictionary(neel(tmp_path, w, name="mine"))
    if thresholds:
        theta = torch.rand(F) * 2
        facts = replace(read.facts, kind="jumprelu")
        read = Crosscoder(CrosscoderParts(facts=facts, threshold=theta, **{k: torch.tensor(v) for k, v in w.items()}))
    read.save(tmp_path / "out")
    held = torch.load(tmp_path / "out" / "crosscoder.pt", weights_only=True)
    assert held.keys() == {*w, *(["threshold"] if thresholds else [])}
    for name, value in w.items():
        np.testing.assert_array_equal(held[name], value)
    for place in (tmp_path / "out", tmp_path / "out" / "crosscoder.pt"):
        again = load_dictionary(place)
        x = torch.from_numpy(X)
        acts = torch.from_numpy(one_code(w, X))
        expected = acts * (acts > theta) if thresholds else acts
        np.testing.assert_allclose(again.encode(x).dense(), expected, atol=1e-5)
        torch.testing.assert_close(again(x), read(x))
        assert (again.sites, again.name, again.model_name) == (read.sites, "mine", "gpt2-small")
    (tmp_path / "out" / "crosscoder_cfg.json").write_text(json.dumps({"sites": ["z.1"]}))
    with pytest.raises(BadFile, match="its config names 1 sites, and its tensors are of 3"):
        load_dictionary(tmp_path / "out")


def test_a_crosscoder_of_scaled_activations(tmp_path):
    """Its training divides each layer's activations by a number that no file keeps."""
    w, by = crosscoder_weights(), np.array([1.8, 2.1, 16.5], dtype=np.float32)
    read = load_dictionary(neel(tmp_path, w))
    scaled = read.scaled([1 / one for one in by])
    acts = one_code(w, X / by[:, None, None, None])
    y = np.stack([(acts @ w["W_dec"][:, s] + w["b_dec"][s]) * by[s] for s in range(L)])
    np.testing.assert_allclose(scaled.encode(torch.from_numpy(X)).dense(), acts, atol=1e-5)
    np.testing.assert_allclose(scaled(torch.from_numpy(X)), y, atol=1e-4)
    with pytest.raises(BadInput, match="needs 3 scales, each a number above 0"):
        read.scaled([1.0, 0.0, 2.0])


def test_a_crosscoder_of_two_models_has_no_sites(tmp_path):
    read = load_dictionary(neel(tmp_path, crosscoder_weights(), hook_point="blocks.14.hook_resid_pre"))
    assert read.encode(torch.from_numpy(X)).values.shape[:2] == X.shape[1:3]
    with pytest.raises(BadInput, match="where '3' reads is unknown"):
        _ = read.sites


def test_llamascopiums_crosscoder(tmp_path):
    rng, path = np.random.default_rng(4), tmp_path / "cc"
    path.mkdir()
    w = crosscoder_weights()
    b_E = rng.normal(size=(L, F)).astype(np.float32)
    hooks = [f"blocks.{s}.hook_resid_post" for s in range(L)]
    held = {"W_E": w["W_enc"], "b_E": b_E, "W_D": w["W_dec"].transpose(1, 0, 2), "b_D": w["b_dec"]}
    held |= {f"dataset_average_activation_norm.{hook}": np.float32(norm_in(s)) for s, hook in enumerate(hooks)}
    saved(path / "sae_weights.safetensors", {name: np.asarray(value) for name, value in held.items()})
    cfg = {"sae_type": "crosscoder", "d_model": D, "act_fn": "relu", "hook_points": hooks}
    (path / "config.json").write_text(json.dumps(cfg))
    read = load_dictionary(path)
    assert isinstance(read, Crosscoder)
    s = np.array([math.sqrt(D) / norm_in(i) for i in range(L)])
    acts = one_code(w | {"b_enc": b_E.sum(0)}, X * s[:, None, None, None])
    y = np.stack([(acts @ w["W_dec"][:, i] + w["b_dec"][i]) / s[i] for i in range(L)])
    np.testing.assert_allclose(read.encode(torch.from_numpy(X)).dense(), acts, atol=1e-5)
    np.testing.assert_allclose(read(torch.from_numpy(X)), y, atol=2e-5)
    (path / "config.json").write_text(json.dumps(cfg | {"act_fn": "topk"}))
    with pytest.raises(BadFile, match="act_fn 'topk' has other codes at each site; known: relu"):
        load_dictionary(path)


# ---------------------------------------------------------------------- what takes one site


def made(tmp_path: Path) -> list[SeveralSites]:
    return [load_dictionary(GOLDEN), load_dictionary(neel(tmp_path, crosscoder_weights()))]


def test_what_a_dictionary_of_one_site_has_is_there_or_refused(tmp_path):
    shared = {name for name in dir(torch.nn.Module) if not name.startswith("_")}
    public = {name for name in vars(Dictionary) if not name.startswith("_")} - shared
    public |= {"latents", "reconstruction", "error", "input", "observer", "spliced"}
    for several in made(tmp_path):
        for name in public:
            if name in ONE_SITE and name not in vars(type(several)):
                with pytest.raises(
                    BadInput, match=rf"has no '{name}': evaluation, indexes, edits of a latent and sweeps"
                ):
                    getattr(several, name)
            else:
                assert hasattr(several, name), name
        assert not hasattr(several, "no_such_thing")
        with pytest.raises(BadInput, match=r"is a cross.*; this takes a dictionary of one site"):
            one_site(several.folder / "3.pt" if isinstance(several, Crosscoder) else several.folder)


def test_what_only_one_site_is_told_is_refused():
    with pytest.raises(BadFile, match="site is of one site, and this is a cross-layer transcoder of 3; leave it out"):
        load_dictionary(GOLDEN, site="resid_mid.1")
    with pytest.raises(BadFile, match="kind was given, but such a file says all that it needs"):
        load_dictionary(GOLDEN, kind="relu")
    assert load_dictionary(GOLDEN, model_name="gpt2").model_name == "gpt2"


# ---------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("name", ["W_enc_1", "W_dec_2"])
def test_a_layer_that_is_missing_or_damaged_is_named(tmp_path, name):
    path = tracer(tmp_path / "clt", weights())
    file = path / f"{name}.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", whole[:40], whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(BadFile, match=rf"{name}.safetensors is truncated or not a safetensors file"):
            load_dictionary(path)
    held = load_file(tmp_path / "clt" / "W_enc_0.safetensors")
    saved(file, held)
    with pytest.raises(BadFile, match=rf"{name}.safetensors lacks the tensors? {name}"):
        load_dictionary(path)
    file.unlink()
    if name == "W_dec_2":
        with pytest.raises(BadFile, match=rf"{name}.safetensors is missing: .* has layers 0 to 2"):
            load_dictionary(path)
    else:
        with pytest.raises(BadFile, match=rf"{name}.safetensors is missing"):
            load_dictionary(path)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("make", [tracer, gemma])
def test_every_tensor_of_every_wrong_kind_is_one_line_that_names_the_file(tmp_path, monkeypatch, make, large):
    if large:
        monkeypatch.setattr(cross_layer, "IN_MEMORY", 0)
    path = make(tmp_path / "clt", weights())
    for file in sorted(path.glob("*.safetensors")):
        whole = load_file(file)
        for name in whole:
            wrong = [np.ones(shape, np.float32) for shape in ((), (0,), (F + 1,), (D, F + 1), (1, D, F))]
            wrong += [np.full_like(whole[name], value) for value in (math.nan, math.inf, 1e38)]
            for new in wrong:
                save_file(whole | {name: new}, file)
                with pytest.raises(MonosemError) as caught:  # rows of files are looked at when they are read
                    load_dictionary(path).rows(int(file.stem[-1]), range(F))
                message = str(caught.value)
                assert "\n" not in message
                assert file.name in message
        save_file(whole, file)
    load_dictionary(path)


def test_thresholds_in_some_layers_and_a_config_of_something_else(tmp_path):
    path = tracer(tmp_path / "clt", weights(), False)
    held = load_file(path / "W_enc_1.safetensors")
    save_file(held | {"threshold_1": np.ones(F, np.float32)}, path / "W_enc_1.safetensors")
    with pytest.raises(BadFile, match=r"W_enc_1.safetensors has thresholds, and the files of the layers before"):
        load_dictionary(path)
    save_file(held, path / "W_enc_1.safetensors")
    (path / "config.yaml").write_text("model_kind: transcoder_set")
    with pytest.raises(BadFile, match="config.yaml says model_kind 'transcoder_set', and its files a cross-layer"):
        load_dictionary(path)
    (path / "config.yaml").write_text("- 1")
    with pytest.raises(BadFile, match="holds a list, expected a table"):
        load_dictionary(path)


# ---------------------------------------------------------------------- in a model


def of_model(tmp_path: Path, model: Model) -> CrossLayer:
    """A cross-layer transcoder with random weights for a tiny model."""
    rng, layers, d = np.random.default_rng(6), model.cfg.n_layers, model.cfg.d_model
    path = tmp_path / "of_model"
    path.mkdir()
    for i in range(layers):
        saved(
            path / f"W_enc_{i}.safetensors",
            {f"W_enc_{i}": rng.normal(size=(F, d)), f"b_enc_{i}": rng.normal(size=F), f"b_dec_{i}": rng.normal(size=d)},
        )
        saved(path / f"W_dec_{i}.safetensors", {f"W_dec_{i}": rng.normal(size=(F, layers - i, d)) * 0.1})
    return load_dictionary(path)


def test_activations_of_a_run_are_encoded_and_decoded(tmp_path):
    model = tiny_model("llama")
    clt = of_model(tmp_path, model)
    clt.check(model)
    run = model.run(torch.tensor([[1, 5, 3, 2]]), capture=[*clt.sites, *clt.sites_out])
    y = clt({site: run[site] for site in clt.sites})
    assert [part.shape for part in y.values()] == [run[site].shape for site in clt.sites_out]
    with pytest.raises(Mismatch, match="has width 6 at resid_mid.0"):
        load_dictionary(GOLDEN).check(model)


def test_analyses_of_one_site_refuse_several_in_one_line(tmp_path):
    model = tiny_model("llama")
    clt, x = of_model(tmp_path, model), torch.tensor([[1, 5, 3, 2]])
    asked = [
        lambda: evaluate(model, clt, ["one two three"] * 8, context=8),
        lambda: build_index(model, clt, ["a"] * 8, tmp_path / "i.sqlite"),
        lambda: model.run(x, edits=[ms.edits.clamp(clt, 1, 2.0)]),
        lambda: model.run(x, capture=[clt.error]),
        lambda: model.run(x, edits=[ms.edits.splice(clt)]),
        lambda: ms.steering.sweep_latents(model, clt, [1], folder=tmp_path / "sweep"),
    ]
    for ask in asked:
        with pytest.raises(BadInput, match="a cross-layer transcoder of .* take a dictionary of one site") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "i.sqlite").exists()
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_spliced_into_a_model(tmp_path, dtype):
    """Against hooks of PyTorch's own on the bare Hugging Face model, which replace each MLP's output."""
    model = tiny_model("llama")
    clt = of_model(tmp_path, model).to(dtype)
    ids = torch.tensor([[1, 5, 3, 2, 9], [4, 4, 7, 8, 6]])
    seen: list[torch.Tensor] = []

    def reads(module, args):
        seen.append(args[0])

    def writes(layer, module, args, out):
        y = clt.b_dec[layer].float()
        for s in range(layer + 1):
            acts = (seen[s] @ clt.W_enc[s].float() + clt.b_enc[s].float()).relu()
            y = y + acts @ clt.W_dec[s][:, layer - s].float()
        return y

    hooks = []
    for layer, block in enumerate(model.hf.model.layers):
        hooks.append(block.post_attention_layernorm.register_forward_pre_hook(reads))
        hooks.append(block.mlp.register_forward_hook(partial(writes, layer)))
    expected = model.hf(ids).logits
    for hook in hooks:
        hook.remove()
    edits = ms.edits.splice_layers(clt, everywhere=True)
    torch.testing.assert_close(model.run(ids, edits=edits).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected - model.run(ids).logits).abs().max() > 0.1
    usual = model.run(ids, edits=ms.edits.splice_layers(clt), capture=["mlp_out.0"])
    bare = model.run(ids, capture=["mlp_out.0"])
    torch.testing.assert_close(usual["mlp_out.0"][:, 0], bare["mlp_out.0"][:, 0])  # the first token is left out
    assert not torch.allclose(usual["mlp_out.0"][:, 2], bare["mlp_out.0"][:, 2])


def test_spliced_with_a_cache_as_without(tmp_path):
    model = tiny_model("llama")
    edits = ms.edits.splice_layers(of_model(tmp_path, model))
    prompt = torch.tensor([[1, 5, 3, 2]])
    made = model.generate(prompt, max_new_tokens=4, edits=edits, temperature=0.0, stop_at_eos=False)
    whole = torch.tensor([[*prompt[0].tolist(), *made.new[0]]])
    logits = model.run(whole[:, :-1], edits=edits).logits
    assert logits[0, 3:].argmax(-1).tolist() == made.new[0]
    assert made.new != model.generate(prompt, max_new_tokens=4, temperature=0.0, stop_at_eos=False).new


def test_what_is_no_cross_layer_transcoder_is_not_spliced_so(tmp_path):
    with pytest.raises(BadInput, match="takes a cross-layer transcoder, not a Crosscoder"):
        ms.edits.splice_layers(load_dictionary(neel(tmp_path, crosscoder_weights())))
