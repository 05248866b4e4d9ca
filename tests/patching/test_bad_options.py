"""Options of analyses that cannot be meant are refused in one line."""

import pytest
import torch

from monosem import components, edits, patching, steering
from monosem.data import TokenPairs
from monosem.errors import BadInput, MonosemError
from tiny import model_of

MODEL = model_of("llama")
PAIRS = TokenPairs.of(MODEL, [[7, 21, 33, 40]], [[7, 21, 34, 40]], [11], [12])
BAD_TRACES = {
    "subject": [None, 5, [0], torch.tensor([1])],
    "window": [0, 1.5, "a", None],
    "samples": [0, 1.5, "a"],
    "sd": [0, float("nan"), float("inf"), "a"],
    "of": [None, [], -1, float("nan")],
    "seed": [1.5, "a", None, 2**64],
    "sites": [5, None],
    "metric": [5, None, [None]],
}
BAD_SWEEPS = {"sites": [5, None, "z.1"], "over": [5, None, [None]], "metric": [5, None]}


def refused(call) -> str:
    with pytest.raises(MonosemError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, values in BAD_TRACES.items() for bad in values])
def test_options_of_a_trace(name, bad):
    options = {"subject": "def", name: bad}
    refused(lambda: patching.trace(MODEL, ["abc def gh"], options.pop("subject"), quiet=True, **options))


@pytest.mark.parametrize("name", ["method", "heads", "direction"])
def test_options_that_a_trace_does_not_have(name):
    assert f"no option {name}=" in refused(
        lambda: patching.trace(MODEL, ["abc def gh"], "def", quiet=True, **{name: 1})
    )


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, values in BAD_SWEEPS.items() for bad in values])
def test_options_of_a_sweep(name, bad):
    options = {"sites": "z", "over": ("layer", "head"), name: bad}
    said = refused(
        lambda: patching.sweep(MODEL, PAIRS, options.pop("sites"), options.pop("over"), quiet=True, **options)
    )
    assert "z.1.0" not in said


@pytest.mark.parametrize("bad", ["a", 0, 1, float("nan"), True])
def test_outliers_count_medians(bad):
    assert "outlier=" in refused(lambda: patching.last_mean([[3, 4]], outlier=bad))


@pytest.mark.parametrize("answer", [3.5, None, True])
def test_answers_that_are_none(answer):
    refused(lambda: TokenPairs.of(MODEL, ["ab"], ["ac"], [answer], [" y"]))
    refused(lambda: components.direct_attribution(MODEL, "abc", answer, 1))


def test_rows_of_a_table():
    result = patching.sweep(MODEL, PAIRS, "z", ("layer", "head"), quiet=True)
    for bad in (0, -1, 1.5, "a", None, True):
        refused(lambda bad=bad: result.top(bad))


def test_arms_and_lengths_of_a_comparison():
    for bad in (None, 5, [5], "a"):
        refused(lambda bad=bad: steering.compare(MODEL, "abc", bad, max_new_tokens=2))
    for bad in (-1, 1.5, "a", 10**9):
        with pytest.raises(BadInput):
            steering.compare(MODEL, "abc", edits.scale("z.1", 0.0), max_new_tokens=bad)


def test_cells_where_sets_are_meant():
    cell = patching.Cell("z", 1, (-1,), head=1)
    for call in (patching.patch_sets, patching.causal_evidence):
        assert "a set is a list of cells" in refused(lambda call=call: call(MODEL, PAIRS, [cell], quiet=True))
