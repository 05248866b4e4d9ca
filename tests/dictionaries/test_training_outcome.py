"""How a training run ends: thresholds of short runs, outliers, results that are none; and what it starts from."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import BATCH, FEATURES, D, MemoryStream, config
from torch import Tensor

from monosem.dictionaries import Dictionary, load_dictionary
from monosem.dictionaries.training import outcome, train_on, trainer
from monosem.dictionaries.training.architectures import ARCHITECTURES
from monosem.dictionaries.training.kinds import KINDS
from monosem.errors import BadInput, Mismatch
from monosem.jobs import Interrupted


def fit(dictionary: Dictionary, x: Tensor) -> tuple[float, float]:
    """FVE and L0 by their definitions."""
    error = (x - dictionary(x)).square().sum() / (x - x.mean(0)).square().sum()
    return float(1 - error), float((dictionary.encode(x).dense() > 0).float().sum(1).mean())


def fresh() -> Tensor:
    stream = MemoryStream(seed=7)
    return torch.cat([next(stream) for _ in range(8)])


def end(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["end"]


# --- the file as it was saved -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize("steps", [25, 60])
def test_the_file_of_a_short_run_does_what_training_did(tmp_path: Path, steps: int, kind: str) -> None:
    """A threshold that follows the smallest codes slowly is far too high here: random weights have larger codes."""
    seen: list[dict[str, float]] = []
    train_on(MemoryStream(), config(steps, kind=kind), folder=tmp_path, quiet=True, on_step=seen.append)
    fve, l0 = fit(load_dictionary(tmp_path / "dictionary"), fresh())
    assert l0 == pytest.approx(seen[-1]["l0"], rel=0.1)
    assert fve == pytest.approx(seen[-1]["fve"], abs=0.03)
    card = json.loads((tmp_path / "dictionary" / "card.json").read_text())
    assert card["last_activations"] == end(tmp_path)
    assert (card["finished"], card["step"]) == (True, steps)
    assert end(tmp_path)["saved"]["fve"] == pytest.approx(fve, abs=0.03)
    assert end(tmp_path)["saved"]["l0"] == pytest.approx(l0, rel=0.1)


@pytest.mark.parametrize("wrong", [{"threshold": 3.0}, {"scale": 0.5}])
def test_a_file_that_differs_from_training_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, float]
) -> None:
    sae = outcome.ARCHITECTURES["sae"]

    def broken(form: Any, config: Any, scales: Any, thresholds: Any, *rest: Any) -> Dictionary:
        scales = [scale * wrong.get("scale", 1) for scale in scales]
        thresholds = [threshold * wrong.get("threshold", 1) for threshold in thresholds]
        return sae.exported(form, config, scales, thresholds, *rest)

    monkeypatch.setitem(outcome.ARCHITECTURES, "sae", replace(sae, exported=broken))
    with pytest.raises(
        BadInput, match=r"not finished: its file gives FVE .* at L0 .*, training gave FVE .* at L0 3\.0"
    ):
        train_on(MemoryStream(), config(60, kind="batchtopk"), folder=tmp_path, quiet=True)
    with pytest.warns(UserWarning, match="not finished: its file gives"):
        load_dictionary(tmp_path)
    monkeypatch.undo()
    train_on(MemoryStream(), config(60, kind="batchtopk"), folder=tmp_path, quiet=True)  # the weights were kept
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dictionary(tmp_path)


def test_a_dictionary_that_explains_nothing_is_no_result(tmp_path: Path) -> None:
    turned = MemoryStream(alter=lambda n, x: x if n < 20 else -x)
    with pytest.raises(BadInput, match=r"not finished: it rebuilds activations worse than their mean .*FVE -.*marked"):
        train_on(turned, config(30), folder=tmp_path, quiet=True)
    assert json.loads((tmp_path / "dictionary" / "card.json").read_text())["finished"] is False
    with pytest.raises(BadInput, match="not finished"):  # also when it is asked for again
        train_on(MemoryStream(batches=0), config(30), folder=tmp_path, quiet=True)


def test_a_dictionary_of_dead_latents_is_no_result(tmp_path: Path) -> None:
    settings = config(60, width=4096, k=1, auxk=0, lr=0.03, dead_tokens=10 * BATCH)
    with pytest.raises(BadInput, match=r"not finished: \d+% of its latents are dead: make width smaller"):
        train_on(MemoryStream(), settings, folder=tmp_path, quiet=True)
    assert end(tmp_path)["dead"] > 0.5


def test_dead_latents_are_not_known_before_they_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 9 steps none can be silent for 10: it said 0.0 %."""
    for steps, known in ((9, False), (10, True), (30, True)):
        run = tmp_path / str(steps)
        train_on(MemoryStream(), config(steps, width=512, dead_tokens=None), folder=run)
        dead = {
            line["step"]: line["dead"] for line in map(json.loads, (run / "metrics.jsonl").open()) if "end" not in line
        }
        assert [step for step, share in dead.items() if share is None] == list(range(1, min(steps, 9) + 1))
        assert end(run)["dead"] == dead[steps]
        told = capsys.readouterr().err
        assert ("too few steps to say how many of the latents dead" in told) != known
        if known:
            saved = load_dictionary(run / "dictionary")
            seen = torch.cat([fresh(), fresh()])
            assert dead[steps] == pytest.approx(
                float((~(saved.encode(seen).dense() > 0).any(0)).float().mean()), abs=0.15
            )
            assert f"{dead[steps]:.1%} of the latents dead" in told


