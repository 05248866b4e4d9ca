"""Fast sweeps where layers have a memory: the same numbers as one whole run a cell."""

from functools import cache

import pytest
import torch

from anymodel import tiny_any
from monosem.data import TokenPairs
from monosem.errors import BadInput
from monosem.models import Model
from monosem.patching import backup, localise, paths, sweep

CLEAN, CORRUPTED = [7, 21, 33, 40, 52, 61, 70, 18, 9], [7, 21, 34, 40, 55, 61, 70, 18, 9]
CONTINUE = (
    "qwen3_next",
    "olmo_hybrid",
    "kimi_linear",
    "lfm2",
    "mamba2",
    "nemotron_h",
    "bamba",
    "granitemoehybrid",
    "minimax",
)
FROM_THE_START = ("mamba", "falcon_mamba", "jamba", "xlstm")  # their layers do not go on from a memory


@cache
def model_of(kind: str) -> Model:
    return Model(tiny_any(kind), name=kind)


def swept(kind: str, sites: str, method: str, over=("layer", "position")):
    model = model_of(kind)
    pairs = TokenPairs.of(model, [CLEAN], [CORRUPTED], [11], [12])
    return sweep(model, pairs, sites, over, method=method, quiet=True)


@pytest.mark.parametrize("kind", [*CONTINUE, *FROM_THE_START])
@pytest.mark.parametrize("site", ["resid_pre", "mixer_out"])
@pytest.mark.filterwarnings("error")  # a fall back warns
def test_growing_is_naive(kind, site):
    fast, slow = swept(kind, site, "growing"), swept(kind, site, "naive")
    assert fast.method == "growing"
    torch.testing.assert_close(
        torch.tensor(fast.table.effect.to_numpy()),
        torch.tensor(slow.table.effect.to_numpy()),
        rtol=2e-3,
        atol=2e-3,
    )
    assert slow.table.effect.abs().max() > 0.02


@pytest.mark.parametrize(
    ("kind", "site"), [("qwen3_next", "linear_z"), ("mamba2", "ssm_x"), ("olmo_hybrid", "linear_v")]
)
def test_heads_of_a_memory_are_swept(kind, site):
    over = ("layer", "position", "head")
    fast, slow = swept(kind, site, "growing", over), swept(kind, site, "naive", over)
    layers = model_of(kind).layers_with(site)
    assert sorted(set(fast.table.layer)) == layers
    torch.testing.assert_close(
        torch.tensor(fast.table.effect.to_numpy()),
        torch.tensor(slow.table.effect.to_numpy()),
        rtol=2e-3,
        atol=2e-3,
    )


def test_paths_from_every_head_of_a_memory():
    model = model_of("falcon_h1")
    pairs = TokenPairs.of(model, [CLEAN], [CORRUPTED], [11], [12])
    table = paths(model, pairs, "ssm_z", quiet=True).table
    assert len(table) == 4 * 8
    assert table.effect.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["falcon_h1", "jamba", "mamba2"])
def test_localisation_where_layers_differ(kind):
    model = model_of(kind)
    pairs = TokenPairs.of(model, [CLEAN], [CORRUPTED], [11], [12])
    found = localise(model, pairs, controls=2, quiet=True)
    assert (found.backup is None) == (kind == "mamba2" or not found.components)
    if kind == "mamba2":
        with pytest.raises(BadInput, match="mamba2 has none"):
            backup(model, pairs, [])
