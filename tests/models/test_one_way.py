"""How models, places and runs hang together: few files for a simple run, one reading of layers and of positions."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import monosem
from monosem import edits
from monosem.errors import BadInput, UnknownName
from monosem.models.running.selection import at_positions, columns_of

SRC = str(Path(monosem.__file__).parent)


def test_a_run_of_a_prompt_crosses_at_most_seven_files(tiny_model):
    model, files = tiny_model(), set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(SRC):
            files.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        model.run("the cat sat", capture=["resid_post.1"])
    finally:
        sys.setprofile(None)
    assert len(files) <= 7, sorted(files)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [0, 1, 2]),
        (1, [1]),
        (-1, [2]),
        ([2, -3], [2, 0]),
        (slice(1, None), [1, 2]),
        (slice(None, None, 2), [0, 2]),
    ],
)
def test_layers_are_read_in_one_way(tiny_model, given, expected):
    assert tiny_model().layers(given) == expected


def test_layers_that_are_not_there(tiny_model):
    model = tiny_model()
    for given in (3, -4, [0, 7]):
        with pytest.raises(UnknownName, match=r"has layers 0 to 2 \(-1 is the last\)"):
            model.layers(given)
    with pytest.raises(BadInput, match="empty"):
        model.layers([])
    with pytest.raises(BadInput, match="empty"):
        model.layers(slice(5, None))


SLICES = [slice(a, b, c) for a in (None, 0, 1, -2, -9) for b in (None, 3, -1, 9) for c in (None, 1, 2, 3, -1, -2)]


@pytest.mark.parametrize("positions", [0, -1, "last", [0, -2], *SLICES], ids=str)
def test_edits_and_captures_read_positions_alike(tiny_model, positions):
    """Every row of a padded batch, against Python's own indexing."""
    tokens = tiny_model().tokens(["the cat sat on mat", "a dog ran to it"])
    if isinstance(positions, slice):
        expected = set(list(range(5))[positions])
    else:
        expected = {
            p % 5 for p in ([-1] if positions == "last" else [positions] if isinstance(positions, int) else positions)
        }
    chosen = at_positions(positions, tokens.positions, tokens.lengths[:, None]) & tokens.mask
    assert [set(row.nonzero()[:, 0].tolist()) for row in chosen] == [expected] * 2
    if expected:
        assert [set(row) for row in columns_of(tokens, positions).tolist()] == [expected] * 2


def test_a_slice_with_a_step_edits_those_positions(tiny_model):
    model = tiny_model()
    edited = edits.scale("resid_post.0", 0.0).at(positions=slice(0, None, 2))
    value = model.run("the cat sat on mat", capture="resid_post.0", edits=edited)["resid_post.0"]
    assert value.norm(dim=-1)[0].bool().tolist() == [False, True, False, True, False]
    with pytest.raises(BadInput, match="other than 0"):
        model.run("the cat sat", edits=edited.at(positions=slice(0, 2, 0)))
