"""Layers, positions and heads of every kind of number are read; what is no number is refused in words."""

import numpy as np
import pytest
import torch

from monosem import edits, lenses
from monosem.data import TokenPairs
from monosem.errors import BadInput
from monosem.patching import cells_of

BAD = [True, [True], 1.5, [1.7], "first", [None], [[0]], object(), slice(None, "a"), slice(None, None, 0)]
MASK = np.array([True, False, True])


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def pairs(model):
    return TokenPairs.of(model, [[7, 21, 33, 40]], [[7, 21, 34, 40]], [11], [12])


@pytest.mark.parametrize("kind", [int, np.int64, np.array, torch.tensor, lambda n: [n], lambda n: np.array([n])])
def test_numbers_of_every_kind(model, pairs, kind):
    assert model.layers(kind(-1)) == [2]
    assert [cell.at for cell in cells_of(model, pairs, layers=kind(0), positions=kind(-2))] == [(-2,)]
    assert len(cells_of(model, pairs, "z", ("layer", "head"), layers=0, heads=np.array([1, 3]))) == 2
    whole = model.run([[7, 21, 33]], capture="z.1")["z.1"]
    part = model.run([[7, 21, 33]], capture="z.1", positions=kind(-2), heads=kind(3))["z.1"]
    assert torch.equal(part, whole[:, [-2]][:, :, [3]])
    cut = edits.scale("z.1", 0.0).at(positions=kind(-2), heads=kind(3))
    edited = model.run([[7, 21, 33]], capture="z.1", edits=cut)["z.1"]
    assert edited[0, 1, 3].count_nonzero() == 0
    assert edited.count_nonzero() == whole.count_nonzero() - edited.shape[-1]
    two = edits.scale("z.1", 0.0).at(positions=np.array([0, 2]))
    assert model.run([[7, 21, 33]], capture="z.1", edits=two)["z.1"].abs().sum((0, 2, 3)).nonzero().tolist() == [[1]]


@pytest.mark.parametrize("bad", [*BAD, "0", MASK])
def test_what_is_no_layer(model, pairs, bad):
    for call in (
        lambda: model.layers(bad),
        lambda: cells_of(model, pairs, layers=bad),
        lambda: lenses.logit(model, [[7, 21]], layers=bad),
    ):
        with pytest.raises(BadInput, match="layers"):
            call()


@pytest.mark.parametrize("bad", [*BAD, MASK, {"a": 1}])
def test_what_is_no_position(model, pairs, bad):
    for call in (
        lambda: model.run([[7, 21, 33]], capture="z.1", positions=bad),
        lambda: model.run([[7, 21, 33]], edits=edits.scale("z.1", 0.0).at(positions=bad)),
    ):
        with pytest.raises(BadInput, match="positions"):
            call()
    with pytest.raises((BadInput, KeyError) if isinstance(bad, str | dict) else BadInput, match="positions|span"):
        cells_of(model, pairs, positions=bad)


@pytest.mark.parametrize("bad", [True, 1.5, [1.5], "first", [None]])
def test_what_is_no_head(model, pairs, bad):
    for call in (
        lambda: model.run([[7, 21, 33]], capture="z.1", heads=bad),
        lambda: model.run([[7, 21, 33]], edits=edits.scale("z.1", 0.0).at(heads=bad)),
        lambda: cells_of(model, pairs, "z", ("layer", "head"), heads=bad),
    ):
        with pytest.raises(BadInput, match="head"):
            call()


def test_no_position_is_refused(model, pairs):
    for axes in ("layer", ("layer", "position")):
        with pytest.raises(BadInput, match="positions is empty"):
            cells_of(model, pairs, over=axes, positions=[])
