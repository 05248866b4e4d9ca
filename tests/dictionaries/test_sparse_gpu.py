"""The sparse products as Triton kernels, in Triton's interpreter on the CPU; and gradients of whole losses.

Without Triton (it is no dependency: `pip install triton`) the plain products alone are tested.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from monosem.dictionaries.training import sparse
from monosem.dictionaries.training.forward import auxiliary_loss
from monosem.dictionaries.training.kinds import KINDS
from monosem.dictionaries.training.settings import DictionarySettings
from monosem.dictionaries.training.sparse import Support, rows_dot, transposed_sum, weighted_sum

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))  # Triton reads it when it is imported


@pytest.fixture(params=["triton" if INTERPRETED else "plain"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plain products; in a process where Triton interprets, the kernels."""
    called: list[str] = []
    if INTERPRETED:
        from monosem.dictionaries.training import gpu

        monkeypatch.setattr(sparse, "in_triton", lambda tensor: True)
        for name in ("summed", "dotted"):
            run = getattr(gpu, name)
            monkeypatch.setattr(gpu, name, lambda *a, run=run, name=name: (called.append(name), run(*a))[1])
    yield
    assert bool(called) == INTERPRETED


@pytest.mark.skipif(INTERPRETED or not find_spec("triton"), reason="Triton is not installed")
def test_the_kernels_pass_the_tests_of_this_file_in_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize(
    ("batch", "width", "d", "share"), [(5, 9, 3, 0.4), (4, 6, 8, 0.0), (3, 4, 33, 1.0), (6, 40, 5, 0.1)]
)
def test_products_equal_dense_ones(products: None, batch: int, width: int, d: int, share: float) -> None:
    torch.manual_seed(d)
    mask = torch.rand(batch, width) < share
    counts = mask.sum(1)
    support = Support(mask.nonzero()[:, 1], counts.cumsum(0) - counts, width)
    codes = torch.randn(batch, width) * mask
    a, weight = torch.randn(batch, d), torch.randn(width, d)
    torch.testing.assert_close(weighted_sum(support, codes[mask], weight), codes @ weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(transposed_sum(support, codes[mask], a), codes.T @ a, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows_dot(support, a, weight), (a @ weight.T)[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_gradients_of_the_loss_with_its_auxiliary_part_equal_finite_differences(products: None, kind: str) -> None:
    torch.manual_seed(0)
    width, d, dead = 12, 5, torch.tensor([1, 4, 7, 10])
    how = DictionarySettings(site="resid_post.1", kind=kind, width=width, k=3)
    x = torch.randn(6, d, dtype=torch.float64)
    shapes = ((width, d), (width,), (width, d), (d,))
    parameters = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def form_of(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Any:
        return SimpleNamespace(
            W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, centre=b_dec, width=width, offset=lambda x: b_dec
        )

    def rebuilt(*parameters: Tensor) -> Tensor:
        return KINDS[kind].forward["sparse"](form_of(*parameters), x, how).reconstruction

    left = (x - rebuilt(*parameters)).detach()  # the auxiliary part's target has no gradient

    def loss(*parameters: Tensor) -> Tensor:
        main = (x - rebuilt(*parameters)).square().sum(1).mean()
        return main + auxiliary_loss(form_of(*parameters), x, left, dead, 2)

    assert torch.autograd.gradcheck(loss, parameters)
    assert auxiliary_loss(form_of(*parameters), x, left, dead, 2).item() > 0
