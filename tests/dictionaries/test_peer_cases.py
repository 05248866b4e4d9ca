"""Files that the peers themselves wrote, against what they compute from them: a choice of them lies in `golden`, all of
them beside the checkout (`../shared/cases/dictionaries`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from monosem.dictionaries import Dictionary, load_dictionary
from monosem.errors import BadFile, BadInput

GOLDEN = Path(__file__).parent / "golden"
CASES = Path(__file__).parents[3] / "shared" / "cases" / "dictionaries"
ALL = {path.name: path for place in (CASES, GOLDEN) for path in sorted(place.glob("*_*")) if path.is_dir()}
CROSS_LAYER = "circuittracer_clt_relu"  # in test_several_sites
# what the peers' own float32 costs; and bfloat16, which the peer computes in
LOOSE = {"saelens_ckpt_whitened_standard": 1e-4, "saelens_final_whitened_standard": 1e-4, "sparsify_bf16": 0.06}


NOT_IN_SAELENS = {"llamascopium_glu", "sparsify_groupmax", "sparsify_skip_transcoder"}  # kinds that it does not have


def test_no_peer_is_left_out():
    if not CASES.is_dir():
        pytest.skip("all of the peers' files lie in ../shared, which is not there: those in golden are read")
    assert len(ALL) >= 32


def numbers(name: str) -> tuple[Path, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The path that is loaded, the input, codes and reconstruction."""
    expected = json.loads((ALL[name] / "expected.json").read_text())
    # dictionary_learning rescales an AutoEncoder when it loads it; here codes are as the file has them
    acts = "acts_as_saved" if name == "dictlearning_AutoEncoder" else "acts"
    return ALL[name] / expected.get("file", ""), *(torch.tensor(expected[key]) for key in ("x", acts, "recon"))


def agrees(dictionary: Dictionary, name: str) -> None:
    _, x, acts, recon = numbers(name)
    tolerance = dict.fromkeys(("atol", "rtol"), LOOSE.get(name, 1e-5))
    codes = dictionary.encode(x)
    ours = codes.dense()
    if name == "llamascopium_topk":  # in the unit of unit decoder rows
        ours = ours / load_file(ALL[name] / "sae_weights.safetensors")["W_D"].norm(dim=-1)
    np.testing.assert_allclose(ours.reshape(acts.shape), acts, **tolerance)
    np.testing.assert_allclose(dictionary.decode(codes, like=x).reshape(recon.shape), recon, **tolerance)
    np.testing.assert_allclose(dictionary(x).reshape(recon.shape), recon, **tolerance)


@pytest.mark.parametrize("name", sorted(ALL.keys() - {CROSS_LAYER}))
def test_the_peers_own_numbers(tmp_path, name):
    dictionary = load_dictionary(numbers(name)[0])
    agrees(dictionary, name)
    agrees(Dictionary(dictionary.parts), name)
    if name.startswith("saelens"):
        assert dictionary.transcoder == ("transcoder" in name)
    if name in NOT_IN_SAELENS:
        with pytest.raises(BadInput, match="SAELens"):
            dictionary.save(tmp_path / "again")
        return
    dictionary.save(tmp_path / "again")  # llamascopium's own to_saelens refuses every SAE
    agrees(load_dictionary(tmp_path / "again"), name)
    assert load_dictionary(tmp_path / "again").transcoder == dictionary.transcoder


def test_a_folder_with_several_layers_names_one():
    with pytest.raises(BadFile, match="holds 2 dictionaries; give one, such as .*layer_0.safetensors"):
        load_dictionary(GOLDEN / "circuittracer_plt_jumprelu")
    read = load_dictionary(GOLDEN / "circuittracer_plt_jumprelu" / "layer_1")
    agrees(read, "circuittracer_plt_jumprelu")
    assert (str(read.site), str(read.site_out), read.model_name) == ("resid_mid.1", "mlp_out.1", "tiny-gpt2")
    assert (read.kind, read.transcoder) == ("jumprelu", True)


@pytest.mark.parametrize(
    ("name", "site", "site_out"),
    [
        ("dictlearning_AutoEncoder", "resid_post.3", "resid_post.3"),
        ("llamascopium_glu", "resid_post.1", "resid_post.1"),
        ("llamascopium_transcoder", "resid_post.1", "mlp_out.1"),
        ("sparsify_groupmax", "mlp_raw.3", "mlp_raw.3"),
        ("sparsify_skip_transcoder", "mlp_input.3", "mlp_raw.3"),
        ("saelens_temporal", "resid_post.1", "resid_post.1"),
    ],
)
def test_where_they_read_and_write(name, site, site_out):
    read = load_dictionary(numbers(name)[0])
    assert (str(read.site), str(read.site_out)) == (site, site_out)
    assert read.metadata["original_form"]
