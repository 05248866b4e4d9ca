"""Progress: how fast, in the unit that can be read."""

import pytest

from monosem.progress import Meter


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [(1, 25.0, "25.0 s/arm"), (30, 20.0, "1.5 arm/s"), (4000, 2.0, "2,000 arm/s"), (0, 5.0, "0.0 arm/s")],
)
def test_slow_work_says_how_long_one_takes(monkeypatch, done, seconds, said):
    clock = iter([0.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock, seconds))
    with Meter("robustness", total=100, unit="arm", quiet=True) as meter:
        meter.advance(done)
        assert meter._note() == said
