"""Every kind that can be trained: its loss and gradients by a slow formula, what it recovers, and what it saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_sparse import mask_of, random_form
from test_training import BATCH, FEATURES, D, MemoryStream, config
from torch import Tensor

from monosem.dictionaries import load_dictionary
from monosem.dictionaries.training import train_on
from monosem.dictionaries.training.export import About, export
from monosem.dictionaries.training.form import TrainingForm
from monosem.dictionaries.training.forward import auxiliary_loss, unexplained
from monosem.dictionaries.training.kinds import KINDS, Moment
from monosem.dictionaries.training.kinds.matryoshka import widths_of
from monosem.dictionaries.training.selection import select_abstopk
from monosem.errors import BadInput

MATRYOSHKA = {"kind": "matryoshka", "matryoshka_widths": [8, 24]}


def gradients(form: TrainingForm, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad for name, p in form.named_parameters() if p.grad is not None}


# --- matryoshka -------------------------------------------------------------------------------------------------------


def slow_matryoshka(form: TrainingForm, x: Tensor, k: int, widths: list[int], variance: float) -> Tensor:
    """Mean over prefixes of the error of each prefix's own reconstruction (arXiv 2503.17547, equation 5)."""
    pre = ((x - form.b_dec) @ form.W_enc.T + form.b_enc).relu()
    smallest = pre.flatten().topk(k * len(x)).values.min()
    codes = pre * (pre >= smallest)
    errors = [(x - (codes[:, :width] @ form.W_dec[:width] + form.b_dec)).square().sum(1).mean() for width in widths]
    return sum(errors, torch.zeros(())) / len(errors) / variance


@pytest.mark.parametrize("kernels", ["sparse", "dense"])
@pytest.mark.parametrize("widths", [None, [1], [8, 24], [8, 64]])
def test_the_matryoshka_loss_and_its_gradients_are_those_of_the_slow_formula(kernels: str, widths: Any) -> None:
    settings = config(kind="matryoshka", matryoshka_widths=widths, k=5)
    x, found = 2 * torch.randn(200, D), {}
    for slow in (False, True):
        form = random_form(FEATURES, D)
        if slow:
            prefixes = {None: [4, 8, 16, 32, 64], 1: [1, 64], 8: [*(widths or [])]}[widths and widths[0]]
            loss = slow_matryoshka(form, x, 5, sorted({*prefixes, 64}), 3.0)
        else:
            done = KINDS["matryoshka"].forward[kernels](form, x, settings)
            loss = unexplained(done, x, settings, 3.0)
        found[slow] = (loss, gradients(form, loss))
    torch.testing.assert_close(found[False], found[True], atol=1e-5, rtol=1e-4)


def test_matryoshka_widths_by_default_and_where_they_are_wrong() -> None:
    assert widths_of(config(kind="matryoshka", width=4096)) == [256, 512, 1024, 2048, 4096]
    assert widths_of(config(kind="matryoshka", width=3)) == [1, 3]
    assert widths_of(config(kind="matryoshka", matryoshka_widths=[])) == [64]  # no prefix is not the default
    for wrong in ([8, 8], [24, 8], [8, 65]):
        with pytest.raises(BadInput, match=r"matryoshka_widths must grow and be at most the width, 64: \["):
            config(kind="matryoshka", matryoshka_widths=wrong)
    with pytest.raises(BadInput, match="matryoshka_widths is of kind matryoshka, not of topk; leave it out"):
        config(matryoshka_widths=[8])


def test_the_first_latents_of_a_matryoshka_rebuild_alone(tmp_path: Path) -> None:
    """On the same data, its first latents explain far more than the first of a BatchTopK dictionary."""
    x, explained = next(MemoryStream(seed=7)), {}
    for kind in ("matryoshka", "batchtopk"):
        settings = config(500, log_every=100, **(MATRYOSHKA if kind == "matryoshka" else {"kind": kind}))
        trained = train_on(MemoryStream(), settings, folder=tmp_path / kind, quiet=True)
        first = trained.encode(x).dense()[:, :24] @ trained.W_dec[:24] + trained.b_dec
        explained[kind] = 1 - float((x - first).square().sum() / (x - x.mean(0)).square().sum())
    assert explained["matryoshka"] > explained["batchtopk"] + 0.1


