"""Defects of other tools that no other test is about."""

import pytest
import torch
from test_sparse import random_form

from monosem import edits
from monosem.dictionaries.encoders import encode
from monosem.dictionaries.training.forward import auxiliary_loss
from tiny import model_of
from tiny_dictionaries import random_tensors, tiny_dictionary


@pytest.mark.parametrize("kind", ["topk", "groupmax"])
def test_a_selected_place_that_the_relu_set_to_zero_has_no_gradient(kind):
    """sparsify's own kernels give one to it."""
    pre = torch.tensor([[0.5, -0.2, -0.3, -0.4]], requires_grad=True)
    values, _ = encode(pre, kind, 2, None)
    values.sum().backward()
    assert pre.grad.tolist() == [[1, 0, 0, 0]]


def test_the_auxiliary_loss_does_not_depend_on_the_scale_of_activations():
    """SAELens does not divide it by the variance, so that its coefficient means another thing at each site."""
    form, x, dead = random_form(64, 16), torch.randn(50, 16), torch.tensor([3, 9, 20])
    residual = torch.randn(50, 16)
    small = auxiliary_loss(form, x, residual, dead, 8)
    with torch.no_grad():
        form.b_enc *= 30
        form.b_dec *= 30
    torch.testing.assert_close(auxiliary_loss(form, 30 * x, 30 * residual, dead, 8), small, rtol=1e-4, atol=0)


def test_gradients_go_through_a_splice_whose_latents_a_hook_edits():
    """SAELens's run_with_hooks_with_saes keeps no gradient at all."""
    model = model_of("llama")
    sae = tiny_dictionary("relu", random_tensors(32, 24, 0, (1 / 6, 1 / 4)), model_name="")
    halved = edits.scale(sae.latents, 0.5).at(everywhere=True)
    given = [edits.splice(sae, error=True, everywhere=True), halved]
    run = model.run([[10, 11, 12, 13]], capture=[sae.latents, sae.site], edits=given, grad=True)
    of_latents, of_site = torch.autograd.grad(run.logits[0, -1, 3], [run[sae.latents], run[sae.site]])
    torch.testing.assert_close(of_latents, of_site @ sae.W_dec.T, atol=1e-6, rtol=1e-4)
    assert bool((of_latents != 0).any())
