"""The experiment loop and its numbers, with made-up generators: many variants at once, batches of pairs, sizes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from monosem.data import TokenPairs
from monosem.errors import BadInput, UnknownName
from monosem.models import TokenBatch
from monosem.patching import Experiment, Measured
from monosem.patching.scoring import metrics_of

VOCAB = 8


def make_pairs(count: int) -> TokenPairs:
    clean, corrupted = (TokenBatch.of([[row, side] for row in range(count)], 0) for side in (1, 2))
    answers = [torch.full((count,), token) for token in (3, 5)]
    return TokenPairs(clean, corrupted, *answers)


@dataclass(frozen=True)
class Made:
    """A trial: the pairs, which of their numbers they are, and logits of both sides."""

    pairs: TokenPairs
    rows: slice
    clean_logits: Tensor
    other_logits: Tensor


def make(count: int, at_once: int = 1, draws: int = 1, seed: int = 0, **more: Any) -> tuple[Experiment, Tensor, Tensor]:
    """An experiment on random logits, clean `pairs vocab` and corrupted `draws pairs vocab`."""
    draw = torch.Generator().manual_seed(seed)
    pairs = make_pairs(count)
    clean, corrupted = torch.randn(count, VOCAB, generator=draw), torch.randn(draws, count, VOCAB, generator=draw)
    clean[:, 3] += 4

    def trials(rows: slice) -> Iterator[tuple[Made, float]]:
        for other in corrupted:
            yield Made(pairs[rows], rows, clean[rows], other[rows]), 1 / draws

    options = {"metrics": metrics_of("logit_diff"), "direction": "denoising"} | more
    return Experiment(pairs, trials=trials, at_once=at_once, model="made up", **options), clean, corrupted


def difference(logits: Tensor) -> Tensor:
    return (logits[..., 3] - logits[..., 5]).double()


def mixed(shares: Tensor, step: int) -> Any:
    """Variants whose logits are corrupted + share · (clean - corrupted), `step` variants at once."""

    def variants(trial: Made) -> Iterator[tuple[range, Tensor]]:
        for first in range(0, len(shares), step):
            which = range(first, min(first + step, len(shares)))
            part = shares[which.start : which.stop, None, None]
            yield which, (trial.other_logits + part * (trial.clean_logits - trial.other_logits)).flatten(0, 1)

    return variants


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("draws", [1, 3])
def test_every_batching_of_pairs_and_variants_gives_the_same(at_once: int, draws: int) -> None:
    experiment, clean, corrupted = make(5, at_once, draws)
    shares = torch.linspace(0, 1, 7)
    run = experiment.run(mixed(shares, 3), {"share": shares}, label="mix", quiet=True)
    other = difference(corrupted).mean(0)
    torch.testing.assert_close(run.corrupted["logit_diff"], other)
    torch.testing.assert_close(run.clean["logit_diff"], difference(clean))
    expected = other + shares.double()[:, None] * (difference(clean) - other)
    torch.testing.assert_close(run.values["logit_diff"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run.scores(), shares.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_running_moments_are_the_statistics_of_kept_values(direction: str) -> None:
    experiment, _, _ = make(9, at_once=2, draws=2, direction=direction)
    noise = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)).double() * torch.arange(1, 7)[:, None]

    def variants(trial: Made) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        yield slice(None), {"logit_diff": noise[:, trial.rows] + difference(trial.clean_logits)}

    columns = {"edge": range(6)}
    kept, running = (experiment.run(variants, columns, label="edges", keep=keep, quiet=True) for keep in (True, False))
    pd.testing.assert_frame_equal(running.table, kept.table, rtol=1e-10)
    pd.testing.assert_frame_equal(running.take([4, 1]).table, kept.take([4, 1]).table, rtol=1e-10)
    assert kept.score_se().isfinite().all()
    with pytest.raises(BadInput, match="keep=True"):
        running.effects()


def test_a_hundred_thousand_edges_are_one_table(tmp_path: Any) -> None:
    """Scores of edges, all at once for each pair: no Python object an edge, and top, grid and plot still work."""
    senders, receivers = torch.meshgrid(torch.arange(400), torch.arange(250), indexing="ij")
    columns = {"sender": senders.flatten(), "receiver": receivers.flatten().numpy()}
    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(2)).double()
    experiment, clean, _ = make(40, at_once=8)

    def scores(trial: Made) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        base = difference(trial.other_logits)
        for which in torch.arange(100_000).split(30_000):  # by index tensors as well as by ranges
            yield which, {"logit_diff": base + weights[which, None] * difference(trial.clean_logits)}

    began = time.process_time()
    run = experiment.run(scores, columns, label="edges", unit="edge", keep=False, quiet=True)
    top, grid = run.top(5), run.grid_over(("sender", "receiver"), run.effect())[0]
    assert len(run.table) == len(run) == 100_000
    assert time.process_time() - began < 10  # a second or so; one object an edge and pair would take minutes
    order = weights.abs().argsort(descending=True)[:5]
    assert top.sender.tolist() == columns["sender"][order].tolist()
    assert top.receiver.tolist() == columns["receiver"][order.numpy()].tolist()
    torch.testing.assert_close(run.effect(), weights * difference(clean).mean(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grid.flatten(), run.effect())
    assert run.best.sender == columns["sender"][order[0]]
    assert len(run.plot().data[0].x) == 30
    run.save(tmp_path / "edges.csv")
    with pytest.raises(BadInput, match="only means"):
        _ = run.values


def test_circuits_of_growing_size_are_a_line() -> None:
    """Variants are sizes of a circuit: its best edges are restored, the score says how much they carry."""
    sizes = torch.tensor([0, 1, 2, 4, 8, 16])
    experiment, _, _ = make(6)
    run = experiment.run(mixed(sizes / 16, 2), {"edges": sizes}, label="circuits", quiet=True)
    assert run.scores().tolist() == pytest.approx((sizes / 16).tolist(), abs=1e-5)
    line = run.plot().data[0]
    assert list(line.x) == sizes.tolist()
    assert list(line.y) == pytest.approx(run.scores().tolist())
    assert run.plot().layout.xaxis.title.text == "edges"
    assert list(run.table.columns[:2]) == ["edges", "metric"]
    assert run.top(1).edges[0] == 16


def test_numbers_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, _, _ = make(3)
    shares = torch.linspace(0, 1, 4)
    run = lambda: experiment.run(mixed(shares, 4), {"share": shares}, label="mix", quiet=True)  # noqa: E731
    assert run().values["logit_diff"].shape == (4, 3)
    monkeypatch.setattr("monosem.patching.experiment.KEPT_NUMBERS", 11)
    with pytest.raises(BadInput, match="keep=True"):
        _ = run().values


def test_a_generator_that_leaves_variants_out_is_found_out() -> None:
    experiment, _, _ = make(2)
    with pytest.raises(RuntimeError, match="of 5 variants, 2 did not; variant 3 came 0 times"):
        experiment.run(mixed(torch.zeros(3), 3), {"share": range(5)}, label="mix", quiet=True)


def test_a_generator_that_gives_a_variant_twice_is_found_out() -> None:
    """As many numbers as variants, and one of them is of the wrong variant."""
    experiment, _, _ = make(2)
    twice = lambda trial: [([0, 0, 2], {"logit_diff": torch.ones(3)})]  # noqa: E731
    with pytest.raises(RuntimeError, match="of 3 variants, 2 did not; variant 0 came 2 times"):
        experiment.run(twice, {"share": range(3)}, label="mix", quiet=True)


@pytest.mark.parametrize("at_once", [1, 3])
def test_two_runs_that_are_the_same_are_refused_with_the_numbers(at_once: int) -> None:
    """Their scores would be 0 / 0."""
    experiment, clean, corrupted = make(3, at_once)
    corrupted[:, 1] = clean[1]
    value = float(difference(clean)[1])
    with pytest.raises(BadInput, match=f"pair 1 are the same .logit_diff {value:.4g} and {value:.4g}."):
        experiment.run(mixed(torch.linspace(0, 1, 4), 4), {"share": range(4)}, label="mix", quiet=True)
    bare = replace(experiment, has_scale=False)  # values, such as means, have no run to compare with
    assert bare.run(mixed(torch.ones(1), 1), {"share": range(1)}, label="mix", quiet=True).effect().isfinite().all()


@pytest.mark.parametrize("where", ["clean", "corrupted", "patched", "metric"])
def test_numbers_that_are_not_finite_are_refused(where: str) -> None:
    """They would make every mean over pairs NaN, and `top` would hide them."""
    metric = {"mine": lambda logits, pairs, clean: (logits[:, 3] - logits[:, 5]).where(logits[:, 0] < 90, torch.nan)}
    experiment, clean, corrupted = make(4, 2, metrics=metric)
    bad = {"clean": clean[2], "corrupted": corrupted[0, 2]}.get(where)
    if bad is not None:
        bad[:] = torch.nan
    if where == "metric":
        clean[2, 0] = 100

    def variants(trial: Made) -> Iterator[tuple[range, Tensor]]:
        logits = trial.other_logits.clone()
        if where == "patched" and trial.rows.start == 2:
            logits[0] = torch.inf
        yield range(1), logits

    message = "metric that is not defined" if where == "metric" else "logits are not finite"
    with pytest.raises(BadInput, match=f"mine is nan in a .* run of pair 2; .*{message}"):
        experiment.run(variants, {"which": range(1)}, label="mix", quiet=True)


def test_the_numbers_of_a_result_by_hand() -> None:
    draw = torch.Generator().manual_seed(4)
    values, clean, corrupted = (torch.randn(*shape, generator=draw).double() for shape in ((3, 50), (50,), (50,)))
    clean += 3
    found = Measured(
        numbers={"m": values}, clean={"m": clean}, corrupted={"m": corrupted}, direction="noising",
        columns={"name": ["a", "b", "c"]},
    )  # fmt: skip
    table = found.rows("m")
    assert table.value.to_numpy() == pytest.approx(values.mean(1).numpy())
    assert table.value_se.to_numpy() == pytest.approx(np.std(values.numpy(), axis=1, ddof=1) / 50**0.5)
    assert table.effect_se.to_numpy() == pytest.approx(np.std((values - clean).numpy(), axis=1, ddof=1) / 50**0.5)
    gap = clean.mean() - corrupted.mean()
    assert table.score.to_numpy() == pytest.approx(((values.mean(1) - corrupted.mean()) / gap).numpy())
    assert found.top(2).effect.abs().is_monotonic_decreasing
    assert found.top(3, "score").score.abs().is_monotonic_decreasing
    assert found.best["name"] == found.top(1)["name"][0]
    assert [trace.type for trace in found.plot().data] == ["bar"]
    for call, message in (
        (lambda: found.top(3, "scores"), "did you mean 'score'"),
        (lambda: found.mean("n"), "no metric 'n'"),
    ):
        with pytest.raises(UnknownName, match=message):
            call()