def test_each_dictionary_has_a_name_of_its_own(tmp_path: Path) -> None:
    for run in ("a/sae", "b/sae"):
        train_on(MemoryStream(), config(5, seed=ord(run[0])), folder=tmp_path / run, quiet=True)
    one, two = (load_dictionary(tmp_path / run).name for run in ("a/sae", "b/sae"))
    assert one != two
    assert one.startswith("tiny/resid_post.1/sae-")
    load_dictionary(tmp_path / "a/sae").save(tmp_path / "copy")
    assert load_dictionary(tmp_path / "copy").name == one


# --- outliers ---------------------------------------------------------------------------------------------------------


def wild(batch: int, size: float = 1e5) -> MemoryStream:
    def alter(n: int, x: Tensor) -> Tensor:
        x[17] = x[17] * size if n == batch else x[17]
        return x

    return MemoryStream(alter=alter)


@pytest.mark.parametrize("size", [100.0, 1e5, 1e30])
def test_a_wild_row_among_the_first_batches_ruins_nothing(tmp_path: Path, size: float) -> None:
    calm = train_on(MemoryStream(), config(120), folder=tmp_path / "calm", quiet=True)
    with pytest.warns(UserWarning, match=r"1 of the first 1,024 activations are outliers, of norm up to"):
        ruffled = train_on(wild(2, size), config(120), folder=tmp_path / "wild", quiet=True)
    assert fit(ruffled, fresh())[0] == pytest.approx(fit(calm, fresh())[0], abs=0.02)
    assert ruffled.metadata["outliers"] == 1


def test_a_wild_row_on_the_way_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm = train_on(MemoryStream(), config(60), folder=tmp_path / "calm", quiet=True)
    ruffled = train_on(wild(40), config(60), folder=tmp_path / "wild")
    assert "1 outliers were left out" in capsys.readouterr().err
    assert fit(ruffled, fresh())[0] == pytest.approx(fit(calm, fresh())[0], abs=0.02)
    kept = train_on(wild(40), config(60, outlier=None), folder=tmp_path / "kept", quiet=True)
    assert kept.metadata["outliers"] == 0
    assert not torch.allclose(kept.W_dec, ruffled.W_dec, atol=1e-3)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_rows_that_are_left_out_have_no_share_in_k(tmp_path: Path, kind: str) -> None:
    """Of a stream with a third of outliers, the file has k latents a row that counts, and the card says so."""

    def alter(n: int, x: Tensor) -> Tensor:
        x[::3] *= 1e4
        return x

    with pytest.warns(UserWarning, match="outliers"):
        train_on(MemoryStream(alter=alter), config(60, kind=kind), folder=tmp_path, quiet=True)
    assert fit(load_dictionary(tmp_path), fresh())[1] == pytest.approx(3.0, rel=0.1)
    assert end(tmp_path)["saved"]["l0"] == pytest.approx(3.0, rel=0.1)


