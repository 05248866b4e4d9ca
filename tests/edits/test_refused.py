"""What is no edit, value, amount, direction, gate or narrowing is refused in one line, and never passed over."""

import numpy as np
import pytest
import torch

from monosem import edits
from monosem.errors import BadInput, EditDidNotFire, MonosemError
from tiny import model_of

MODEL = model_of("llama")
X = [[5, 6, 7, 8], [9, 10, 11, 12]]
SITE = "resid_post.1"
NO_NUMBERS = [
    None,
    "a",
    {"a": 1},
    object(),
    np.zeros(32, dtype=object),
    1j * torch.ones(32),
    torch.zeros(32, device="meta"),
]
NO_NUMBERS += [torch.zeros(32).to_sparse(), lambda x: x, edits.scale("z.1", 0.0)]


def refused(make, match: str | None = None, kind: type[MonosemError] = BadInput) -> None:
    """Making the edit, or running it, raises an error of one line."""
    with pytest.raises(kind, match=match) as caught:
        MODEL.run(X, edits=make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_values_that_are_no_numbers(value):
    refused(lambda: edits.patch(SITE, value), "patch at resid_post.1: .* needed, not")
    refused(lambda: edits.add((SITE, value)), "add at resid_post.1: .* needed, not")
    refused(lambda: edits.ablate((SITE, value)), "ablate at resid_post.1: .* needed, not")


@pytest.mark.parametrize("amount", [None, "a", ["a", "b"], {}, 1 + 2j, float("nan"), [float("inf"), 1.0], [1, 2, 3]])
def test_amounts_that_are_no_numbers(amount):
    refused(lambda: edits.scale("z.1", amount))
    refused(lambda: edits.add((SITE, torch.ones(32)), amount))
    refused(lambda: edits.ablate((SITE, torch.ones(32)), amount))


def test_ablate_takes_an_amount_for_each_row():
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    both = MODEL.run(X, capture=SITE, edits=edits.ablate((SITE, vector), [0.0, 1.0]))[SITE]
    whole = MODEL.run(X, capture=SITE)[SITE]
    torch.testing.assert_close(both[0], whole[0])
    torch.testing.assert_close(both[1], whole[1] - (whole[1] @ vector)[:, None] * vector / vector.square().sum())


@pytest.mark.parametrize("direction", [5, "a", None, (), ("z.1",), torch.ones(32), [SITE, torch.ones(32)]])
def test_what_is_no_direction(direction):
    refused(lambda: edits.add(direction), r"\(site, vector\)")
    refused(lambda: edits.ablate(direction), r"\(site, vector\)")


def test_a_vector_of_zeros_has_no_direction():
    refused(lambda: edits.ablate((SITE, torch.zeros(32))), "zeros")


@pytest.mark.parametrize("fn", [None, 5, "a"])
def test_what_is_no_function(fn):
    refused(lambda: edits.function(SITE, fn), "function")
    refused(lambda: edits.scale(SITE, 0.0).when(fn), "gate")


@pytest.mark.parametrize("made", [lambda x: 1j * x, lambda x: x.to("meta")])
def test_what_a_function_returns_is_checked(made):
    refused(lambda: edits.function(SITE, made), "returned torch")


@pytest.mark.parametrize("made", [None, 1.0, torch.ones(1).bool(), torch.zeros(2, 4), torch.ones(2, 4, 32).bool()])
def test_what_a_gate_returns_is_checked(made):
    refused(lambda: edits.scale("z.1", 0.0).when(lambda x, moment: made), "its gate gives")


@pytest.mark.parametrize("given", [5, None, "a", [None], [5], edits.scale, MODEL])
def test_what_is_no_edit(given):
    refused(lambda: given, "edits are what monosem.edits makes")
    with pytest.raises(BadInput, match="edits are"):
        MODEL.generate(X, edits=given, max_new_tokens=1)
    with pytest.raises(BadInput, match="edits are"), MODEL.editing(given):
        pass
    assert MODEL.ambient_edits == []


def test_narrowed_to_nothing_is_never_passed_over():
    for narrowed in ({"heads": []}, {"rows": []}, {"positions": []}, {"tokens": []}):
        refused(lambda narrowed=narrowed: edits.scale("z.1", 0.0).at(**narrowed), kind=EditDidNotFire)
        with pytest.raises(EditDidNotFire):
            MODEL.generate(X, edits=edits.scale("z.1", 0.0).at(**narrowed), max_new_tokens=2)


def test_masks_and_huge_numbers_are_no_positions():
    refused(lambda: edits.scale("z.1", 0.0).at(positions=torch.tensor([True, False])), "True is not a whole number")
    refused(lambda: edits.scale("z.1", 0.0).at(positions=10**30), "position 1000", EditDidNotFire)
    refused(lambda: edits.scale("z.1", 0.0).at(positions=-(10**30)), "position -1000", EditDidNotFire)
    refused(lambda: edits.scale("z.1", 0.0).at(role=["user"]), "role= is one name")
    refused(lambda: edits.scale("z.1", 0.0).at(role="user "), "role= is one name")


@pytest.mark.parametrize("axes", [5, {"batch": 0}])
def test_axes_are_names(axes):
    refused(lambda: edits.patch(SITE, torch.zeros(2, 32), axes=axes), "axes= names")


@pytest.mark.parametrize("tokens", [5, X, "ab"])
def test_tokens_of_a_value_are_a_batch(tokens):
    refused(lambda: edits.patch(SITE, torch.zeros(2, 4, 32), tokens=tokens), "tokens= is a TokenBatch")


def test_a_generation_is_patched_in_like_its_run():
    made = MODEL.generate(X, max_new_tokens=3, capture=SITE)
    edited = MODEL.run(made, edits=edits.patch(SITE, made))
    torch.testing.assert_close(edited.logits, MODEL.run(made).logits, rtol=1e-4, atol=1e-5)


def test_the_error_of_nan_does_not_speak_of_a_largest_number():
    refused(lambda: edits.patch(SITE, float("nan")), "value NaN, or does it divide by 0")