# --- kinds with a penalty ---------------------------------------------------------------------------------------------


def whole_loss(
    settings: Any, form: TrainingForm, x: Tensor, done_share: float, variance: float, kernels: str = "dense"
) -> Tensor:
    """As a step computes it."""
    kind = KINDS[settings.kind]
    done = kind.forward[kernels](form, x, settings)
    loss = unexplained(done, x, settings, variance)
    assert kind.penalty is not None
    return loss + kind.penalty(form, done, x, settings, Moment(done_share, variance**0.5))


def form_of(settings: Any) -> TrainingForm:
    form = random_form(FEATURES, D)
    for name, value in KINDS[settings.kind].own_parameters(settings).items():
        form.own[name] = torch.nn.Parameter(value + 0.3 * torch.rand(FEATURES))
    return form


@pytest.mark.parametrize(
    ("share", "weight", "p"), [(0.05, 0.2, 1.0), (0.5, 0.4, 1.0), (0.75, 0.4, 0.6), (1.0, 0.4, 0.2)]
)
def test_the_l1_loss_rises_and_anneals(share: float, weight: float, p: float) -> None:
    """Weight 0.4 after a tenth of the run, half of it at a twentieth; from half of the run on p goes from 1 to 0.2."""
    settings = config(kind="relu", k=None, sparsity=0.4, p_end=0.2)
    x, form, slow = 2 * torch.randn(100, D), form_of(settings), form_of(settings)
    loss = whole_loss(settings, form, x, share, 3.0)
    codes = ((x - slow.b_dec) @ slow.W_enc.T + slow.b_enc).relu()
    error = (x - codes @ slow.W_dec - slow.b_dec).square().sum(1).mean() / 3.0
    l1 = codes.sum(1).mean() / 3.0**0.5
    assert float(loss) == pytest.approx(float(error + weight * l1), rel=1e-5)
    unit = codes / 3.0**0.5
    powers = torch.where(unit > 0, (unit + 1e-3) ** p, 0.0).sum(1).mean() if p < 1 else l1
    expected = gradients(slow, error + weight * (l1 / powers).detach() * powers)
    torch.testing.assert_close(gradients(form, loss), expected, atol=1e-6, rtol=1e-4)


def test_the_gated_loss_is_that_of_its_paper() -> None:
    """And its auxiliary part teaches the decoder nothing."""
    settings = config(kind="gated", k=None, sparsity=0.4, sparsity_warmup=0.0)
    x, form, slow = 2 * torch.randn(100, D), form_of(settings), form_of(settings)
    loss = whole_loss(settings, form, x, 0.0, 3.0)
    z = x - slow.b_dec
    gate = z @ slow.W_enc.T + slow.b_enc
    magnitude = (z @ (slow.W_enc.T * slow.own["r_mag"].exp()) + slow.own["b_mag"]).relu()
    error = (x - (magnitude * (gate > 0).float()) @ slow.W_dec - slow.b_dec).square().sum(1).mean()
    frozen = (x - gate.relu() @ slow.W_dec.detach() - slow.b_dec.detach()).square().sum(1).mean()
    expected = error / 3.0 + frozen / 3.0 + 0.4 * gate.relu().sum(1).mean() / 3.0**0.5
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(form, loss), gradients(slow, expected), atol=1e-5, rtol=1e-4)


