"""Published dictionaries: what the registry says, and loading by name from a hub that is a folder.

The facts here were read in SAELens 6.54.12's own list; `make test-peers` compares all of it.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from monosem.dictionaries import load_dictionary, releases, shipped_dictionaries
from monosem.dictionaries.published import Published, named
from monosem.dictionaries.published.registry import FILE
from monosem.errors import BadInput, UnknownName
from tiny_saelens import METADATA, D, X, folder, relu, same, weights

COMMIT = "0" * 40
FLAT = {"metadata": None, "hook_point": "blocks.3.hook_resid_pre", "model_name": "gpt2-small"}
JB = "gpt2-small-res-jb/blocks.3.hook_resid_pre"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, no network, and where a repository's files lie in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def at(repo: str) -> Path:
        place = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(COMMIT)
        return place / "snapshots" / COMMIT

    return at


def saelens(path: Path, **cfg) -> dict[str, np.ndarray]:
    """A folder as SAELens wrote it before version 6: flat, saying nothing of the model's processing."""
    w = weights()
    folder(path, w, **cfg)
    flat = json.loads((path / "cfg.json").read_text()) | FLAT
    (path / "cfg.json").write_text(json.dumps({key: value for key, value in flat.items() if value is not None}))
    return w


def codes(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])


# ---------------------------------------------------------------------- what there is

FACTS = [
    Published(
        "gpt2-small-res-jb",
        "jbloom/GPT2-Small-SAEs-Reformatted",
        "gpt2",
        "saelens",
        "blocks.3.hook_resid_pre",
        "blocks.3.hook_resid_pre",
        site_name="resid_pre",
        layer=3,
        width=24576,
        l0=23.0,
        neuronpedia="gpt2-small/3-res-jb",
        overrides={"model_from_pretrained_kwargs": {"center_writing_weights": True}},
    ),
    Published(
        "gemma-scope-2b-pt-res-canonical",
        "google/gemma-scope-2b-pt-res",
        "google/gemma-2-2b",
        "gemma_scope",
        "layer_12/width_16k/canonical",
        "layer_12/width_16k/average_l0_82",
        site_name="resid_post",
        layer=12,
        width=16384,
        l0=82,
        neuronpedia="gemma-2-2b/12-gemmascope-res-16k",
    ),
    Published(
        "gemma-scope-2-4b-pt-transcoders-all",
        "google/gemma-scope-2-4b-pt",
        "google/gemma-3-4b-pt",
        "gemma_scope_2",
        "layer_10_width_262k_l0_small_affine",
        "transcoder_all/layer_10_width_262k_l0_small_affine",
        site_name="ln2_output",
        site_out_name="mlp_out",
        layer=10,
        width=262144,
        l0=18,
    ),
    Published(
        "llama_scope_lxa_32x",
        "fnlp/Llama3_1-8B-Base-LXA-32x",
        "meta-llama/Llama-3.1-8B",
        "llama_scope",
        "l0a_32x",
        "Llama3_1-8B-Base-L0A-32x",
        site_name="attn_out",
        layer=0,
        width=131072,
        l0=50,
        neuronpedia="llama3.1-8b/0-llamascope-att-131k",
        scale=112.21917808219177,
    ),
]


@pytest.mark.parametrize("fact", FACTS, ids=lambda one: one.release)
def test_the_registry_has_the_facts(fact):
    assert named(fact.name) == fact
    assert fact in releases(model=fact.model, site=fact.site, width=fact.width, release=fact.release).dictionaries


def test_all_of_them_are_there_and_the_file_is_small():
    every = [one for one in releases() if one.layout != "shipped"]
    listed = [one for one in every if "/" not in one.release]
    assert (len({one.release for one in listed}), len(listed)) == (170, 13857)
    assert len({one.name for one in every}) == len(every)
    assert FILE.stat().st_size < 100_000
    assert not [one.name for one in listed if one.site is None]


