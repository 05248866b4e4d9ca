"""Every kind that can be trained: its loss and gradients by a slow formula, what it recovers, and what it saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_sparse import random_form
from test_training import BATCH, FEATURES, D, MemoryStream, config
from torch import Tensor

from monosem.dictionaries import load_dictionary
from monosem.dictionaries.training import train_on
from monosem.dictionaries.training.form import TrainingForm
from monosem.dictionaries.training.forward import unexplained
from monosem.dictionaries.training.kinds import KINDS
from monosem.dictionaries.training.kinds.matryoshka import widths_of
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


# --- every kind -------------------------------------------------------------------------------------------------------

CASES = {"topk": {}, "batchtopk": {}, "matryoshka": MATRYOSHKA}


def of(kind: str, steps: int = 30, **changes: Any) -> Any:
    return config(steps, **{"kind": kind} | CASES[kind] | changes)


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
    assert float(loaded.encode(x).l0().float().mean()) == pytest.approx(seen[-1]["l0"], rel=0.15)


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
