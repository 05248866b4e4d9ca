"""Neurons, heads and directions as latents: against what the model's modules compute."""

import numpy as np
import pytest
import torch

from monosem import latents
from monosem.activations import harvest
from monosem.errors import BadInput, MonosemError
from monosem.latents import IndexConfig, build_index, direction_latents, head_latents, neuron_latents
from tiny import model_of
from tiny_latents import MODEL, STORE

TEXTS = STORE
CONFIG = IndexConfig(examples=3, left=4, right=2, band_examples=1)


@pytest.fixture(scope="module")
def captured() -> dict[str, torch.Tensor]:
    run = MODEL.run(STORE[np.arange(len(STORE))], capture=["mlp_post.1", "z.1", "resid_post.1"], logits=False)
    return {site: run[site].float() for site in ("mlp_post.1", "z.1", "resid_post.1")}


def test_a_neuron_has_the_page_of_a_latent(captured, tmp_path):
    reader = neuron_latents(MODEL, 1, [5, 0, 9], active=0.2, texts=TEXTS)
    index = build_index(MODEL, reader, STORE, tmp_path / "i.sqlite", CONFIG, quiet=True)
    acts = captured["mlp_post.1"][..., [5, 0, 9]]
    for latent in range(3):
        data = latents.page(index, latent, model=MODEL).to_json()
        assert data["statistics"]["density"] == pytest.approx(0.2, abs=0.02)
        for example in data["examples"]:
            window = STORE[np.arange(len(STORE))].tolist()
            start = example["position"] - example["anchor"]
            rows = [w for w, ids in enumerate(window) if ids[start : start + len(example["ids"])] == example["ids"]]
            assert any(
                float(acts[w, example["position"], latent]) == pytest.approx(example["maximum"], rel=2e-3) for w in rows
            )
        row = MODEL.W_out[1][[5, 0, 9][latent]]
        said = (MODEL.unembed(100 * row[None, None]) - MODEL.unembed(-100 * row[None, None]))[0, 0]
        best = said.topk(10).indices.tolist()
        assert [one["id"] for one in data["logits"]["promoted"]] == best
    shown = [one["maximum"] for one in latents.page(index, 0).parts["examples"]]
    assert np.abs(shown).tolist() == sorted(np.abs(shown), reverse=True)


def test_a_head_is_read_along_what_it_writes_most(captured):
    reader = head_latents(MODEL, 1, texts=TEXTS)
    counted = torch.cat([b["z.1"] for b in harvest(MODEL, STORE, "z.1")])
    z = counted.view(len(counted), MODEL.cfg.n_heads, -1)
    codes = reader.preactivations(counted)
    for head in range(MODEL.cfg.n_heads):
        written = z[:, head] @ MODEL.W_O[1][head]
        direction = reader.W_dec[head]
        assert float(direction.norm()) == pytest.approx(1, rel=1e-4)
        assert codes[:, head].tolist() == pytest.approx((written @ direction).tolist(), rel=1e-3, abs=1e-4)
        assert float(codes[:, head].mean()) >= 0
        along = float(((written @ direction) ** 2).sum())
        top = float(np.linalg.svd(written.detach().numpy(), compute_uv=False)[0] ** 2)
        assert along == pytest.approx(top, rel=1e-3)


def test_a_direction_is_read_as_a_projection(captured):
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    reader = direction_latents(MODEL, 3 * vectors, "resid_post.1", active=1.0, texts=TEXTS)
    x = captured["resid_post.1"][0, 3:9]
    expected = x @ (vectors / vectors.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(reader.encode(x).dense(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: neuron_latents(MODEL, 9),
        lambda: neuron_latents(MODEL, 1, [48]),
        lambda: neuron_latents(MODEL, 1, active=0.0, texts=TEXTS),
        lambda: direction_latents(MODEL, torch.zeros(2, 32), "resid_post.1"),
        lambda: direction_latents(MODEL, torch.ones(2, 31), "resid_post.1", texts=TEXTS),
        lambda: head_latents(model_of("llama"), 7),
    ],
)
def test_what_cannot_be_read(call):
    with pytest.raises(MonosemError):
        call()


def test_texts_come_with_the_package():
    reader = neuron_latents(MODEL, 0, [1, 2])
    assert (reader.threshold > 0).all()
    with pytest.raises(BadInput, match="share of tokens"):
        neuron_latents(MODEL, 0, [1], active=2.0)