def test_what_saelens_has_wrong_is_right():
    """Its transcoders of Gemma Scope 2 read before the norm, and its attention dictionaries a z that is not flat."""
    second = releases(release="gemma-scope-2-")
    places = Counter((one.path.split("/")[0].removesuffix("_all"), one.site_name, one.site_out_name) for one in second)
    assert places == {
        ("transcoder", "ln2_output", "mlp_out"): 3576,
        ("attn_out", "z", None): 1580,
        ("resid_post", "resid_post", None): 2024,
        ("mlp_out", "mlp_out", None): 1604,
    }
    assert {one.model for one in releases(release="gemma-scope-9b-it-res")} == {"google/gemma-2-9b-it"}
    mistaken = named("gemma-scope-9b-pt-res/layer_2/width_16k/average_l0_8")
    assert mistaken is not None
    assert mistaken.neuronpedia is None  # SAELens: layer 20's
    wide = named("gemma-scope-9b-pt-res-canonical/layer_20/width_524k/canonical")
    assert wide is not None
    assert (wide.l0, wide.path) == (48, "layer_20/width_524k/average_l0_48")  # SAELens: 78


def test_filters():
    found = releases(model="gemma-2-2b", site="resid_post", layer=12, width="16k")
    assert {(one.model, one.site, one.width) for one in found} == {("google/gemma-2-2b", "resid_post.12", 16384)}
    assert found.names == releases(model="google/gemma-2-2b", site="blocks.12.hook_resid_post", width=16384).names
    table = found.by_release.set_index("release")
    assert table.loc["gemma-scope-2b-pt-res", "dictionaries"] == 5
    assert list(found.table["name"]) == found.names
    assert found.config["analysis"] == "dictionaries.releases"
    assert len(releases(width="1m")) == len(releases(width=2**20)) > 0
    assert len(releases(model="gpt2", width="1m")) == 0
    assert releases(model="smollm2", site="resid_post", layer=15).names == ["smollm2/resid_post.15"]
    assert set(releases(model="smollm2").names) == set(shipped_dictionaries())
    models = releases().by_model.set_index("model")
    assert models["dictionaries"].sum() == len(releases())
    with pytest.raises(UnknownName, match="did you mean 'gemma-2-9b' or 'gemma-2-2b'"):
        releases(model="gemma-2-3b")
    with pytest.raises(UnknownName, match="did you mean 'resid_post'"):
        releases(site="resid_pots")
    with pytest.raises(UnknownName, match="no published release whose name holds 'gemma-scoop'"):
        releases(release="gemma-scoop")
    with pytest.raises(BadInput, match="16384, 16k or 1m"):
        releases(width="wide")
    with pytest.raises(BadInput, match="is at layer 12, and layer 3"):
        releases(site="resid_post.12", layer=3)


# ---------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    "name",
    [
        JB,
        "neuronpedia:gpt2-small/3-res-jb",
        "gpt2-small/3-res-jb",
        "https://www.neuronpedia.org/gpt2-small/3-res-jb/123",
        "jbloom/GPT2-Small-SAEs-Reformatted/blocks.3.hook_resid_pre",
    ],
)
def test_every_name_loads_the_same_dictionary(hub, name):
    w = saelens(hub("jbloom/GPT2-Small-SAEs-Reformatted") / "blocks.3.hook_resid_pre")
    read = load_dictionary(name)
    centred = X - X.mean(
        -1, keepdims=True
    )  # trained on a model with centred writing weights, which its file leaves out
    acts = codes(w, centred)
    same(read, acts, acts @ w["W_dec"] + w["b_dec"])
    assert (str(read.site), read.model_name, read.name) == ("resid_pre.3", "gpt2", JB)
    facts = {
        "release": "gpt2-small-res-jb",
        "sae_id": "blocks.3.hook_resid_pre",
        "neuronpedia_id": "gpt2-small/3-res-jb",
    }
    assert facts.items() <= read.metadata.items()
    read.save(hub("mine") / "again")
    assert facts.items() <= load_dictionary(hub("mine") / "again").metadata.items()


def test_the_scale_that_only_the_registry_knows(hub):
    name = "gpt2-small-mlp-tm/blocks.1.hook_mlp_out"
    place = hub("tommmcgrath/gpt2-small-mlp-out-saes") / "sae_group_gpt2_blocks.1.hook_mlp_out_24576:v0"
    w = saelens(place, normalize_activations="expected_average_only_in")
    s = 2.3693984005104283
    acts = codes(w, s * (X - X.mean(-1, keepdims=True)))
    y = (acts @ w["W_dec"] + w["b_dec"]) / s
    same(load_dictionary(name), acts, y)
    other = load_dictionary(name, norm_scaling_factor=1.0)  # what the caller says counts
    assert np.abs(other.W_enc.numpy() * s - load_dictionary(name).W_enc.numpy()).max() < 1e-5
    saelens(place)  # SAELens gives the scale and its file needs none: it is left alone
    acts = codes(w, X - X.mean(-1, keepdims=True))
    same(load_dictionary(name), acts, acts @ w["W_dec"] + w["b_dec"])