# --- the latest state, and going on from it ---------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_at(step: int) -> Any:
    def note(record: dict[str, float]) -> None:
        if record["step"] == step:
            raise Killed

    return note


def test_the_latest_state_of_a_killed_run_is_a_dictionary(tmp_path: Path) -> None:
    settings = config(60, kind="batchtopk", checkpoint_tokens=25 * BATCH)
    with pytest.raises(Killed):
        train_on(MemoryStream(), settings, folder=tmp_path, quiet=True, on_step=killed_at(33))
    with pytest.warns(UserWarning, match="not finished: step 25 of 60"):
        latest = load_dictionary(tmp_path)
    assert latest.metadata["training_tokens"] == 25 * BATCH
    assert fit(latest, fresh())[1] == pytest.approx(3, rel=0.1)
    checkpoint = torch.load(tmp_path / "checkpoints" / "step-000000025.pt", weights_only=True)
    torch.testing.assert_close(latest.W_dec, checkpoint["state"]["form"]["W_dec"])
    whole = train_on(MemoryStream(), settings, folder=tmp_path / "whole", quiet=True)
    assert torch.equal(train_on(MemoryStream(), settings, folder=tmp_path, quiet=True).W_enc, whole.W_enc)


def test_the_first_checkpoint_comes_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a minute, though the others are five minutes apart."""
    clock = [0.0]
    monkeypatch.setattr(trainer.time, "monotonic", lambda: clock[0])

    def tick(record: dict[str, float]) -> None:
        clock[0] += 10
        killed_at(20)(record)

    with pytest.raises(Killed):
        train_on(MemoryStream(), config(60), folder=tmp_path, quiet=True, on_step=tick)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000004.pt"]


def test_a_run_stopped_before_its_first_step_is_not_lost(tmp_path: Path) -> None:
    class Slow(MemoryStream):
        """Says when it has read something, and is stopped while it reads its third batch."""

        on_read: Any = None

        def __next__(self) -> Tensor:
            x = super().__next__()
            if self.given == 3 and self.on_read:
                import signal

                signal.raise_signal(signal.SIGINT)
            if self.on_read:
                self.given -= 1  # it would give this batch again: a stream's state is that of between two batches
                state = self.generator.get_state()
                self.on_read(BATCH)
                self.given += 1
                self.generator.set_state(state)
            return x

    with pytest.raises(Interrupted, match="stopped after step 0 and saved"):
        train_on(Slow(), config(10), folder=tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "checkpoints" / "step-000000000.pt").exists()


def test_a_finished_run_is_trained_on(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    first = train_on(MemoryStream(), config(150), folder=tmp_path / "first", quiet=True, on_step=seen.append)
    on = config(20, start=str(tmp_path / "first"), lr=1e-4)
    more: list[dict[str, float]] = []
    second = train_on(MemoryStream(seed=3), on, folder=tmp_path / "second", quiet=True, on_step=more.append)
    assert more[0]["fve"] == pytest.approx(seen[-1]["fve"], abs=0.03)
    assert more[0]["fve"] > seen[0]["fve"] + 0.2
    assert not torch.equal(first.W_enc, second.W_enc)
    assert second.metadata["training"]["start"] == str(tmp_path / "first")


def test_the_form_that_starts_from_a_dictionary_computes_what_it_does(tmp_path: Path) -> None:
    first = train_on(MemoryStream(), config(50), folder=tmp_path, quiet=True)
    form = ARCHITECTURES["sae"].started(config(start=str(tmp_path)), [torch.zeros(D)], [0.03], [])
    x = fresh()
    pre = (0.03 * x - form.b_dec) @ form.W_enc.T + form.b_enc
    torch.testing.assert_close(pre / 0.03, first.preactivations(x), atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(form.W_dec.detach(), first.W_dec)
    torch.testing.assert_close(form.b_dec.detach() / 0.03, first.b_dec, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.one_threshold])
def test_each_kind_starts_as_the_function_of_its_file(kind: str, tmp_path: Path) -> None:
    """Thresholds and gates, too. What chooses from a whole batch has a threshold in its file only."""
    needs = {"k": 3 if "k" in KINDS[kind].own else None, "target_l0": 3.0 if kind == "jumprelu" else None}
    first = train_on(MemoryStream(), config(60, kind=kind, **needs), folder=tmp_path / "first", quiet=True)
    settings, x = config(kind=kind, start=str(tmp_path / "first"), width=2 * FEATURES, **needs), fresh()
    form = ARCHITECTURES["sae"].started(settings, [torch.zeros(D)], [0.03], [])
    with torch.no_grad():
        form.W_dec[FEATURES:] = 0  # latents that the file does not have
        form.W_enc[FEATURES:] = 0
    done = KINDS[kind].forward["dense"](form, 0.03 * x, settings)
    torch.testing.assert_close(done.reconstruction.detach() / 0.03, first(x), atol=2e-3, rtol=1e-3)
    assert int(done.active) == int((first.encode(x).values != 0).sum())


def test_a_wider_run_keeps_the_latents_that_it_starts_from(tmp_path: Path) -> None:
    first = train_on(MemoryStream(), config(50), folder=tmp_path / "first", quiet=True)
    wider = config(20, start=str(tmp_path / "first"), width=2 * FEATURES)
    form = ARCHITECTURES["sae"].started(wider, [torch.zeros(D)], [0.03], [])
    x = fresh()
    pre = (0.03 * x - form.b_dec) @ form.W_enc.T + form.b_enc
    torch.testing.assert_close(pre[:, :FEATURES] / 0.03, first.preactivations(x), atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(form.W_dec[:FEATURES].detach(), first.W_dec)
    begun = form.W_dec[FEATURES:].detach()
    torch.testing.assert_close(begun.norm(dim=1), torch.ones(FEATURES))
    assert len(torch.unique(begun, dim=0)) == FEATURES
    seen: list[dict[str, float]] = []
    second = train_on(MemoryStream(seed=3), wider, folder=tmp_path / "second", quiet=True, on_step=seen.append)
    assert second.width == 2 * FEATURES
    kept = (second.W_dec[:FEATURES] * first.W_dec).sum(1)
    assert kept.median() > 0.9


def test_starts_that_do_not_fit(tmp_path: Path) -> None:
    train_on(MemoryStream(), config(5), folder=tmp_path / "first", quiet=True)
    start = str(tmp_path / "first")
    with pytest.raises(Mismatch, match=r"has 64 latents; set width to that or more"):
        train_on(MemoryStream(), config(5, width=32, start=start), folder=tmp_path / "a", quiet=True)
    half = MemoryStream(alter=lambda n, x: x[:, : D // 2])
    with pytest.raises(Mismatch, match=r"reads rows of 32, but the stream gives rows of 16"):
        train_on(half, config(5, start=start), folder=tmp_path / "b", quiet=True)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_latents_of_a_start_that_write_nothing_begin_anew(tmp_path: Path) -> None:
    first = train_on(MemoryStream(), config(5), folder=tmp_path / "first", quiet=True)
    with torch.no_grad():
        first.W_dec[3] = 0
    first.save(tmp_path / "holes")
    form = ARCHITECTURES["sae"].started(config(start=str(tmp_path / "holes")), [torch.zeros(D)], [1.0], [])
    assert math.isclose(float(form.W_dec[3].detach().norm()), 1, rel_tol=1e-5)
    assert len(form.W_dec) == FEATURES
