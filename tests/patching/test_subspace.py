"""Patching subspaces, against plain runs with the projection written out, and the illusion on a planted example."""

from typing import Any

import numpy as np
import pytest
import torch

from monosem import edits, patching
from monosem.data import TokenPairs
from monosem.directions import Direction
from monosem.errors import BadInput, MonosemError
from monosem.models import Model, Site
from monosem.patching import subspace, sweep

CLEAN, CORRUPTED = [7, 21, 33, 40, 52, 61, 70, 18], [7, 21, 34, 40, 55, 61, 70, 18]
RIGHT, WRONG = 11, 12


def pairs_of(model: Model) -> TokenPairs:
    more = ([3, *CLEAN], [3, *CORRUPTED])
    sides = [CLEAN, more[0]], [CORRUPTED, more[1]]
    return TokenPairs.of(model, *sides, [RIGHT] * 2, [WRONG] * 2, spans={"who": [4, 5]})


def by_hand(model: Model, site: str, head: int | None, position: int, vectors: np.ndarray, flip: bool) -> float:
    """Logit difference of the first pair: the corrupted run (or the clean one) with one projected change, by QR."""
    into, source = (CLEAN, CORRUPTED) if flip else (CORRUPTED, CLEAN)
    q, _ = np.linalg.qr(vectors.T)
    theirs = model.run([source], capture=site)[site][0, position]

    def write(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        where = (0, position) if head is None else (0, position, head)
        mine, other = x[where], theirs if head is None else theirs[head]
        change = (other - mine).flatten().double().numpy()
        x[where] = mine + torch.from_numpy(q @ (q.T @ change)).to(x.dtype).reshape(mine.shape)
        return x

    logits = model.run([into], edits=edits.function(site, write)).logits
    return float(logits[0, -1, RIGHT] - logits[0, -1, WRONG])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_every_arm_is_a_plain_run(tiny_model: Any, family: str, direction: Any) -> None:
    model = tiny_model(family)
    draw, c = np.random.default_rng(0), model.cfg
    for site, head, width in (
        ("resid_post.1", None, c.d_model),
        ("z.1", 2, c.d_head),
        ("v.1", None, c.d_head * c.n_kv_heads),
        ("mlp_post.0", None, c.d_mlp),
    ):
        vectors = draw.normal(size=(2, width))
        found = subspace(
            model,
            pairs_of(model),
            torch.from_numpy(vectors),
            site=site,
            positions="who",
            head=head,
            direction=direction,
        )
        complement = np.linalg.svd(vectors)[2][2:]
        for arm, basis in (("subspace", vectors), ("rest", complement), ("whole", np.eye(width))):
            expected = by_hand(model, site, head, 4, basis, flip=direction == "noising")
            value = float(found.values["logit_diff"][list(found.arms).index(arm), 0])
            assert value == pytest.approx(expected, abs=2e-4), (site, arm)
        assert found.dimensions == 2
        assert ("readable" in found.arms) == (site[0] in "zm")


def test_the_whole_is_a_sweeps_cell_and_the_result_is_a_table_and_a_picture(tiny_model: Any) -> None:
    model = tiny_model("qwen3")
    pairs, vector = pairs_of(model), torch.randn(32, generator=torch.Generator().manual_seed(1))
    direction = Direction(vector, Site("resid_post", 1), model.name)
    found = subspace(model, pairs, direction, positions=["who", -1], metric=["logit_diff", "negative_kl"])
    cell = sweep(model, pairs, "resid_post", "layer", layers=[1], positions=["who", -1], quiet=True)
    assert float(found.scores()[1]) == pytest.approx(float(cell.scores()[0]), abs=1e-4)
    assert found.table.arm.tolist() == [*["subspace", "whole", "rest", "random"] * 2]
    assert found.readable_share is None
    assert found.illusory is None
    row = found.table.iloc[0]
    assert row.effect == pytest.approx(float((found.values["logit_diff"][0] - found.corrupted["logit_diff"]).mean()))
    assert np.allclose(found.plot("negative_kl").data[0].y, found.table.effect[4:])
    full = subspace(model, pairs, torch.randn(32, 32), site="resid_post.1", positions=["who", -1])
    assert torch.allclose(full.effects()[0], full.effects()[1], atol=1e-4)
    assert float(full.effects()[2].abs().max()) < 1e-4


def test_an_illusion_is_found_and_a_direction_that_is_read_is_none(tiny_model: Any) -> None:
    """One part of the vector differs between the prompts and lies in the null space of W_out; the other is read, moves
    the answer, and is the same in both prompts."""
    model = tiny_model("llama")  # 48 neurons write into 32 dimensions
    pairs = TokenPairs.of(model, [CLEAN], [CORRUPTED], [RIGHT], [WRONG])
    site = "mlp_post.2"
    change = (model.run([CLEAN], capture=site)[site] - model.run([CORRUPTED], capture=site)[site])[0, -1].double()
    left = torch.linalg.svd(model.W_out[2].double()).U
    read, null = left[:, :32], left[:, 32:]
    unread = null @ (null.T @ change)
    answer = read.T @ (model.W_out[2] @ (model.W_U[:, RIGHT] - model.W_U[:, WRONG])).double()
    seen = read.T @ change
    dormant = read @ (answer - seen * (answer @ seen) / (seen @ seen))  # read, and no different between the prompts
    vector = unread / unread.norm() + dormant / dormant.norm()
    found = subspace(model, pairs, vector, site=site)
    effect = dict(zip(found.arms, found.effects()[:, 0].tolist()))
    assert abs(effect["readable"]) < 1e-4 < 0.05 < abs(effect["subspace"])
    assert found.readable_share == pytest.approx(0.5)
    assert found.illusory
    assert any("dormant" in note for note in found.notes)
    honest = subspace(model, pairs, read @ seen, site=site)  # all that is read of the difference
    assert honest.readable_share == pytest.approx(1.0)
    assert torch.allclose(honest.effects()[0], honest.effects()[1], atol=1e-4)
    assert honest.illusory is False
    assert honest.notes == []
    nothing = subspace(model, pairs, unread, site=site)
    assert float(nothing.effects()[0].abs()) < 1e-4
    assert nothing.readable_share == pytest.approx(0.0, abs=1e-9)
    assert any("random subspaces" in note for note in nothing.notes)


@pytest.mark.parametrize(
    ("basis", "arguments", "message"),
    [
        (torch.ones(32), {}, "give site="),
        (torch.ones(31), {"site": "resid_post.1"}, "32 entries, not 31"),
        (torch.zeros(2, 32), {"site": "resid_post.1"}, "all zero"),
        (torch.ones(8), {"site": "z.1", "head": 4}, "heads 0 to 3"),
        (torch.ones(8), {"site": "resid_post.1", "head": 1}, "cannot be patched"),
        (torch.ones(8), {"site": "pattern.1"}, "cannot be patched"),
        (torch.ones(32), {"site": "resid_post.1", "random": 0}, "at least one random"),
        (torch.ones(32), {"site": "resid_post.9"}, "layers 0 to 2"),
    ],
)
def test_what_is_refused(tiny_model: Any, basis: torch.Tensor, arguments: dict[str, Any], message: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(MonosemError, match=message):
        subspace(model, pairs_of(model), basis, **arguments)
    assert patching.SubspacePatch is not None
    assert issubclass(BadInput, MonosemError)
