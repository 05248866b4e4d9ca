"""Sparse products, selection and losses of training against dense oracles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monosem.dictionaries.training.form import TrainingForm
from monosem.dictionaries.training.forward import auxiliary_loss
from monosem.dictionaries.training.kinds import KINDS
from monosem.dictionaries.training.screen import CERTAIN, Screen, near_above, near_top, true_places
from monosem.dictionaries.training.selection import SELECTIONS, select_batchtopk, select_topk, top_columns
from monosem.dictionaries.training.settings import DictionarySettings
from monosem.dictionaries.training.sparse import (
    Support,
    decode_at,
    distance_squared,
    encode_at,
    rows_dot,
    transposed_sum,
    weighted_sum,
)
from monosem.models.loading.precision import has_vnni

needs_vnni = pytest.mark.skipif(not has_vnni(), reason="this CPU has no products of 8-bit numbers")
SCREENS = [False, pytest.param(True, marks=needs_vnni)]


def ragged(mask: Tensor) -> Support:
    """The support of a boolean [batch, width]."""
    counts = mask.sum(1)
    return Support(mask.nonzero()[:, 1], counts.cumsum(0) - counts, mask.shape[1])


def random_form(width: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> TrainingForm:
    """All parameters random, biases too: zero biases hide errors."""
    torch.manual_seed(seed)
    form = TrainingForm(width, 0.1 * torch.randn(d, dtype=dtype), seed)
    with torch.no_grad():
        form.W_enc.add_(0.1 * torch.randn(width, d, dtype=dtype))
        form.b_enc.copy_(0.1 * torch.randn(width, dtype=dtype))
    return form


def mask_of(support: Support, batch: int) -> Tensor:
    mask = torch.zeros(batch, support.width, dtype=torch.bool)
    mask[support.rows, support.columns] = True
    return mask


@given(batch=st.integers(1, 6), width=st.integers(1, 9), d=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_three_products_equal_dense_products(batch: int, width: int, d: int, seed: int) -> None:
    torch.manual_seed(seed)
    mask = torch.rand(batch, width) < torch.rand(())  # empty tokens, empty latents and nothing at all occur
    support = ragged(mask)
    codes = torch.randn(batch, width) * mask
    values = codes[mask]
    a, weight = torch.randn(batch, d), torch.randn(width, d)
    torch.testing.assert_close(weighted_sum(support, values, weight), codes @ weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(transposed_sum(support, values, a), codes.T @ a, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows_dot(support, a, weight), (a @ weight.T)[mask], atol=1e-5, rtol=1e-5)


def test_gradients_of_encoding_and_decoding_equal_finite_differences() -> None:
    torch.manual_seed(0)
    mask = torch.rand(5, 7) < 0.4
    mask[2] = False
    support = ragged(mask)
    x, b_dec, W, b_enc = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((5, 4), (4,), (7, 4), (7,))
    )
    values = encode_at(x, b_dec, W, b_enc, support)
    assert 0 < (values == 0).sum() < len(values)  # places that ReLU shuts are part of the test
    assert torch.autograd.gradcheck(lambda *t: encode_at(*t, support), (x, b_dec, W, b_enc))
    codes = torch.randn(len(support.columns), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: decode_at(v, w, support), (codes, W))


@pytest.mark.parametrize(("width", "k"), [(16, 4), (512, 5), (640, 17), (100, 100), (48, 1)])
def test_top_columns_are_those_of_topk(width: int, k: int) -> None:
    torch.manual_seed(width)
    pre = torch.randn(33, width)
    ours, theirs = top_columns(pre, k).sort(1).values, pre.topk(k).indices.sort(1).values
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("screen", SCREENS)
def test_topk_selection_is_exact(screen: bool) -> None:
    form = random_form(512, 24)
    x = torch.randn(1500, 24)  # more than one chunk
    pre = x @ form.W_enc.T + form.b_enc
    support, values = select_topk(x, (form.W_enc.detach(), form.b_enc.detach()), 6, screen)
    expected = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(6).indices, True)
    assert torch.equal(mask_of(support, 1500), expected)
    torch.testing.assert_close(values, pre[support.rows, support.columns], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("uneven", [1.0, 100.0])
def test_batchtopk_selection_is_exact_however_uneven_the_tokens(screen: bool, uneven: float) -> None:
    form = random_form(256, 24)
    x = torch.randn(1500, 24)
    x[7] *= uneven  # one token that takes many places, and is not among those that suggest the bound
    x[::23] *= uneven  # all of those do: the first bound is far too high
    pre = x @ form.W_enc.T + form.b_enc
    support, values = select_batchtopk(x, (form.W_enc.detach(), form.b_enc.detach()), 4, screen)
    chosen = pre.flatten().topk(4 * 1500).indices
    expected = torch.zeros(pre.numel(), dtype=torch.bool).index_fill(0, chosen, True).view_as(pre) & (pre > 0)
    assert torch.equal(mask_of(support, 1500), expected)
    torch.testing.assert_close(values, pre[expected], atol=1e-4, rtol=1e-5)


HARD = {  # what moves a true member out of the candidates that a product in 8 bits names
    "near twins": lambda x, W, b: (x, *(t[:16].repeat_interleave(32, 0) + 1e-3 * t for t in (W, b))),
    "one long row": lambda x, W, b: (x, torch.cat([W[:-1], 50 * W[-1:]]), b),
    "large biases": lambda x, W, b: (x, W, 30 * b),
    "a far centre": lambda x, W, b: (x + 20 * x[0], W, b),
    "small tokens": lambda x, W, b: (torch.cat([1e-4 * x[:700], x[700:]]), W, b),
}


@needs_vnni
@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_screened_selection_is_that_of_float64_however_hard(kind: str, hard: str) -> None:
    form = random_form(512, 24)
    x, W, b = HARD[hard](torch.randn(1500, 24), form.W_enc.detach(), form.b_enc.detach())
    pre = x.double() @ W.double().T + b.double()
    support, values = SELECTIONS[kind](x, (W, b), 6, True)
    size = pre.abs() if kind == "abstopk" else pre
    of_all = size.flatten().topk(6 * 1500).values[-1].clamp(min=0)
    last = of_all if kind == "batchtopk" else size.topk(6).values[:, -1:]
    near = 1e-5 * size.abs().amax()  # float32's own rounding decides within it
    chosen = mask_of(support, 1500)
    assert bool((chosen | (size < last + near))[size > 0].all()), "a larger one was left out"
    assert bool((~chosen | (size > last - near)).all()), "a smaller one was taken"
    torch.testing.assert_close(values.double(), pre[support.rows, support.columns], atol=float(near), rtol=1e-5)
    if kind != "batchtopk":
        assert chosen.sum(1).eq(6).all()


@needs_vnni
@pytest.mark.parametrize("hard", HARD)
def test_the_screen_misses_nothing_above_a_bound(hard: str) -> None:
    form = random_form(512, 24)
    x, W, b = HARD[hard](torch.randn(1500, 24), form.W_enc.detach(), form.b_enc.detach())
    pre = x.double() @ W.double().T + b.double()
    for share in (0.9, 0.99):
        bound = float(pre.flatten()[::7].quantile(share).clamp(min=0))
        support = near_above(x, (W, b), bound, int(512 * (1 - share)) + 1)
        assert support is None or bool(mask_of(support, 1500)[pre > bound].all())


@needs_vnni
def test_few_are_left_by_the_screen_and_its_error_is_what_it_says() -> None:
    torch.manual_seed(0)
    x, W, b = torch.randn(3000, 96) * torch.linspace(0.2, 4, 96), torch.randn(2048, 96), 0.5 * torch.randn(2048)
    pre = x.double() @ W.double().T + b.double()
    near = near_top(x, (W, b), 16)
    assert near is not None
    assert 16 * 3000 <= len(near.columns) < 40 * 3000
    assert bool(mask_of(near, 3000).gather(1, pre.topk(16).indices).all())
    bound = float(pre.flatten().topk(16 * 3000).values[-1])
    above = near_above(x, (W, b), bound, 16)
    assert above is not None
    assert len(above.columns) < 40 * 3000
    assert bool(mask_of(above, 3000)[pre > bound].all())

    screen = Screen.of(x, (W, b))
    assert screen is not None
    unit = 2 * bound / float(screen.row.median()) / 255
    looks = torch.cat(list(screen.looks(unit))).double()
    seen = (looks > 0) & (looks < 255)
    assert seen.double().mean() > 0.3
    wrong = (looks * unit - pre / screen.row[:, None].double())[seen].abs() - 0.5 * unit  # that byte is rounded, too
    every = Support.of(torch.arange(2048).expand(3000, -1), 2048)
    sigma = screen.error_at(every).view(3000, 2048).double()[seen]
    assert float((wrong / sigma).amax()) < CERTAIN - 1
    spread = ((looks * unit - pre / screen.row[:, None].double())[seen].square() - unit**2 / 12).mean().sqrt()
    assert float(spread / sigma.square().mean().sqrt()) == pytest.approx(1, abs=0.05)


@needs_vnni
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_tokens_without_a_scale_are_done_without_a_screen(value: float) -> None:
    form = random_form(512, 24)
    x = torch.randn(40, 24)
    encoder = (form.W_enc.detach(), form.b_enc.detach())
    clean, _ = select_topk(x, encoder, 6, True)
    x[5, 3] = value
    assert near_top(x, encoder, 6) is None
    support, _ = select_topk(x, encoder, 6, True)
    others = torch.arange(40) != 5
    assert torch.equal(mask_of(support, 40)[others], mask_of(clean, 40)[others])
    assert near_top(torch.zeros(40, 24), encoder, 6) is None


@pytest.mark.parametrize(("width", "share"), [(64, 0.1), (64, 1.0), (64, 0.0), (13, 0.3)])
def test_true_places_are_those_of_nonzero(width: int, share: float) -> None:
    torch.manual_seed(width)
    mask = torch.rand(9, width) < share
    assert torch.equal(true_places(mask), mask.flatten().nonzero().flatten())


def test_batchtopk_takes_only_positive_places() -> None:
    form = random_form(32, 8)
    encoder = (form.W_enc.detach(), torch.full((32,), -100.0))
    for screen in {False, has_vnni()}:
        assert len(select_batchtopk(torch.randn(10, 8), encoder, 4, screen)[0].columns) == 0
    encoder[1][3] = 100.0
    support, _ = select_batchtopk(torch.randn(10, 8), encoder, 4, False)
    assert support.columns.tolist() == [3] * 10
    assert support.rows.tolist() == list(range(10))


def oracle_auxiliary(form: TrainingForm, x: Tensor, residual: Tensor, dead: Tensor, k: int) -> Tensor:
    """AuxK over all columns, with masks, as its paper says it."""
    pre = (x - form.b_dec) @ form.W_enc.T + form.b_enc
    masked = torch.full_like(pre, -torch.inf)
    masked[:, dead] = pre[:, dead]
    values, places = masked.topk(min(k, len(dead)))
    codes = torch.zeros_like(pre).scatter(1, places, values.relu())
    target = residual.detach()
    error = (codes @ form.W_dec - target).pow(2).mean()
    return min(len(dead) / k, 1.0) * error / (target - target.mean(0)).pow(2).mean()


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize("dead", [[], [1, 5, 60, 300, 511], list(range(40))])
def test_sparse_step_equals_dense_autograd(kind: str, dead: list[int]) -> None:
    """Reconstruction, counters and every gradient, AuxK included (fewer and more dead latents than k_aux)."""
    x, ids = 2 * torch.randn(200, 24), torch.tensor(dead, dtype=torch.long)
    grads, how = [], DictionarySettings(site="resid_post.1", kind=kind, width=512, k=6)
    for kernels, auxiliary in (("sparse", auxiliary_loss), ("dense", oracle_auxiliary)):
        form = random_form(512, 24)
        done = KINDS[kind].forward[kernels](form, x, how)
        residual = x - done.reconstruction
        loss = residual.square().sum(1).mean()
        if dead:
            loss = loss + auxiliary(form, x, residual, ids, 12)
        loss.backward()
        grads.append((done, loss, {name: p.grad for name, p in form.named_parameters()}))
    (sparse, sparse_loss, ours), (dense, dense_loss, theirs) = grads
    torch.testing.assert_close(sparse.reconstruction, dense.reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sparse_loss, dense_loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(sparse.fired, dense.fired)
    assert int(sparse.active) == int(dense.active)
    torch.testing.assert_close(sparse.floor, dense.floor)
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, atol=1e-5, rtol=1e-4, msg=name)


def test_auxiliary_loss_teaches_only_the_dead_and_never_its_target() -> None:
    form, x = random_form(64, 16), torch.randn(50, 16)
    residual = torch.randn(50, 16, requires_grad=True)
    dead = torch.tensor([3, 9])
    auxiliary_loss(form, x, residual, dead, 8).backward()
    assert residual.grad is None
    for parameter in (form.W_enc, form.b_enc, form.W_dec):
        assert parameter.grad is not None
        assert parameter.grad[dead].abs().sum() > 0
        others = parameter.grad.clone()
        others[dead] = 0
        assert others.abs().sum() == 0


def test_auxiliary_loss_of_a_perfect_reconstruction_is_zero_not_nan() -> None:
    form, x = random_form(64, 16), torch.randn(50, 16)
    with torch.no_grad():
        form.b_enc.fill_(-100.0)  # the dead say nothing either, so it is 0 / 0
    assert auxiliary_loss(form, x, torch.zeros(50, 16), torch.tensor([3]), 8).item() == 0.0


@pytest.mark.parametrize("residual", [torch.zeros(50, 16), torch.randn(1, 16).expand(50, 16)])
def test_auxiliary_loss_of_what_does_not_vary_has_no_nan_gradients(residual: torch.Tensor) -> None:
    """A batch of one token, too."""
    form, x = random_form(64, 16), torch.randn(50, 16)
    for rows in (50, 1):
        loss = auxiliary_loss(form, x[:rows], residual[:rows], torch.tensor([3, 9]), 8)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in form.parameters())


def test_decoder_gradient_loses_its_part_along_the_rows_and_rows_stay_unit() -> None:
    form = random_form(32, 8)
    form.W_dec.grad = torch.randn(32, 8)
    form.project_decoder_gradient()
    noise = 8 * torch.finfo(torch.float32).eps * float(form.W_dec.grad.norm(dim=1).max())  # sums of 8 terms, unit rows
    torch.testing.assert_close((form.W_dec.grad * form.W_dec).sum(1), torch.zeros(32), atol=noise, rtol=0)
    with torch.no_grad():
        form.W_dec.mul_(3.0)
    form.normalise_decoder()
    torch.testing.assert_close(form.W_dec.norm(dim=1), torch.ones(32))


def test_the_squared_distance_is_autograds() -> None:
    guess, y = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.randn(7, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: distance_squared(x, y), (guess,))
    assert float(distance_squared(guess, y).detach()) == pytest.approx(float((guess - y).square().sum().detach()))
