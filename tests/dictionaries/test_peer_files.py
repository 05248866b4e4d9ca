"""Files that SAELens 6.54.12 wrote, against what SAELens itself computes from them (`golden/*/expected.json`), and what
files say about where a dictionary reads and writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from monosem import edits, latents
from monosem.dictionaries import Dictionary, evaluate, load_dictionary
from monosem.errors import BadFile, BadInput
from monosem.models import Model
from tiny import tiny_hf, tiny_tokenizer
from tiny_saelens import METADATA, OUT, D, F, X, folder, relu, same, topk, weights

TRANSCODER = {"architecture": "transcoder", "apply_b_dec_to_input": False}


def transcoder(path: Path, d_out: int = D, *names: str, **cfg) -> tuple[Dictionary, dict[str, np.ndarray]]:
    w = weights(d_out, *names)
    return load_dictionary(folder(path, w, **{**TRANSCODER, "d_out": d_out, **cfg})), w


# ---------------------------------------------------------------------- what they compute


def gated(subtract: bool, s: float) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Tensors, codes and reconstruction of a gated dictionary whose input is scaled by s."""
    w = weights()
    draw = np.random.default_rng(4)
    own = {name: draw.normal(size=F).astype(np.float32) for name in ("b_gate", "b_mag", "r_mag")}
    product = (X * s - subtract * w["b_dec"]) @ w["W_enc"]
    acts = (product + own["b_gate"] > 0) * relu(product * np.exp(own["r_mag"]) + own["b_mag"])
    return {k: v for k, v in (w | own).items() if k != "b_enc"}, acts, (acts @ w["W_dec"] + w["b_dec"]) / s


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("s", [1, 0.37])
def test_a_gated_encoder_is_a_jumprelu(tmp_path, subtract, s):
    tensors, acts, y = gated(subtract, s)
    norm = "none" if s == 1 else "expected_average_only_in"
    path = folder(
        tmp_path / "g", tensors, architecture="gated", apply_b_dec_to_input=subtract, normalize_activations=norm
    )
    dictionary = load_dictionary(path, norm_scaling_factor=None if s == 1 else s)
    same(dictionary, acts, y)
    assert dictionary.kind == "jumprelu"
    assert (dictionary.threshold < 0).any()  # where the gate opens before the magnitude is positive
    dictionary.save(tmp_path / "again")
    same(load_dictionary(tmp_path / "again"), acts, y)


def test_gated_tensors_are_checked(tmp_path):
    tensors, *_ = gated(True, 1)
    for change, message in (({"r_mag": np.zeros(F + 1, np.float32)}, r"r_mag has shape \[24\]"), ({}, "lacks.*b_gate")):
        held = {k: v for k, v in (tensors | change).items() if change or k != "b_gate"}
        with pytest.raises(BadFile, match=message):
            load_dictionary(folder(tmp_path / "g", held, architecture="gated"))


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("d_out", [D, OUT])
def test_transcoders_do_not_undo_the_normalisation_of_their_input(tmp_path, norm, skip, d_out):
    architecture = "skip_transcoder" if skip else "transcoder"
    read, w = transcoder(
        tmp_path / "t", d_out, *["W_skip"] * skip, architecture=architecture, normalize_activations=norm
    )
    if norm == "layer_norm":
        z = (X - X.mean(-1, keepdims=True)) / (X.std(-1, keepdims=True, ddof=1) + 1e-5)
    else:
        z = X * np.sqrt(D) / np.linalg.norm(X, axis=-1, keepdims=True)
    acts = relu(z @ w["W_enc"] + w["b_enc"])
    y = acts @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if skip else 0)
    read.save(tmp_path / "again")
    for dictionary in (read, load_dictionary(tmp_path / "again")):
        same(dictionary, acts, y)
        x = torch.from_numpy(X).float()
        assert dictionary.token_scale(x) is None  # a decoder row counts once
        if not skip:
            np.testing.assert_allclose(dictionary.decode(dictionary.encode(x)).numpy(), y, atol=1e-4)


# ---------------------------------------------------------------------- where they read and write


