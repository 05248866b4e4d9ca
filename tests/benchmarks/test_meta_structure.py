"""Meta-structure: decoder rows that are made of ten atoms are explained, random rows are not."""

import json
import math
from pathlib import Path

import pytest
import torch

from monosem.benchmarks import DICTIONARY, RANDOM
from monosem.benchmarks.meta_structure import (
    COVARIANCE,
    MetaStructureConfig,
    RowStream,
    meta_structure,
    row_fve,
    saebench_fve,
)
from monosem.covariance import same_covariance
from monosem.dictionaries import DictionaryTensors
from monosem.errors import BadInput
from tiny import tiny_model
from tiny_dictionaries import tiny_dictionary

HELD = json.loads((Path(__file__).parent / "golden" / "saebench_ravel_unlearning.json").read_text())["meta"]


def test_fve_of_rows_is_that_of_saebench():
    rows = torch.tensor(HELD["rows"])
    rebuilt = rows * 0.8 + 0.05
    assert saebench_fve(rows, rebuilt) == pytest.approx(HELD["out"], abs=1e-6)
    assert row_fve(rows, rebuilt).value == pytest.approx(HELD["out"][0], abs=1e-6)
    flat = torch.ones(4, 3)
    assert saebench_fve(flat, flat * 0.8 + 0.05) == pytest.approx(HELD["constant"], abs=1e-6)
    assert math.isnan(row_fve(flat, flat * 0.8).value)  # no variance: theirs says 0


def test_random_rows_have_the_same_mean_and_covariance():
    rows = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[3.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0.2, 0], [0, 0, 0.5, 1]]
    ) + torch.tensor([1.0, 2, 3, 4])
    other = same_covariance(rows, 1)
    assert torch.allclose(other.mean(0), rows.mean(0), atol=0.25)
    assert torch.allclose(other.T.cov(), rows.T.cov(), atol=0.8, rtol=0.1)
    assert not torch.allclose(other, rows)


def test_a_stream_gives_every_row_once_a_turn_and_goes_on_from_its_state():
    stream = RowStream(torch.arange(10.0)[:, None], 4, seed=0)
    served = torch.cat([next(stream) for _ in range(5)]).flatten().tolist()
    assert sorted(served[:10]) == sorted(served[10:]) == list(range(10))
    assert served[:10] != served[10:]
    other = RowStream(torch.arange(10.0)[:, None], 4, seed=0)
    other.load_state_dict({"served": 2})
    assert next(other).flatten().tolist() == served[8:12]
    assert stream.state_dict() == {"served": 5}


def test_rows_of_ten_atoms_are_explained_and_random_rows_are_not():
    draw = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(10, 32, generator=draw), dim=1)
    weights = torch.zeros(400, 10)
    for row in weights:
        row[torch.randperm(10, generator=draw)[:3]] = 0.5 + torch.rand(3, generator=draw)
    W_dec = weights @ atoms
    sae = tiny_dictionary("relu", DictionaryTensors(W_dec.T.clone(), torch.zeros(400), W_dec, torch.zeros(32)))
    config = MetaStructureConfig(k=3, width=0.08, steps=500, batch_rows=128)
    scores = meta_structure(tiny_model("llama", name="tiny"), sae, config, quiet=True)
    found = scores.headline
    assert found[DICTIONARY].value > 0.75
    assert found[DICTIONARY].low > found[COVARIANCE].high
    assert found[COVARIANCE].value > found[RANDOM].value  # ten dimensions of 32 are easier than all
    assert found[RANDOM].value < 0.4


def test_a_decoder_of_few_rows_is_refused():
    with pytest.raises(BadInput, match="too small"):
        meta_structure(tiny_model("llama", name="tiny"), tiny_dictionary(), quiet=True)