def test_a_normalisation_that_only_the_registry_knows(hub):
    w = saelens(hub("JoshEngels/Mistral-7B-Residual-Stream-SAEs") / "mistral_7b_layer_8")
    read = load_dictionary("mistral-7b-res-wg/blocks.8.hook_resid_pre")
    scale = np.linalg.norm(X, axis=-1, keepdims=True) / np.sqrt(D)
    acts = codes(w, X / scale)
    same(read, acts, (acts @ w["W_dec"] + w["b_dec"]) * scale)
    assert read.model_name == "mistralai/Mistral-7B-v0.1"


def test_a_folder_of_sparsify_says_too_little_and_the_registry_knows(hub):
    name = "EleutherAI/skip-transcoder-Llama-3.2-1B-131k/layers.3.mlp"
    peer = Path(__file__).parent / "golden" / "sparsify_skip_transcoder"
    shutil.copytree(peer / "layers.3.mlp", hub("EleutherAI/skip-transcoder-Llama-3.2-1B-131k") / "layers.3.mlp")
    read, expected = load_dictionary(name), json.loads((peer / "expected.json").read_text())
    np.testing.assert_allclose(read(torch.tensor(expected["x"])), expected["recon"], atol=1e-5)
    assert (str(read.site), str(read.site_out), read.model_name) == (
        "mlp_input.3",
        "mlp_raw.3",
        "meta-llama/Llama-3.2-1B",
    )


def test_the_scale_of_the_r1_release_is_in_the_registry_alone(hub):
    w = weights(D, "threshold")
    place = hub("fnlp/Llama-Scope-R1-Distill") / "800M-Slimpajama-0-OpenR1-Math-220k" / "L1R"
    place.mkdir(parents=True)
    named_ = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    named_ |= {"decoder.bias": w["b_dec"], "log_jumprelu_threshold": np.log(w["threshold"])}
    save_file({key: np.ascontiguousarray(value) for key, value in named_.items()}, place / "sae_weights.safetensors")
    said = {"d_model": D, "expansion_factor": 4, "hook_point_in": "blocks.1.hook_resid_post"}
    (place / "config.json").write_text(json.dumps(said))
    name, s = "llama_scope_r1_distill/l1r_800m_slimpajama", 37.07457226753229
    pre = s * X @ w["W_enc"] + w["b_enc"]
    acts = relu(pre) * (pre > w["threshold"])
    same(load_dictionary(name), acts, (acts @ w["W_dec"] + w["b_dec"]) / s)
    assert load_dictionary(name).model_name == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


def test_only_what_is_needed_is_fetched(hub, monkeypatch):
    asked = []
    real = huggingface_hub.hf_hub_download

    def download(repo, file):
        asked.append((repo, file))
        return real(repo, file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    place = hub("jbloom/GPT2-Small-SAEs-Reformatted") / "blocks.3.hook_resid_pre"
    saelens(place)
    (place / "sparsity.safetensors").write_bytes(b"not needed")
    load_dictionary(JB)
    repo = "jbloom/GPT2-Small-SAEs-Reformatted"
    assert asked == [(repo, f"blocks.3.hook_resid_pre/{name}") for name in ("cfg.json", "sae_weights.safetensors")]


def test_what_the_caller_says_counts(hub):
    saelens(hub("jbloom/GPT2-Small-SAEs-Reformatted") / "blocks.3.hook_resid_pre")
    read = load_dictionary(JB, site="resid_post.2", model_name="mine")
    assert (str(read.site), read.model_name) == ("resid_post.2", "mine")


def test_a_path_counts_before_a_published_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "gpt2-small" / "3-res-jb", weights(), metadata=METADATA | {"hook_name": "blocks.7.hook_mlp_out"})
    assert str(load_dictionary("gpt2-small/3-res-jb").site) == "mlp_out.7"
    with pytest.raises(UnknownName, match="gpt2-small-res-jb"):
        load_dictionary("neuronpedia:gpt2-small/3-res-jb")


# ---------------------------------------------------------------------- what does not work