JUMPS = [{"target_l0": 5.0}, {"penalty": "step", "sparsity": 0.01}, {"penalty": "tanh", "sparsity": 0.01}]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("changes", JUMPS)
def test_the_jumprelu_gradients_are_those_of_the_estimator(changes: dict[str, Any], both: bool) -> None:
    """Of the codes' gradient g by plain autograd: θ gets −Σ (θ / ε) g in the window, pre g above θ (or both)."""
    straight = {"straight_through": "both" if both else "threshold", "bandwidth": 0.4}
    settings = config(kind="jumprelu", k=None, sparsity_warmup=0.0, **straight, **changes)
    x, form = 2 * torch.randn(100, D), form_of(settings)
    found = gradients(form, whole_loss(settings, form, x, 0.0, 3.0))
    with torch.no_grad():
        pre = (x - form.b_dec) @ form.W_enc.T + form.b_enc
        theta = form.own["threshold"]
        inside = ((pre - theta) / 0.4).abs() < 0.5
    codes = (pre * (pre > theta)).detach().requires_grad_()
    active = (pre > theta).float().requires_grad_()
    l0 = active.sum(1).mean()
    penalties = {
        None: (l0 / 5 - 1) ** 2, "step": 0.01 * l0, "tanh": 0.01 * (4 * codes / 3.0**0.5).tanh().sum(1).mean()
    }  # fmt: skip
    error = (x - codes @ form.W_dec.detach() - form.b_dec.detach()).square().sum(1).mean() / 3.0
    (error + penalties[changes.get("penalty")] + 0 * l0).backward()
    estimated = inside * (theta * codes.grad + active.grad) / 0.4  # type: ignore[operator]
    torch.testing.assert_close(found["own.threshold"], -estimated.sum(0).detach(), atol=1e-5, rtol=1e-4)
    of_pre = codes.grad * (pre > theta) + (estimated if both else 0)  # type: ignore[operator]
    torch.testing.assert_close(found["b_enc"], of_pre.sum(0).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["W_enc"], (of_pre.T @ (x - form.b_dec)).detach(), atol=1e-5, rtol=1e-4)


SPARSE: list[dict[str, Any]] = [
    {"kind": "relu"},
    {"kind": "relu", "p_end": 0.4},
    {"kind": "gated"},
    *({"kind": "jumprelu", **changes} for changes in JUMPS),
    {"kind": "jumprelu", "straight_through": "both", **JUMPS[0]},
]


@pytest.mark.parametrize("changes", SPARSE)
@pytest.mark.parametrize("active", ["few", "none", "many"])
def test_sparse_passes_of_kinds_with_a_penalty_equal_dense_ones(changes: dict[str, Any], active: str) -> None:
    """Where few latents are active, sparse products are used; where many are, dense ones."""
    window = {"bandwidth": 0.3} if changes["kind"] == "jumprelu" else {}
    settings, x = config(k=None, **changes, **window), torch.randn(100, D)
    found = []
    for kernels in ("sparse", "dense"):
        form = form_of(settings)
        with torch.no_grad():
            form.b_enc.sub_({"few": 2.0, "none": 100.0, "many": 0.0}[active])
        done = KINDS[settings.kind].forward[kernels](form, x, settings)
        assert (done.support is None) == (kernels == "dense" or active == "many")
        loss = whole_loss(settings, form, x, 0.8, 3.0, kernels)
        found.append((loss, done.reconstruction, done.fired, done.active, gradients(form, loss)))
    assert (int(found[0][3]) > 0) == (active != "none")
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("target", [2.0, 6.0])
def test_jumprelu_comes_to_the_l0_that_was_asked_for(tmp_path: Path, target: float) -> None:
    trained = train_on(MemoryStream(), of("jumprelu", 400, target_l0=target), folder=tmp_path, quiet=True)
    found = float(trained.encode(next(MemoryStream(seed=7))).l0().float().mean())
    assert found == pytest.approx(target, rel=0.35)
    assert trained.threshold is not None
    assert len(trained.threshold.unique()) > FEATURES / 2
    assert trained.threshold.min() >= 0


