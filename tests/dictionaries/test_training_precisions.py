"""Precisions of training, and that a step makes no GPU wait. No GPU is needed: what would wait is seen on the CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from monosem.dictionaries.training.config import TrainConfig
from monosem.dictionaries.training.forward import passes_of, unexplained
from monosem.dictionaries.training.kinds import KINDS, Moment
from monosem.dictionaries.training.precisions import PRECISIONS
from monosem.dictionaries.training.state import DEAD_EVERY, Batch, TrainingState
from monosem.dictionaries.training.step import train_step
from monosem.jobs import Health
from monosem.models.loading.precision import has_vnni

CPU, D, FEATURES, BATCH = torch.device("cpu"), 48, 192, 256
WAITING = {  # operators after which a GPU's host has to know a number or a size
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive",
    "bincount", "histc", "repeat_interleave",
}  # fmt: skip
HOST = ("tolist", "numpy", "cpu", "item", "__bool__", "__float__", "__int__")


class Watched(TorchDispatchMode):
    """Notes what would make a GPU wait, and in which dtypes matrices are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        sized = name == "repeat_interleave" and kwargs.get("output_size") is not None
        masked = name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple)
        masked = masked and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        if masked or (name in WAITING and not sized):
            self.waits.append(name)
        if name in ("mm", "addmm", "bmm"):
            self.products |= {t.dtype for t in args if isinstance(t, Tensor) and t.ndim > 1}
        return func(*args, **kwargs)


def config(kind: str, **changes: Any) -> TrainConfig:
    sizes: dict[str, Any] = {"k": 6} if "k" in KINDS[kind].needed else {}
    sizes |= {"target_l0": 6.0} if kind == "jumprelu" else {}
    values = {
        "model": "tiny", "site": "resid_post.1", "kind": kind, "width": FEATURES, "batch_tokens": BATCH,
        "tokens": 400 * BATCH, "dead_tokens": 4 * BATCH, "lr": 3e-3, "warmup_steps": 0, **sizes, **changes,
    }  # fmt: skip
    return TrainConfig.parse(values)


def started(settings: TrainConfig) -> tuple[TrainingState, list[Batch]]:
    torch.manual_seed(0)
    hidden = torch.randn(4 * BATCH, 30)
    rows = [(hidden @ torch.randn(30, D) + torch.randn(D)).split(BATCH) for _ in settings.sites]
    batches: list[Batch] = list(rows[0]) if len(rows) == 1 else list(zip(*rows))
    return TrainingState.begin(settings, list(batches), CPU), batches


def trained(settings: TrainConfig, steps: int) -> tuple[TrainingState, list[dict[str, Any]]]:
    (state, batches), health = started(settings), Health(CPU)
    return state, [train_step(state, settings, batches[i % 4], CPU, health, logged=True) for i in range(steps)]


def watched_step(settings: TrainConfig, logged: bool, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """A step between two looks at which latents are dead, with dead latents."""
    (state, batches), health = started(settings), Health(CPU)
    for i in range(DEAD_EVERY + 1):
        train_step(state, settings, batches[i % 4], CPU, health, logged=False)
    state.dead = [torch.arange(5) for _ in state.form.layers]
    with Watched() as seen, monkeypatch.context() as patched:
        for name in HOST:
            old = getattr(Tensor, name)
            note = lambda tensor, *a, old=old, name=name, **k: (seen.waits.append(name), old(tensor, *a, **k))[1]  # noqa: E731
            patched.setattr(Tensor, name, note)
        train_step(state, settings, batches[0], CPU, health, logged=logged)
    return seen


@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize(
    ("kind", "kernels"),
    [(name, "dense") for name, kind in KINDS.items() if "dense" in kind.forward]
    + [("topk", "sparse"), ("abstopk", "sparse")],
)
def test_an_unlogged_step_makes_no_gpu_wait(
    kind: str, kernels: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monosem.dictionaries.training.kinds.topk.screens", lambda *_: False)  # as on a GPU
    settings = config(kind, kernels=kernels, precision=precision)
    assert watched_step(settings, False, monkeypatch).waits == []


SEVERAL = {
    "crosscoder": {"site": "resid_post.0-2"},
    "cross-layer": {"site": "mlp_input.0-2", "site_out": "mlp_out.0-2"},
}


@pytest.mark.parametrize("what", SEVERAL)
@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu", "relu"])
def test_an_unlogged_step_of_several_sites_makes_no_gpu_wait(
    what: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(kind, kernels="dense", precision="bf16", **SEVERAL[what])
    seen = watched_step(settings, False, monkeypatch)
    assert seen.waits == []
    assert torch.bfloat16 in seen.products


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if "dense" in kind.forward])
def test_losses_of_bf16_products_are_float32(kind: str) -> None:
    settings = config(kind, kernels="dense", precision="bf16")
    state, batches = started(settings)
    x, y, _ = state.scaled(batches[0], CPU)
    with PRECISIONS["bf16"].products(CPU):
        (done,) = passes_of(state.form, x, settings, CPU)
        penalty = KINDS[kind].penalty
        sparsity = None if penalty is None else penalty(state.form, done, y, settings, Moment(1.0, state.unit))
    assert done.reconstruction.dtype == torch.float32
    assert unexplained(done, y, settings, state.variance).dtype == torch.float32
    assert sparsity is None or sparsity.dtype == torch.float32


def test_the_watch_sees_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tolist" in watched_step(config("topk", kernels="dense"), True, monkeypatch).waits
    sparse = watched_step(config("batchtopk", kernels="sparse"), False, monkeypatch).waits
    assert {"_local_scalar_dense", "nonzero"} <= set(sparse)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if "dense" in kind.forward])
def test_bf16_multiplies_in_bfloat16_and_learns_in_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(kind, kernels="dense", precision="bf16")
    products = watched_step(settings, False, monkeypatch).products
    assert torch.bfloat16 in products
    state, records = trained(settings, 60)
    _, exact = trained(config(kind, kernels="dense"), 60)
    kept = [*state.form.parameters(), *(v for s in state.optimizer.state.values() for v in s.values())]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert records[-1]["fve"] == pytest.approx(exact[-1]["fve"], abs=0.01)
    assert records[-1]["loss"] != exact[-1]["loss"]
    assert records[-1]["fve"] > records[0]["fve"]


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_sparse_kernels_are_float32_in_every_precision(kind: str) -> None:
    losses = [
        [r["loss"] for r in trained(config(kind, kernels="sparse", precision=p), 12)[1]] for p in ("exact", "bf16")
    ]
    assert losses[0] == losses[1]


@pytest.mark.skipif(not has_vnni(), reason="this CPU has no products of 8-bit numbers")
@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_a_screen_changes_nothing_that_is_learned(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    for screen in (False, True):
        monkeypatch.setattr("monosem.dictionaries.training.kinds.topk.screens", lambda *_, on=screen: on)
        fits.append([r["loss"] for r in trained(config(kind, kernels="sparse"), 20)[1]])
    assert fits[0] == pytest.approx(fits[1], rel=1e-4)
