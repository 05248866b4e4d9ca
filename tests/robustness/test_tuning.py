"""A few steps of fine-tuning: the loss falls, nothing is left, random changes are as large."""

import copy

import pytest
import torch

from monosem.errors import BadInput
from monosem.robustness.tuning import added, linear_maps, tuned
from tiny import tiny_model

EXAMPLES = [([5, 6, 7], [8, 9]), ([10, 11], [12, 13, 14]), ([20], [21])]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return tiny_model(request.param)


def loss(model):
    """Mean loss of the answers' tokens, token by token."""
    total, count = 0.0, 0
    for prompt, answer in EXAMPLES:
        logits = model.run([[*prompt, *answer]]).logits[0].log_softmax(-1)
        for place, token in enumerate(answer, len(prompt)):
            total, count = total - float(logits[place - 1, token]), count + 1
    return total / count


def test_the_loss_falls_and_nothing_stays(model):
    weights = copy.deepcopy(model.hf.state_dict())
    before = loss(model)
    kept = tuned(model, EXAMPLES, [1, 12], rate=1e-2)
    assert loss(model) == before
    with added(kept[12]):
        after = loss(model)
    with added(kept[1]):
        between = loss(model)
    assert after < between < before
    assert loss(model) == before
    assert all(torch.equal(one, weights[name]) for name, one in model.hf.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_a_change_is_what_its_matrices_say(model):
    """Against the same change put into the weights."""
    kept = tuned(model, EXAMPLES, [3], rank=2, rate=1e-2)[3]
    with added(kept):
        hooked = model.run([[5, 6, 7]]).logits
    whole = copy.deepcopy(model.hf)
    names = {id(module): name for name, module in model.hf.named_modules()}
    for change in kept:
        weight = whole.get_submodule(names[id(change.module)]).weight
        delta = change.b @ change.a
        weight.data += delta if isinstance(change.module, torch.nn.Linear) else delta.T
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(hooked, whole(input_ids=ids).logits, atol=1e-5)
    assert len(kept) == len(linear_maps(model))


def test_random_changes_are_as_large(model):
    for change in tuned(model, EXAMPLES, [2], rate=1e-2)[2]:
        other = change.random(torch.Generator().manual_seed(1))
        assert float((other.b @ other.a).norm()) == pytest.approx(float((change.b @ change.a).norm()), rel=1e-4)
        assert change.norm == pytest.approx(float((change.b @ change.a).norm()), rel=1e-4)


def test_bad_examples(model):
    with pytest.raises(BadInput, match="needs examples"):
        tuned(model, [], [1])
    with pytest.raises(BadInput, match="needs examples"):
        tuned(model, [([1], [])], [1])
