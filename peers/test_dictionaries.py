"""sae-lens, eai-sparsify, dictionary-learning and circuit-tracer beside monosem: files that one writes and another
reads. Codes and reconstructions agree to 1e-5. `test_published.py` has published dictionaries by name."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem.dictionaries import CrossLayer, Dictionary, DictionaryTensors, load_dictionary
from monosem.dictionaries.several_parts import CrossLayerParts, Facts
from monosem.errors import BadInput
from monosem.models import Site
from sae_peers import LEARNED, REASON, D, F, K, X, agree, learned, random_
from tiny_dictionaries import random_tensors, tiny_dictionary


def tensors(threshold: bool = False, skip: bool = False) -> DictionaryTensors:
    draw = torch.Generator().manual_seed(4)
    made = random_tensors(D, F)
    made = replace(made, W_dec=made.W_dec * (0.3 + 2 * torch.rand(F, 1, generator=draw)))
    made = replace(made, threshold=2 * torch.rand(F, generator=draw) - 0.3 if threshold else None)
    return replace(made, W_skip=torch.randn(D, D, generator=draw) if skip else None)


def transcoder(kind: str = "relu", **more: Any) -> Dictionary:
    made = tensors(kind in ("jumprelu", "jump"), more.pop("skip", False))
    return tiny_dictionary(kind, made, site="ln2_normalized.0", site_out="mlp_out.0", transcoder=True, **more)


# ---------------------------------------------------------------------- sae-lens
OWN = {
    "relu": lambda: tiny_dictionary("relu", tensors()),
    "jumprelu": lambda: tiny_dictionary("jumprelu", tensors(True)),
    "topk": lambda: tiny_dictionary("topk", tensors(), k=K),
    "abstopk": lambda: tiny_dictionary("abstopk", tensors(), k=K),
    "layer norm": lambda: tiny_dictionary("topk", tensors(), k=K, token_norm="layer_norm"),
    "constant norm": lambda: tiny_dictionary("relu", tensors(), token_norm="constant_norm_rescale"),
    "pursuit": lambda: tiny_dictionary(
        "matching_pursuit", tensors(), options={"steps": 4, "tolerance": 1e-2, "stop_at_repeat": True}
    ),
    "transcoder": transcoder,
    "skip": lambda: transcoder(skip=True),
    "jumprelu transcoder": lambda: transcoder("jumprelu"),
    "jumprelu skip": lambda: transcoder("jumprelu", skip=True),
}


@pytest.mark.parametrize("name", OWN)
def test_saelens_reads_what_we_write(name: str, tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason=REASON)
    ours = OWN[name]()
    ours.save(tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    agree(ours, theirs.encode(X), theirs(X))
    assert theirs.cfg.metadata.hook_name == ours.site.hook_name


SAELENS = {
    "standard": {"apply_b_dec_to_input": True},
    "gated": {"apply_b_dec_to_input": True},
    "topk": {"k": K, "rescale_acts_by_decoder_norm": False},
    "topk rescaled": {"k": K, "rescale_acts_by_decoder_norm": True},
    "abstopk": {"k": K, "apply_b_dec_to_input": False},
    "jumprelu": {"normalize_activations": "layer_norm"},
    "matching_pursuit": {"max_iterations": 4},
    "transcoder": {"d_out": 5, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": 5, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"d_out": 5, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"d_out": 5, "apply_b_dec_to_input": False},
}


@pytest.mark.parametrize("name", SAELENS)
def test_we_read_what_saelens_writes(name: str, tmp_path: Path) -> None:
    registry = pytest.importorskip("sae_lens.registry", reason=REASON)
    sae_class, config = registry.get_sae_class(name.split()[0])
    theirs = random_(sae_class(config(d_in=D, d_sae=F, **SAELENS[name])))
    theirs.save_model(str(tmp_path))
    agree(load_dictionary(tmp_path), theirs.encode(X), theirs(X))


# ---------------------------------------------------------------------- eai-sparsify
@pytest.mark.parametrize(
    "ours",
    [
        tiny_dictionary("topk", tensors(), k=K),
        tiny_dictionary("groupmax", tensors(), k=K),
        tiny_dictionary("relu", tensors()),
        transcoder("topk", k=K),
        transcoder("topk", k=K, skip=True),
    ],
    ids=["topk", "groupmax", "relu", "transcoder", "skip"],
)
def test_sparsify_reads_what_we_write(ours: Dictionary, tmp_path: Path) -> None:
    sparsify = pytest.importorskip("sparsify", reason=REASON)
    ours.save(tmp_path / "layers.1.mlp", format="sparsify")
    theirs = sparsify.SparseCoder.load_many(str(tmp_path), local=True)["layers.1.mlp"]
    values, indices, _ = theirs.encode(X)
    agree(ours, torch.zeros(len(X), F).scatter_(1, indices, values), theirs(X).sae_out)


@pytest.mark.parametrize(
    "config",
    [{}, {"activation": "groupmax"}, {"transcode": True}, {"transcode": True, "skip_connection": True}],
    ids=["sae", "groupmax", "transcoder", "skip"],
)
def test_we_read_what_sparsify_writes(config: dict[str, Any], tmp_path: Path) -> None:
    sparsify = pytest.importorskip("sparsify", reason=REASON)
    cfg = sparsify.SparseCoderConfig(num_latents=F, k=K, **config)
    theirs = random_(sparsify.SparseCoder(D, cfg))
    theirs.save_to_disk(tmp_path / "layers.3.mlp")
    ours = load_dictionary(tmp_path / "layers.3.mlp")
    values, indices, _ = theirs.encode(X)
    agree(ours, torch.zeros(len(X), F).scatter_(1, indices, values), theirs(X).sae_out)
    assert str(ours.site) == ("mlp_input.3" if "transcode" in config else "mlp_raw.3")


# ---------------------------------------------------------------------- circuit-tracer
@pytest.mark.parametrize(
    "kind", ["relu", "jumprelu", "jump", "skip"], ids=["relu", "jumprelu", "signed thresholds", "skip"]
)
def test_circuit_tracer_and_we_read_each_other(kind: str, tmp_path: Path) -> None:
    layered = pytest.importorskip("circuit_tracer.transcoder.single_layer_transcoder", reason=REASON)
    ours = transcoder("relu", skip=True) if kind == "skip" else transcoder(kind)
    ours.save(tmp_path / "ours", format="circuit-tracer")
    load = {"lazy_encoder": False, "lazy_decoder": False, "device": torch.device("cpu")}
    hooks = ("ln2.hook_normalized", "hook_mlp_out")
    files = {0: str(tmp_path / "ours" / "layer_0.safetensors")}
    theirs = layered.load_transcoder_set(files, "scan", *hooks, dtype=torch.float32, **load)[0]
    agree(ours, theirs.encode(X), theirs(X))
    (tmp_path / "theirs").mkdir()
    theirs.to_safetensors(str(tmp_path / "theirs" / "layer_0.safetensors"))
    agree(load_dictionary(tmp_path / "theirs" / "layer_0.safetensors"), theirs.encode(X), theirs(X))


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "jump"])
def test_circuit_tracer_and_we_read_each_others_cross_layer_transcoders(kind: str, tmp_path: Path) -> None:
    crossed = pytest.importorskip("circuit_tracer.transcoder.cross_layer_transcoder", reason=REASON)
    layers, draw = 4, torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    sites = ([Site("resid_mid", i) for i in range(layers)], [Site("mlp_out", i) for i in range(layers)])
    ours = CrossLayer(
        CrossLayerParts(
            facts=Facts(kind, *sites),
            W_enc=normal(layers, D, F),
            b_enc=normal(layers, F),
            W_dec=[normal(F, layers - i, D) for i in range(layers)],
            b_dec=normal(layers, D),
            threshold=None if kind == "relu" else normal(layers, F),
        )
    )
    ours.save(tmp_path / "ours")
    x = normal(layers, 9, D)
    for lazy in (True, False):
        there = {"lazy_decoder": lazy, "dtype": torch.float32, "device": torch.device("cpu")}
        theirs = crossed.load_clt(str(tmp_path / "ours"), **there)
        acts = theirs.encode(x)
        torch.testing.assert_close(torch.stack([one.dense() for one in ours.encode(x)]), acts, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(x), theirs.decode(acts.to_sparse()), atol=2e-5, rtol=1e-5)
    theirs.to_safetensors(str(tmp_path / "theirs"))
    torch.testing.assert_close(load_dictionary(tmp_path / "theirs")(x), ours(x), atol=2e-5, rtol=1e-5)


def test_circuit_tracer_refuses_the_config_of_a_topk_cross_layer_transcoder(tmp_path: Path, monkeypatch: Any) -> None:
    """And `load_clt`, which reads no config, makes a relu of its files."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ENABLE_HF_TRANSFER", False, raising=False)  # a name of versions before 1
    crossed = pytest.importorskip("circuit_tracer.transcoder.cross_layer_transcoder", reason=REASON)
    hub = pytest.importorskip("circuit_tracer.utils.hf_utils", reason=REASON)
    layers, draw = 2, torch.Generator().manual_seed(0)
    sites = ([Site("resid_mid", i) for i in range(layers)], [Site("mlp_out", i) for i in range(layers)])
    ours = CrossLayer(
        CrossLayerParts(
            facts=Facts("topk", *sites, k=K),
            W_enc=torch.randn(layers, D, F, generator=draw),
            b_enc=torch.randn(layers, F, generator=draw),
            W_dec=[torch.randn(F, layers - i, D, generator=draw) for i in range(layers)],
            b_dec=torch.randn(layers, D, generator=draw),
        )
    )
    ours.save(tmp_path / "ours")
    import yaml

    config = yaml.safe_load((tmp_path / "ours" / "config.yaml").read_text()) | {"repo_id": str(tmp_path / "ours")}
    with pytest.raises(ValueError, match="Unknown model kind: topk_cross_layer_transcoder"):
        hub.load_transcoders(config, torch.device("cpu"), torch.float32)
    x = torch.randn(layers, 9, D, generator=draw)
    theirs = crossed.load_clt(str(tmp_path / "ours"), dtype=torch.float32, device=torch.device("cpu"))
    relu = torch.stack([(x[i] @ ours.W_enc[i] + ours.b_enc[i]).relu() for i in range(layers)])
    torch.testing.assert_close(theirs.encode(x), relu, atol=1e-5, rtol=1e-5)
    assert max(int(one.l0().max()) for one in ours.encode(x)) <= K < int((relu > 0).sum(-1).max())