@pytest.mark.parametrize(
    ("name", "command", "call"),
    [
        (
            "gemma-2-2b/12-gemmascope-res-16k",
            "hf download google/gemma-scope-2b-pt-res layer_12/width_16k/average_l0_82/params.npz;",
            "load_dictionary('DIR/layer_12/width_16k/average_l0_82', site='resid_post.12', "
            "model_name='google/gemma-2-2b')",
        ),
        (JB, "blocks.3.hook_resid_pre/cfg.json blocks.3.hook_resid_pre/sae_weights.safetensors;", None),
        (
            "llama_scope_lxa_32x/l0a_32x",
            "hf download fnlp/Llama3_1-8B-Base-LXA-32x Llama3_1-8B-Base-L0A-32x/hyperparams.json "
            "Llama3_1-8B-Base-L0A-32x/checkpoints/final.safetensors;",
            "load_dictionary('DIR/Llama3_1-8B-Base-L0A-32x', site='attn_out.0'",
        ),
        (
            "gpt2-small-hook-z-kk/blocks.0.hook_z",
            "gpt2-small_L0_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9_cfg.json;",
            "site='z.0'",
        ),
        (
            "gpt2-small-mlp-tm/blocks.1.hook_mlp_out",
            "hf download tommmcgrath/gpt2-small-mlp-out-saes "
            "'sae_group_gpt2_blocks.1.hook_mlp_out_24576:v0/cfg.json' '",
            None,
        ),
    ],
)
def test_without_a_network_it_says_what_to_do(hub, name, command, call):
    with pytest.raises(UnknownName, match="switched off by HF_HUB_OFFLINE, and its cache lacks this") as caught:
        load_dictionary(name)
    message = str(caught.value)
    assert command in message
    assert (call is None and "--local-dir" not in message) or (call or "?") in message
    assert "\n" not in message


def test_names_that_are_nearly_right():
    with pytest.raises(UnknownName, match=r"none of them 'blocks.30.hook_resid_pre'; did you mean 'blocks.3.hook"):
        load_dictionary("gpt2-small-res-jb/blocks.30.hook_resid_pre")
    with pytest.raises(UnknownName, match=r"has 13 dictionaries, give one; such as blocks.0.hook_resid_pre"):
        load_dictionary("gpt2-small-res-jb")
    with pytest.raises(UnknownName, match="did you mean 'gemma-2-2b/12-gemmascope-res-16k'"):
        load_dictionary("neuronpedia:gemma-2-2b/12-gemmascope-res-17k")


def test_one_layer_of_a_cross_layer_transcoder_is_refused_before_it_is_fetched():
    """SAELens sums the decoders of a layer, which reconstructs nothing."""
    told = r"whose latents write to all later layers, too; load_dictionary\('mntss/clt-gemma-2-2b-2.5M'\) reads all"
    with pytest.raises(UnknownName, match=told):
        load_dictionary("mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_3")


def test_terms_that_are_not_accepted(monkeypatch):
    class GatedRepoError(Exception):
        pass

    def refuse(*_):
        raise GatedRepoError("403")

    monkeypatch.setattr("monosem.hub.silence", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UnknownName, match=r"accepted at https://huggingface.co/google/gemma-scope-2b-pt-res; then: hf"):
        load_dictionary("gemma-2-2b/12-gemmascope-res-16k")


# ---------------------------------------------------------------------- any repository
@pytest.fixture
def online(hub, monkeypatch):
    """A hub with a network: it lists `files` of every repository, and keeps what is asked for."""
    site = SimpleNamespace(files=[], asked=[], at=hub)

    def download(repo, file):
        site.asked.append(file)
        return str(hub(repo) / file)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: site.files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return site


def test_a_folder_of_any_repository(online):
    folder(online.at("some/saes") / "a" / "layer_3", weights())
    other = ["sparsity.safetensors", "trainer_state.pt", "optimizer.pt", "checkpoints/step_9/sae_weights.safetensors"]
    online.files = ["README.md", *(f"a/layer_3/{name}" for name in ("cfg.json", "sae_weights.safetensors", *other))]
    assert str(load_dictionary("some/saes/a/layer_3").site) == "resid_pre.3"
    assert sorted(online.asked) == ["a/layer_3/cfg.json", "a/layer_3/sae_weights.safetensors"]


def test_a_repository_that_is_one_dictionary(online):
    folder(online.at("some/sae"), weights())
    online.files = [".gitattributes", "README.md", "cfg.json", "sae_weights.safetensors"]
    assert str(load_dictionary("some/sae").site) == "resid_pre.3"
    assert "README.md" not in online.asked