def test_a_larger_penalty_makes_sparser_codes(tmp_path: Path) -> None:
    for kind in ("relu", "gated"):
        l0 = []
        for weight in (0.1, 1.0):
            settings = of(kind, 200, sparsity=weight)
            seen: list[Any] = []
            train_on(MemoryStream(), settings, folder=tmp_path / f"{kind}{weight}", quiet=True, on_step=seen.append)
            l0.append(seen[-1]["l0"])
            assert 0 < seen[-1]["sparsity"] < seen[-1]["loss"]
        assert l0[1] < 0.6 * l0[0]


# --- abstopk and matching pursuit -------------------------------------------------------------------------------------


def test_abstopk_selection_is_exact() -> None:
    form = random_form(512, 24)
    x = torch.randn(1500, 24)
    pre = x @ form.W_enc.T + form.b_enc
    support, _ = select_abstopk(x, (form.W_enc.detach(), form.b_enc.detach()), 6, False)
    expected = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.abs().topk(6).indices, True)
    assert torch.equal(mask_of(support, 1500), expected)


def test_the_sparse_signed_step_is_the_dense_one_with_autograd() -> None:
    settings, dead = config(kind="abstopk", k=6), torch.arange(0, 64, 3)
    x, found = 2 * torch.randn(200, D), []
    for kernels in ("sparse", "dense"):
        form = random_form(FEATURES, D)
        done = KINDS["abstopk"].forward[kernels](form, x, settings)
        residual = x - done.reconstruction
        loss = residual.square().sum(1).mean() + auxiliary_loss(form, x, residual, dead, 4, signed=True)
        assert int(done.active) == 6 * 200
        found.append((loss, done.fired, gradients(form, loss)))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_the_signed_auxiliary_loss_ranks_by_magnitude() -> None:
    form, x, dead = random_form(FEATURES, D), torch.randn(50, D), torch.tensor([3, 9, 11, 40])
    residual = torch.randn(50, D)
    pre = ((x - form.b_dec) @ form.W_enc.T + form.b_enc)[:, dead]
    codes = pre * torch.zeros_like(pre).scatter(1, pre.abs().topk(2).indices, 1.0)
    error = (residual - codes @ form.W_dec[dead]).square().mean() / (residual - residual.mean(0)).square().mean()
    torch.testing.assert_close(auxiliary_loss(form, x, residual, dead, 2, signed=True), error)


def test_matching_pursuit_and_its_gradients_are_those_of_plain_autograd() -> None:
    settings, x = config(kind="matching_pursuit", k=5), 2 * torch.randn(60, D)
    form, slow = random_form(FEATURES, D), random_form(FEATURES, D)
    done = KINDS["matching_pursuit"].forward["dense"](form, x, settings)
    left, chosen = x - slow.b_dec, torch.zeros(60, FEATURES)
    for _ in range(5):
        products = left @ slow.W_dec.T
        best = products.detach().argmax(1)
        value = products[torch.arange(60), best].relu()
        chosen[torch.arange(60), best] += value.detach()
        left = left - value[:, None] * slow.W_dec[best]
    torch.testing.assert_close(done.reconstruction, x - left, atol=1e-5, rtol=1e-5)
    assert int(done.active) == int((chosen > 0).sum())
    assert torch.equal(done.fired, (chosen > 0).any(0))
    ours = gradients(form, (x - done.reconstruction).square().sum())
    theirs = gradients(slow, left.square().sum())
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "relu"}, "k is of kind topk or .*, not of relu; leave it out"),
        ({"k": None}, "k: kind topk needs it"),
        ({"kind": "jumprelu", "k": None}, "the quadratic penalty needs target_l0"),
        ({"kind": "jumprelu", "k": None, "penalty": "step", "target_l0": 3}, "the step penalty has no target_l0"),
        ({"sparsity": 1.0}, "sparsity is of kind jumprelu or gated or relu, not of topk"),
        ({"kind": "matching_pursuit", "kernels": "sparse"}, "kernels: kind matching_pursuit has only dense ones"),
        ({"kind": "matching_pursuit", "auxk": 3}, "auxk: kind matching_pursuit has no use for it"),
        (
            {"kind": "abstopk", "site_out": "mlp_out.1"},
            "no file format holds a transcoder of kind abstopk; take",
        ),
    ],
)
def test_settings_that_a_kind_does_not_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        config(**changes)