def test_circuit_tracer_reads_a_set_that_we_write_layer_by_layer(tmp_path: Path, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ENABLE_HF_TRANSFER", False, raising=False)  # a name of versions before 1
    hub = pytest.importorskip("circuit_tracer.utils.hf_utils", reason=REASON)
    written = []
    for layer in range(3):
        places = {"site": f"ln2_normalized.{layer}", "site_out": f"mlp_out.{layer}", "transcoder": True}
        made = replace(tensors(), b_enc=random_tensors(D, F, seed=layer).b_enc)
        written.append(tiny_dictionary("relu", made, **places))
        written[-1].save(tmp_path, format="circuit-tracer")
    import yaml

    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    paths = [str(tmp_path / f"layer_{layer}.safetensors") for layer in range(3)]
    read = hub.load_transcoders(
        config | {"transcoders": paths}, torch.device("cpu"), torch.float32, lazy_encoder=False, lazy_decoder=False
    )
    assert (read.feature_input_hook, read.feature_output_hook) == ("ln2.hook_normalized", "hook_mlp_out")
    for ours, theirs in zip(written, read, strict=True):
        agree(ours, theirs.encode(X), theirs(X))


# ---------------------------------------------------------------------- dictionary-learning
@pytest.mark.parametrize("name", LEARNED)
def test_we_read_what_dictionary_learning_writes(name: str, tmp_path: Path) -> None:
    theirs = learned(name, tmp_path / "trainer_0")
    ours = load_dictionary(tmp_path / "trainer_0")
    acts = theirs.encode(X)
    agree(ours, acts, theirs.decode(acts))
    assert str(ours.site) == "resid_post.12"


def test_a_format_that_loses_something_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="circuit-tracer has no architecture for a topk"):
        transcoder("topk", k=K).save(tmp_path, format="circuit-tracer")
