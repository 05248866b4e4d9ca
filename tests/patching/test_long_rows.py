"""Rows on both sides of the length at which rotations change: every experiment gives what each row gives alone."""

import pytest
import torch

from monosem.data import TokenPairs
from monosem.models import Model, TokenBatch
from monosem.patching import paths, sweep
from tiny import tiny_model

LENGTHS = (9, 18, 14, 12)
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
_CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module", params=["longrope", "dynamic"])
def model(request) -> Model:
    if request.param == "longrope":
        return tiny_model("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=12)
    return tiny_model("llama", rope_parameters=DYNAMIC, max_position_embeddings=12)


@pytest.fixture(scope="module")
def pairs() -> TokenPairs:
    draw = torch.Generator().manual_seed(0)
    rows = [[torch.randint(3, 100, (n,), generator=draw).tolist() for n in LENGTHS] for _ in range(2)]
    rows[1] = [[*clean[:4], *corrupted[4:]] for clean, corrupted in zip(*rows)]
    clean, corrupted = (TokenBatch.of(side, 2) for side in rows)
    return TokenPairs(clean, corrupted, torch.tensor([3] * len(LENGTHS)), torch.tensor([50] * len(LENGTHS)))


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_sweeps(model: Model, pairs: TokenPairs, site: str) -> None:
    both = sweep(model, pairs, site, positions=[5, -1], quiet=True).values["logit_diff"]
    alone = [sweep(model, pairs[[row]], site, positions=[5, -1], quiet=True) for row in range(len(LENGTHS))]
    torch.testing.assert_close(both, torch.cat([one.values["logit_diff"] for one in alone], 1), **_CLOSE)
    source = model.run(pairs.clean.rows()[1:2], capture="resid_pre.1")["resid_pre.1"]
    if site == "resid_pre":  # one cell by hand, in the native model
        handle = model.blocks[1].register_forward_pre_hook(lambda _, args: _written(args, source))
        model.run(pairs.clean.rows()[0:1])  # whatever ran before
        logits = model.hf(torch.tensor(pairs.corrupted.rows()[1:2]), use_cache=False).logits[0, -1]
        handle.remove()
        assert float(logits[3] - logits[50]) == pytest.approx(float(both[2, 1]), abs=2e-5)


def _written(args: tuple, source: torch.Tensor) -> tuple:
    hidden = args[0].clone()
    if hidden.shape == source.shape:
        hidden[:, 5] = source[:, 5]
    return (hidden, *args[1:])


def test_paths(model: Model, pairs: TokenPairs) -> None:
    asked = (["embed", "z.0", "mlp_out"], ["q.1", "k.2", "mlp_in.2", "logits"])
    both = paths(model, pairs, *asked, freeze_mlps=False).values["logit_diff"]
    alone = [paths(model, pairs[[row]], *asked, freeze_mlps=False) for row in range(len(LENGTHS))]
    torch.testing.assert_close(both, torch.cat([one.values["logit_diff"] for one in alone], 1), **_CLOSE)
