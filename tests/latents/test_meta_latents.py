"""Rows that are sums of two atoms: the meta-SAE of these atoms names both; parts add up to the row."""

import pytest
import torch

from monosem.dictionaries import DictionaryTensors
from monosem.errors import Mismatch, UnknownName
from monosem.latents import meta_latents
from tiny_dictionaries import random_tensors, tiny_dictionary, with_rows

PAIRS = [(0, 1), (2, 3), (0, 4), (5, 1)]


def planted():
    rows = torch.zeros(4, 8)
    for at, (i, j) in enumerate(PAIRS):
        rows[at, i], rows[at, j] = 3.0, 4.0
    sae = with_rows(rows, "sae")
    eye = torch.eye(8)
    tensors = DictionaryTensors(eye, torch.full((8,), -0.1), eye, torch.zeros(8))
    return sae, tiny_dictionary("relu", tensors, name="meta", site="resid_post.0", metadata={"meta_of": "sae"})


def test_a_row_of_two_atoms_is_its_two_meta_latents():
    sae, meta = planted()
    found = meta_latents(sae, meta)
    assert [(row.latent, row.meta) for row in found.table.itertuples()] == [
        (at, atom) for at, (i, j) in enumerate(PAIRS) for atom in (j, i)
    ]
    assert found.of(0)["activation"].tolist() == pytest.approx([0.8 - 0.1, 0.6 - 0.1])
    assert found.of(0)["given"].tolist() == pytest.approx([0.7 * 0.8, 0.5 * 0.6])
    assert found.sharing(0)["latent"].tolist() == [0, 2]
    assert found.sharing(1)["latent"].tolist() == [0, 3]
    rows = torch.stack([torch.tensor([0.6 * (k == i) + 0.8 * (k == j) for k in range(8)]) for i, j in PAIRS])
    spread = (rows[2] - rows.mean(0)).square().sum()
    assert found.explained[2] == pytest.approx(1 - 2 * 0.1**2 / float(spread), rel=1e-4)
    assert meta_latents(sae, meta, 2).table.equals(found.of(2))


def test_parts_bias_and_error_add_up_to_one():
    draw = torch.Generator().manual_seed(0)
    sae = with_rows(torch.randn(20, 32, generator=draw), "sae", site="resid_post.1")
    meta = tiny_dictionary("topk", random_tensors(d=32, width=40))
    found = meta_latents(sae, meta, [3, 7])
    for latent in (3, 7):
        row = sae.W_dec[latent] / sae.W_dec[latent].norm()
        error = float((row - meta(row[None])[0]) @ row)
        assert found.of(latent)["given"].sum() + found.bias[latent] + error == pytest.approx(1, abs=1e-4)
        assert len(found.of(latent)) == 6


def test_a_meta_sae_of_another_space_is_said():
    sae, meta = planted()
    with pytest.raises(Mismatch, match="meta_of='sae'"):
        meta_latents(sae, tiny_dictionary("topk", random_tensors(d=32)))
    with pytest.raises(Mismatch, match="resid_post.1"):
        meta_latents(sae, tiny_dictionary("topk", random_tensors(d=8)))
    with pytest.raises(UnknownName):
        meta_latents(sae, meta, [4])