def test_a_file_of_any_repository_comes_with_the_configs_beside_it(online):
    peer = Path(__file__).parent / "golden" / "circuittracer_plt_jumprelu"
    place = online.at("some/set") / "b"
    place.mkdir(parents=True)
    for name in ("config.yaml", "layer_1.safetensors"):
        shutil.copy(peer / name, place / name)
    online.files = ["b/config.yaml", "b/layer_0.safetensors", "b/layer_1.safetensors", "config.yaml"]
    assert str(load_dictionary("some/set/b/layer_1.safetensors").site) == "resid_mid.1"
    assert online.asked == ["b/layer_1.safetensors", "b/config.yaml"]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("some/saes", ["x/cfg.json", "x/sae.safetensors", "y/sae.safetensors"], "has 2 folders; give one, .*saes/x$"),
        ("some/saes/a", ["a/x/1/params.npz", "a/x/2/params.npz", "b/params.npz"], "a has 2 folders.*saes/a/x/1$"),
        ("some/saes", ["layer0.sae.pt", "layer1.sae.pt"], "has 2 files of weights; give one, such as some/saes/layer0"),
        ("some/saes/z", ["x/cfg.json"], "the hub repository some/saes has no 'z'"),
        ("some/saes/x", ["x/cfg.json"], "some/saes/x holds no weights: cfg.json"),
    ],
)
def test_of_a_collection_nothing_is_fetched(online, name, files, message):
    online.files = files
    with pytest.raises(UnknownName, match=message):
        load_dictionary(name)
    assert online.asked == []


def test_without_a_network_a_repository_is_found_in_the_cache(hub):
    folder(hub("some/saes") / "layer_3", weights())
    assert str(load_dictionary("some/saes/layer_3").site) == "resid_pre.3"
    with pytest.raises(UnknownName, match="has no 'layer_4'"):
        load_dictionary("some/saes/layer_4")
    with pytest.raises(UnknownName) as caught:
        load_dictionary("other/saes/layer_3")
    assert "hf download other/saes --include 'layer_3/*' --local-dir DIR, then load_dict" in str(caught.value)
    assert "(it is switched off by HF_HUB_OFFLINE, and its cache lacks this)" in str(caught.value)


# ---------------------------------------------------------------------- cross-layer transcoders
CLT = "mntss/clt-gemma-2-2b-426k"


def cross_layer(path: Path) -> list[str]:
    path.mkdir(parents=True)
    for i in range(2):
        w = weights()
        held = {f"W_enc_{i}": w["W_enc"].T.copy(), f"b_enc_{i}": w["b_enc"], f"b_dec_{i}": w["b_dec"]}
        save_file(held, path / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": np.stack([w["W_dec"]] * (2 - i), 1)}, path / f"W_dec_{i}.safetensors")
    (path / "config.yaml").write_text("model_kind: cross_layer_transcoder\nmodel_name: google/gemma-2-2b\n")
    (path / "features.bin").write_bytes(b"")
    return sorted(one.name for one in path.iterdir())


def test_a_cross_layer_transcoder_from_the_cache(hub):
    cross_layer(hub(CLT))
    read = load_dictionary(CLT)
    assert (read.name, read.model_name, read.n_layers) == (CLT, "google/gemma-2-2b", 2)
    w = weights()
    x = torch.from_numpy(np.stack([X, X + 1])).float()
    acts = relu(X @ w["W_enc"] + w["b_enc"])
    np.testing.assert_allclose(read.encode(x)[0].dense(), acts, atol=1e-5)
    np.testing.assert_allclose(read(x)[0], acts @ w["W_dec"] + w["b_dec"], atol=1e-4)


def test_of_a_cross_layer_transcoder_all_layers_are_fetched_and_nothing_else(online):
    online.files = cross_layer(online.at(CLT))
    assert load_dictionary(CLT).metadata["release"] == CLT
    assert set(online.asked) == {*online.files} - {"features.bin"}


def test_without_a_network_a_cross_layer_transcoder_says_what_to_do(hub):
    told = (
        f"run: hf download {CLT} --include 'W_enc_[*].safetensors' --include 'W_dec_[*].safetensors' --include config"
    )
    with pytest.raises(UnknownName, match=told):
        load_dictionary(CLT)
