"""Published dictionaries by name: SAELens' loaders and monosem's on the same files, in a cache of the hub made here.

SAELens states the sizes of some releases in its code; here all are tiny, so it is told the sizes of the tensors.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from monosem.dictionaries import load_dictionary
from monosem.dictionaries.published import Published, named
from monosem.dictionaries.published.registry import dictionaries
from sae_peers import LEARNED, REASON, D, F, K, X, agree, learned

Weights = dict[str, Tensor]
Maker = Callable[[Path, Published], None]
GEMMA = "gemma-scope-2-4b-pt"


def weights(*names: str) -> Weights:
    draw = torch.Generator().manual_seed(2)
    made = {"W_enc": torch.randn(D, F, generator=draw), "b_enc": torch.randn(F, generator=draw)}
    made |= {"W_dec": torch.randn(F, D, generator=draw), "b_dec": torch.randn(D, generator=draw)}
    made["threshold"] = torch.rand(F, generator=draw) + 0.1
    made["W_skip"] = torch.randn(D, D, generator=draw)
    return {name: made[name] for name in (*list(made)[:4], *names)}


def linear(prefix: str = "") -> Weights:
    """As the modules `encoder` and `decoder` of PyTorch hold them."""
    w = weights()
    pairs = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    pairs |= {"decoder.bias": w["b_dec"]}
    return {name.replace(".", f"{prefix}.", 1): tensor.contiguous() for name, tensor in pairs.items()}


# ---------------------------------------------------------------------- one maker of files a layout
def saelens(place: Path, one: Published, **cfg: Any) -> None:
    place.mkdir(parents=True)
    said = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "hook_point": one.id}
    (place / "cfg.json").write_text(json.dumps(said | {"model_name": "gpt2-small"} | cfg))
    save_file(weights(), place / "sae_weights.safetensors")


def gemma_scope(place: Path, one: Published) -> None:
    place.mkdir(parents=True)
    np.savez(place / "params.npz", **{name: tensor.numpy() for name, tensor in weights("threshold").items()})


def gemma_scope_2(place: Path, one: Published) -> None:
    place.mkdir(parents=True)
    affine = ["W_skip"] if "affine" in place.name else []
    held = {name.lower(): tensor for name, tensor in weights("threshold", *affine).items()}
    if affine:
        held["affine_skip_connection"] = held.pop("w_skip").T.contiguous()
    save_file(held, place / "params.safetensors")
    sides = {"resid_post": ("output", None), "attn_out": ("self_attn.o_proj.input", None)}
    norms = ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output")
    read, write = sides.get(place.parent.name.removesuffix("_all"), norms)
    cfg = {"architecture": "jump_relu", "model_name": "gemma-v3-4b-pt", "affine_connection": bool(affine)}
    cfg["hf_hook_point_in"] = f"model.layers.{one.layer}.{read}"
    (place / "config.json").write_text(
        json.dumps(cfg | ({"hf_hook_point_out": f"model.layers.{one.layer}.{write}"} if write else {}))
    )


def llama_scope(place: Path, one: Published) -> None:
    (place / "checkpoints").mkdir(parents=True)
    save_file(linear(), place / "checkpoints" / "final.safetensors")
    said = {"d_model": D, "d_sae": F, "hook_point_in": "blocks.0.hook_attn_out", "jump_relu_threshold": 0.01}
    norm = D**0.5 / (one.scale or 1)
    (place / "hyperparams.json").write_text(
        json.dumps(said | {"dataset_average_activation_norm": {"in": norm, "out": norm}})
    )


def llama_scope_r1(place: Path, one: Published) -> None:
    place.mkdir(parents=True)
    save_file(
        linear() | {"log_jumprelu_threshold": weights("threshold")["threshold"].log()},
        place / "sae_weights.safetensors",
    )
    said = {"d_model": D, "expansion_factor": F // D, "hook_point_in": "blocks.0.hook_resid_post"}
    (place / "config.json").write_text(json.dumps(said))


def one_file(tensors: Weights) -> Maker:
    def make(place: Path, one: Published) -> None:
        place.parent.mkdir(parents=True)
        torch.save(tensors, place)

    return make


def qwen(place: Path, one: Published) -> None:
    draw = torch.Generator().manual_seed(3)
    wide = {"W_enc": torch.randn(80, D, generator=draw), "W_dec": torch.randn(D, 80, generator=draw)}
    one_file(wide | {"b_enc": torch.randn(80, generator=draw), "b_dec": weights()["b_dec"]})(place, one)


def kissane(place: Path, one: Published) -> None:
    one_file(weights())(place, one)
    said = {"act_size": D, "dict_size": F, "act_name": "blocks.0.attn.hook_z"}
    place.with_name(f"{place.stem}_cfg.json").write_text(json.dumps(said))


def hanna(place: Path, one: Published) -> None:
    place.parent.mkdir(parents=True)
    save_file(weights() | {"W_enc": weights()["W_enc"].T.contiguous()}, place)
    wandb = "".join(
        f"{name}:\n  value: {value}\n" for name, value in (("d_model", D), ("d_feature", F), ("batch_size", 8))
    )
    (place.parent / "wandb-config.yaml").write_text(wandb)
    (place.parent / "config.yaml").write_text("model_name: Qwen/Qwen3-4B\n")


V5 = "gpt2-small-resid-post-v5-32k/blocks.3.hook_resid_post"
TOPK = {"activation_fn": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "layer_norm"}
MAKERS: dict[str, Maker] = {
    V5: lambda place, one: saelens(place, one, **TOPK),
    "gemma-2b-res-jb/blocks.0.hook_resid_post": saelens,
    "mistral-7b-res-wg/blocks.8.hook_resid_pre": saelens,
    "gemma-scope-2b-pt-res-canonical/layer_12/width_16k/canonical": gemma_scope,
    "gemma-scope-2b-pt-att-canonical/layer_12/width_16k/canonical": gemma_scope,
    "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6": gemma_scope,
    "gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76": gemma_scope,
    f"{GEMMA}-transcoders-all/layer_0_width_16k_l0_big": gemma_scope_2,
    f"{GEMMA}-transcoders-all/layer_0_width_16k_l0_big_affine": gemma_scope_2,
    f"{GEMMA}-res-all/layer_0_width_16k_l0_big": gemma_scope_2,
    f"{GEMMA}-att-all/layer_0_width_16k_l0_big": gemma_scope_2,
    "llama_scope_lxa_32x/l0a_32x": llama_scope,
    "llama_scope_r1_distill/l0r_800m_slimpajama": llama_scope_r1,
    "qwen-scope-3-1.7b-base-w32k-l50/layer0": qwen,
    "goodfire-llama-3.1-8b-instruct/layer_19": one_file(linear("_linear")),
    "deepseek-r1-distill-llama-8b-qresearch/blocks.19.hook_resid_post": one_file(linear()),
    "gpt2-small-hook-z-kk/blocks.0.hook_z": kissane,
    "mwhanna-qwen3-4b-transcoders/layer_0": hanna,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: Any) -> Callable[[str], Path]:
    """A cache of the hub, for both; where a repository's files lie in it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def at(repo: str) -> Path:
        place = tmp_path / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        return place / "snapshots" / ("0" * 40)

    return at


