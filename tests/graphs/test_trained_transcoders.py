"""Transcoders of a real small model, trained on its own stories, and their graph beside the neurons' graph."""

import pytest
import torch

from monosem import graphs
from monosem.activations import harvest
from monosem.dictionaries import load_dictionary
from monosem.dictionaries.training import SeveralConfig, train_several
from stories import FILE, stories, written

LAYERS, WIDTH = 5, 256

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="needs stories260K")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("plt"), stories()
    windows = written(model, 96, 128)
    each = {f"layer{n}": {"site": f"mlp_input.{n}", "site_out": f"mlp_out.{n}"} for n in range(LAYERS)}
    config = SeveralConfig.parse(
        {"model": "stories260K", "dictionaries": each, "kind": "batchtopk", "width": WIDTH, "k": 32, "lr": 5e-3}
        | {"batch_tokens": 512, "tokens": 60_000, "log_every": 50, "context": 128, "batch_size": 8, "device": "cpu"}
    )
    train_several(config, folder=folder, model=model, texts=windows, quiet=True)
    return model, [load_dictionary(folder / f"layer{n}") for n in range(LAYERS)]


def test_they_rebuild_what_mlps_do_on_new_stories(trained):
    model, transcoders = trained
    sites = [site for one in transcoders for site in (one.site, one.site_out)]
    (rows,) = harvest(model, written(model, 8, 128, seed=1), sites, batch_size=8)
    for one in transcoders:
        x, y = rows[one.site], rows[one.site_out]
        fve = 1 - (y - one(x)).square().sum() / (y - y.mean(0)).square().sum()
        assert fve > 0.3


def test_their_graph_agrees_with_the_neurons(trained):
    """Both add up exactly, to the same logits; by both, tokens matter alike."""
    model, transcoders = trained
    story = written(model, 1, 14, seed=5)
    neurons = graphs.attribution_graph(model, story, n_nodes=5000, quiet=True)
    latents = graphs.attribution_graph(model, story, transcoders, n_nodes=5000, quiet=True)
    assert neurons.error < 1e-4
    assert latents.error < 1e-4
    torch.testing.assert_close(neurons.sums[neurons.logit_rows], latents.sums[latents.logit_rows], rtol=1e-4, atol=1e-4)
    straight = [one.edges[-1][torch.tensor(one.kinds == "token")] for one in (neurons, latents)]
    torch.testing.assert_close(*straight, rtol=1e-4, atol=1e-4)  # from tokens to logits, past all MLPs
    assert set(latents.nodes.kind) == {"latent", "error", "token", "bias", "logit"}
    assert 0.3 < latents.replacement <= 1
    random = [type(one)(one.parts) for one in transcoders]
    for one in random:
        one.W_enc.copy_(torch.randn_like(one.W_enc) * one.W_enc.std())
    untrained = graphs.attribution_graph(model, story, random, n_nodes=5000, quiet=True)
    assert untrained.error < 1e-4
    assert latents.replacement > untrained.replacement + 0.1
    assert latents.completeness > untrained.completeness
    shares = [one.influence[torch.tensor(one.kinds == "token")] for one in (neurons, latents)]
    assert float(torch.corrcoef(torch.stack(shares))[0, 1]) > 0.4
