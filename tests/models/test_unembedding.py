"""The read-out where the CPU does not multiply the weights' precision itself: the model's own numbers, to rounding."""

import pytest
import torch

from monosem.models import unembedding
from tiny import tiny_model


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def model(request):
    model = tiny_model("gemma2")  # a soft cap follows
    model.hf.to(request.param)
    return model


def states(model, *shape):
    draw = torch.Generator().manual_seed(2)
    return torch.randn(*shape, model.cfg.d_model, generator=draw).to(model.dtype)


@pytest.mark.parametrize("shape", [(3,), (40,), (4, 5, 6)])
def test_a_read_out_in_float32_rounds_to_the_heads_numbers(model, monkeypatch, shape):
    x = states(model, *shape)
    head, cap = model.hf.get_output_embeddings(), model.hf.config.final_logit_softcapping
    expected = head(x)
    expected = cap * torch.tanh(expected / cap)
    exact = cap * torch.tanh((x.double() @ head.weight.double().T) / cap)
    used = []
    native = type(head).forward
    monkeypatch.setattr(type(head), "forward", lambda self, value: used.append(1) or native(self, value))
    for full_speed in (True, False):
        monkeypatch.setattr(unembedding, "multiplies", lambda dtype, device, answer=full_speed: answer)
        monkeypatch.setattr(unembedding, "PIECE", 33)  # the last piece is shorter
        used.clear()
        logits = model.unembed(x, norm=False)
        assert bool(used) == (full_speed or shape == (3,))
        assert logits.dtype == model.dtype
        torch.testing.assert_close(logits, expected, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(logits.double(), exact, rtol=2e-2, atol=2e-2)


def test_gradients_and_heads_that_are_more_than_a_product_go_the_native_way(model, monkeypatch):
    monkeypatch.setattr(unembedding, "multiplies", lambda dtype, device: False)
    x = states(model, 20).requires_grad_()
    model.unembed(x).float().sum().backward()
    assert x.grad is not None

    class Doubled(torch.nn.Linear):
        def forward(self, value):
            return 2 * super().forward(value)

    head = model.hf.get_output_embeddings()
    plain = model.unembed(states(model, 20), norm=False)
    doubled = Doubled(head.in_features, head.out_features, bias=False, dtype=model.dtype)
    doubled.weight.data = head.weight.data
    model.hf.set_output_embeddings(doubled.eval())
    cap = model.hf.config.final_logit_softcapping
    expected = cap * torch.tanh(2 * torch.atanh(plain.double() / cap))
    torch.testing.assert_close(model.unembed(states(model, 20), norm=False).double(), expected, rtol=5e-2, atol=5e-2)