def theirs(name: str, monkeypatch: Any, hub_file: Path) -> Any:
    """SAELens' dictionary of a name, told the sizes of its tensors."""
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders", reason=REASON)
    from sae_lens import SAE

    monkeypatch.setattr(
        loaders, "get_safetensors_tensor_shapes", lambda *_: {k: list(v.shape) for k, v in load_file(hub_file).items()}
    )
    one = named(name)
    assert one is not None
    loader = loaders.NAMED_PRETRAINED_SAE_LOADERS[loaders.get_conversion_loader_name(one.release)]

    def tiny(**given: Any) -> Any:
        cfg, state, sparsity = loader(**given)
        if one.site_name == "embed":  # it has multiplied by the root of the size that it thinks the model has
            ratio = (cfg["d_in"] / D) ** 0.5
            state |= {"W_enc": state["W_enc"] * ratio, "W_dec": state["W_dec"] / ratio}
        return cfg | {"d_in": state["W_enc"].shape[0], "d_sae": state["W_enc"].shape[1], "d_out": D}, state, sparsity

    return SAE.from_pretrained(one.release, one.id, converter=tiny)


@pytest.mark.parametrize("name", MAKERS)
def test_a_published_dictionary_is_the_same(name: str, hub: Any, monkeypatch: Any) -> None:
    one = named(name)
    assert one is not None
    place = hub(one.repo) / one.path
    MAKERS[name](place, one)
    ours, sae = load_dictionary(name), theirs(name, monkeypatch, place / "params.safetensors")
    x = X / 100 if one.layout == "llama_scope" else X  # so that its threshold matters
    given = x.view(-1, 2, D // 2) if sae.cfg.reshape_activations == "hook_z" else x
    agree(ours, sae.encode(given), sae(given).view(x.shape), x)
    assert (str(ours.site), ours.model_name) == (one.site, one.model)
    assert ours.metadata["sae_id"] == one.id


@pytest.mark.parametrize("kind", LEARNED)
def test_a_published_dictionary_of_dictionary_learning_is_the_same(kind: str, hub: Any, monkeypatch: Any) -> None:
    """All but AutoEncoderNew, whose decoder's bias SAELens does not read."""
    name = "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109/blocks.12.hook_resid_post__trainer_0"
    one = named(name)
    assert one is not None
    peer = learned(kind, hub(one.repo) / one.path)
    ours = load_dictionary(name)
    acts = peer.encode(X)
    agree(ours, acts, peer.decode(acts))
    assert (str(ours.site), ours.model_name) == ("resid_post.12", "google/gemma-2-2b")
    if kind != "AutoEncoderNew":
        sae = theirs(name, monkeypatch, Path())
        agree(ours, sae.encode(X), sae(X))


def test_a_scale_of_the_registry_and_centred_weights(hub: Any, monkeypatch: Any) -> None:
    """SAELens reads a model with centred writing weights; monosem's dictionary takes the mean out itself."""
    name = "gpt2-small-mlp-tm/blocks.1.hook_mlp_out"
    one = named(name)
    assert one is not None
    place = hub(one.repo) / one.path
    saelens(place, one, normalize_activations="expected_average_only_in")
    sae, centred = theirs(name, monkeypatch, Path()), X - X.mean(-1, keepdim=True)
    agree(load_dictionary(name), sae.encode(centred), sae(centred), X)


def test_the_registry_is_saelens_list() -> None:
    """Every fact of it, but for what is corrected and counted (`recipes/registry.py`)."""
    directory = pytest.importorskip("sae_lens.loading.pretrained_saes_directory", reason=REASON)

    differs = []
    for release, listed in directory.get_pretrained_saes_directory().items():
        ours = {one.id: one for one in dictionaries(release)}
        assert list(ours) == list(listed.saes_map)
        for name, path in listed.saes_map.items():
            one = ours[name]
            assert (one.repo, one.path, one.scale) == (listed.repo_id, path, listed.norm_scaling_factor.get(name))
            facts = {"neuronpedia": listed.neuronpedia_id.get(name), "l0": listed.expected_l0[name] or None}
            for fact, theirs in facts.items():
                if getattr(one, fact) != theirs and not (fact == "l0" and theirs is None):
                    differs.append((release, name, fact))
    assert sorted(differs) == [
        ("gemma-scope-9b-pt-res", "layer_2/width_16k/average_l0_8", "neuronpedia"),
        ("gemma-scope-9b-pt-res-canonical", "layer_20/width_524k/canonical", "l0"),
        ("pythia-70m-deduped-res-sm", "blocks.0.hook_resid_pre", "neuronpedia"),
    ]