@pytest.mark.parametrize("out", [{}, {"hook_name_out": "model.layers.3.weird"}, {"hook_name_out": ["x"]}])
def test_a_transcoder_that_writes_to_an_unknown_place_stays_one(tmp_path, out):
    dictionary, _ = transcoder(tmp_path / "t", metadata=METADATA | out)
    assert str(dictionary.site) == "resid_pre.3"
    dictionary.save(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "cfg.json").read_text())
    assert saved["architecture"] == "transcoder"
    assert saved["metadata"].get("hook_name_out") == out.get("hook_name_out")
    for one in (dictionary, load_dictionary(tmp_path / "again"), Dictionary(dictionary.parts)):
        assert not one.has_site_out
        with pytest.raises(BadInput, match=r"writes is unknown: its file (does not say|says.*not a site).*site_out="):
            _ = one.site_out
    told = load_dictionary(tmp_path / "t", site_out="mlp_out.3")
    assert str(told.site_out) == "mlp_out.3"


def test_what_needs_the_place_says_so_and_what_does_not_works(tmp_path):
    model = Model(tiny_hf("llama"), tiny_tokenizer(), "llama")
    w = {**weights(), "W_enc": weights()["W_enc"][:1].repeat(32, 0), "W_dec": weights()["W_dec"][:, :1].repeat(32, 1)}
    w["b_dec"] = np.zeros(32, np.float32)
    metadata = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "nowhere"}
    path = folder(tmp_path / "t", w, **TRANSCODER, d_in=32, d_out=32, metadata=metadata)
    dictionary = load_dictionary(path)
    ids = torch.randint(4, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    with pytest.raises(BadInput, match="'nowhere'.*site_out="):
        evaluate(model, dictionary, ids, quiet=True)
    with pytest.raises(BadInput, match="'nowhere'.*site_out="):
        model.run("a b c", edits=edits.clamp(dictionary, 1, 3.0))
    assert len(latents.top(model, dictionary, "a good b").table)
    index = latents.build_index(model, dictionary, ids, tmp_path / "index.sqlite", quiet=True)
    assert index.meta["effects"] == "none: where it writes is unknown"


@pytest.mark.parametrize(
    ("hook", "site"),
    [("blocks.3.mlp.hook_in", "mlp_input.3"), ("blocks.3.hook_mlp_in", "ln2_input.3")],
)
def test_the_inputs_of_published_transcoders_are_sites(tmp_path, hook, site):
    metadata = {"hook_name": hook, "hook_name_out": "blocks.3.hook_mlp_out"}
    dictionary, _ = transcoder(tmp_path / "t", metadata=metadata)
    assert (str(dictionary.site), str(dictionary.site_out)) == (site, "mlp_out.3")
    dictionary.save(tmp_path / "again")
    again = load_dictionary(tmp_path / "again")
    assert (str(again.site), str(again.site_out)) == (site, "mlp_out.3")


def test_the_path_of_a_module_counts_before_the_name_of_a_hook(tmp_path):
    """SAELens gives Gemma Scope 2's transcoders hook_mlp_in, before the norm; their input is the norm's output."""
    metadata = {
        "hook_name": "blocks.3.hook_mlp_in",
        "hf_hook_name": "model.layers.3.pre_feedforward_layernorm.output",
        "hook_name_out": "blocks.3.hook_mlp_out",
        "hf_hook_name_out": "model.language_model.layers.3.post_feedforward_layernorm.output",
    }
    dictionary, _ = transcoder(tmp_path / "t", metadata=metadata)
    assert (str(dictionary.site), str(dictionary.site_out)) == ("ln2_output.3", "mlp_out.3")
    load_dictionary(tmp_path / "t", site="mlp_input.3").save(tmp_path / "again")
    assert str(load_dictionary(tmp_path / "again").site) == "mlp_input.3"  # what the caller said, not the old path


# ---------------------------------------------------------------------- files of others


def test_folders_of_others_are_not_taken_for_saelens(tmp_path):
    other = tmp_path / "layers.3"
    other.mkdir()
    (other / "cfg.json").write_text(json.dumps({"activation": "topk", "num_latents": F, "k": 4, "d_in": D}))
    save_file({"encoder.weight": weights()["W_enc"].T.copy()}, other / "sae.safetensors")
    with pytest.raises(BadFile, match="sae.safetensors lacks the tensors encoder.bias"):
        load_dictionary(other)
    shutil.copy(folder(tmp_path / "own", weights()) / "cfg.json", other / "cfg.json")
    save_file(load_file(tmp_path / "own" / "sae_weights.safetensors"), other / "sae_weights.safetensors")
    assert load_dictionary(other).width == F  # SAELens's own file lies there, too


def test_what_a_file_of_an_unknown_tool_holds_is_said(tmp_path):
    torch.save({"weight": torch.zeros(D, F), "scale": 2}, tmp_path / "x.pt")
    with pytest.raises(BadFile, match="not a dictionary in a known format; it holds weight, scale"):
        load_dictionary(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("peer", "config", "told"),
    [
        ("llamascopium_glu", "config.json", r"cfg.json \(SAELens\), or config.json \(llamascopium, whose save_pretr"),
        ("saelens_infer_gated", "cfg.json", r"cfg.json \(SAELens\)"),
        ("sparsify_bf16/layers.3.mlp", "cfg.json", r"cfg.json \(sparsify"),
    ],
)
def test_weights_without_their_config_say_which_is_missing(tmp_path, peer, config, told):
    """llamascopium's own save_pretrained writes none."""
    path = Path(shutil.copytree(Path(__file__).parent / "golden" / peer, tmp_path / "x"))
    (path / config).unlink()
    weights_file = next(path.glob("*.safetensors"))
    for given in (path, weights_file):
        with pytest.raises(BadFile, match=f"lacks the config that belongs beside {weights_file.name}: {told}"):
            load_dictionary(given)


def test_a_part_of_a_folder_or_the_folder_above_says_what_to_give(tmp_path):
    own = folder(tmp_path / "release" / "layer_3", weights())
    folder(tmp_path / "release" / "layer_4", weights())
    for name in ("sae_weights.safetensors", "cfg.json"):
        with pytest.raises(BadFile, match=f"part of a dictionary; give the folder, .*{own.name}$"):
            load_dictionary(own / name)
    with pytest.raises(BadFile, match=f"holds 2 dictionaries; give one, such as .*{own.name}$"):
        load_dictionary(tmp_path / "release")


def test_a_folder_of_pytorch_files_names_one(tmp_path):
    for name in ("0.pt", "1.pt"):
        torch.save({"pre_bias": torch.zeros(D)}, tmp_path / name)
    with pytest.raises(BadFile, match="is a folder of PyTorch files; give one, such as .*0.pt"):
        load_dictionary(tmp_path)


def test_a_folder_of_nemotron_lens_names_a_module(tmp_path):
    """A SAELens folder without a version, whose hook is the path of a module of Hugging Face's model."""
    w = weights(D, "threshold")
    metadata = {"model_name": "nvidia/nemotron", "hook_name": "backbone.layers.2"}
    path = folder(tmp_path / "w23", w, architecture="jumprelu", apply_b_dec_to_input=False, metadata=metadata)
    pre = X @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) * (pre > w["threshold"])
    read = load_dictionary(path)
    same(read, acts, acts @ w["W_dec"] + w["b_dec"])
    assert str(read.site) == "resid_post.2"


@pytest.mark.parametrize("flag", [True, False])
def test_the_flag_of_norms_that_are_one_says_nothing(tmp_path, flag):
    """SAELens folds norms when it exports a topk, and keeps rescale_acts_by_decoder_norm as it was."""
    w = weights()
    w["W_dec"] /= np.linalg.norm(w["W_dec"], axis=1, keepdims=True)
    read = load_dictionary(folder(tmp_path / "f", w, architecture="topk", k=4, rescale_acts_by_decoder_norm=flag))
    acts = topk((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    same(read, acts, acts @ w["W_dec"] + w["b_dec"])