# --- every kind -------------------------------------------------------------------------------------------------------

FREE = {"k": None}
CASES: dict[str, dict[str, Any]] = {
    "matryoshka": MATRYOSHKA,
    "jumprelu": FREE | {"target_l0": 3.0},
    "gated": FREE | {"sparsity": 0.5},
    "relu": FREE | {"sparsity": 0.3},
}


def of(kind: str, steps: int = 30, **changes: Any) -> Any:
    return config(steps, **{"kind": kind} | CASES.get(kind, {}) | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_recovered_and_the_file_does_what_training_did(tmp_path: Path, kind: str) -> None:
    stream, seen = MemoryStream(), []
    train_on(stream, of(kind, 500, log_every=100), folder=tmp_path, quiet=True, on_step=seen.append)
    loaded, x = load_dictionary(tmp_path), next(stream)
    cosines = stream.truth @ loaded.W_dec.T
    random = stream.truth @ torch.nn.functional.normalize(torch.randn(D, FEATURES), dim=0)
    assert cosines.amax(1).mean() > random.amax(1).mean() + 0.2
    fve = 1 - float((x - loaded(x)).square().sum() / (x - x.mean(0)).square().sum())
    assert fve > 0.6
    assert fve == pytest.approx(seen[-1]["fve"], abs=0.05)
    assert loaded.metadata["training_architecture"] == KINDS[kind].architecture
    assert float(loaded.encode(x).l0().float().mean()) == pytest.approx(seen[-1]["l0"], rel=0.15)


@pytest.mark.parametrize("scale", [1.0, 0.006])
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_computes_on_raw_activations_what_the_form_does(tmp_path: Path, kind: str, scale: float) -> None:
    settings, x = of(kind, **({} if "k" in CASES.get(kind, {}) else {"k": 5})), torch.randn(300, D)
    form = form_of(settings)
    with torch.no_grad():
        form.normalise_decoder()
        done = next(iter(KINDS[kind].forward.values()))(form, x, settings)
    # strictly above the threshold is active: just below the smallest code of this batch keeps them all
    threshold = float(done.floor) * (1 - 1e-6) if KINDS[kind].one_threshold else None
    export(form, settings, (scale, scale), threshold, About("tiny", "run", {})).save(tmp_path)
    loaded = load_dictionary(tmp_path)
    raw = x / scale
    torch.testing.assert_close(loaded(raw) * scale, done.reconstruction, atol=1e-4, rtol=1e-4)
    assert int((loaded.encode(raw).values != 0).sum()) == int(done.active)
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(FEATURES))


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, kind: str) -> None:
    class Killed(Exception):
        pass

    def kill(record: dict[str, float]) -> None:
        if record["step"] == 17:
            raise Killed

    settings = of(kind, 40, checkpoint_tokens=7 * BATCH)
    whole = train_on(MemoryStream(), settings, folder=tmp_path / "whole", quiet=True)
    with pytest.raises(Killed):
        train_on(MemoryStream(), settings, folder=tmp_path / "run", quiet=True, on_step=kill)
    again = train_on(MemoryStream(), settings, folder=tmp_path / "run", quiet=True)
    for name, tensor in whole.tensors.present().items():
        assert torch.equal(again.tensors.present()[name], tensor), name


def test_a_matryoshka_file_says_its_widths(tmp_path: Path) -> None:
    train_on(MemoryStream(), of("matryoshka"), folder=tmp_path, quiet=True)
    loaded = load_dictionary(tmp_path)
    assert loaded.kind == "jumprelu"
    assert loaded.threshold is not None
    torch.testing.assert_close(loaded.threshold, loaded.threshold[:1].expand(FEATURES), atol=0, rtol=1e-5)
    assert loaded.metadata["training_architecture"] == "matryoshka_batchtopk"
    assert loaded.metadata["matryoshka_widths"] == [8, 24, 64]
