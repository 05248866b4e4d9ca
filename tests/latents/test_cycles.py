"""A planted circle is found, a line and chance are not; the statistic against NumPy's Fourier transform."""

import itertools

import numpy as np
import pytest
import torch

from monosem.dictionaries import DictionaryTensors
from monosem.errors import BadInput, UnknownName
from monosem.latents import cycle, cycles
from monosem.latents.cycles import arrangement
from tiny import tiny_model
from tiny_dictionaries import tiny_dictionary, with_rows

NAMES = ["a", "b", "c", "d", "e", "f", "g"]
N, TEMPLATES, D = 7, 9, 24


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(places, noise, seed=0):
    """Names at places of two dimensions of many, the same at every template, with a template's own vector and noise."""
    axes = torch.linalg.qr(draw(D, 2, seed=1)).Q.T
    return (places @ axes)[:, None] + 3 * draw(1, TEMPLATES, D, seed=2) + noise * draw(N, TEMPLATES, D, seed=seed)


def circle():
    angle = 2 * np.pi * torch.arange(N).double() / N
    return torch.stack([angle.cos(), angle.sin()], 1) * 2


def measured(x):
    orders, every = cycles._orders(N, 10, 0)
    rows, places = cycles._measured(x, orders, every)
    return {row["space"]: row for row in rows}, places


def test_power_and_circularity_are_the_first_frequency_of_a_fourier_transform():
    x = draw(N, D)
    x = x - x.mean(0)
    waves = np.fft.fft(x.numpy(), axis=0)[1]
    both = np.stack([waves.real, waves.imag]) * np.sqrt(2 / N)
    singular = np.linalg.svd(both, compute_uv=False)
    total = float(x.square().sum())
    power, circularity = arrangement(x @ x.T)
    assert float(power) == pytest.approx(float((singular**2).sum()) / total, rel=1e-9)
    assert float(circularity) == pytest.approx(2 * float(singular[1] ** 2) / total, rel=1e-9)


def test_a_circle_is_one_a_line_is_zero_and_a_rotation_changes_nothing():
    ring = circle()
    power, circularity = arrangement(ring @ ring.T)
    assert float(power) == pytest.approx(1)
    assert float(circularity) == pytest.approx(1)
    line = torch.stack([torch.arange(N).double() - 3, torch.zeros(N, dtype=torch.float64)], 1)
    power, circularity = arrangement(line @ line.T)
    assert float(circularity) == pytest.approx(0, abs=1e-9)
    assert 0.5 < float(power) < 1  # a line in order has much of the first frequency: power alone is no circle
    turned = ring.roll(3, 0).flip(0)
    assert float(arrangement(turned @ turned.T)[1]) == pytest.approx(1)


def test_a_planted_circle_is_found_in_its_plane_and_beats_all_orders():
    rows, places = measured(planted(circle(), 0.3))
    assert rows["1-2"]["circularity"] > 0.95
    # its two directions, and no other order: 2 of 720 arrangements with the first name fixed
    assert rows["1-2"]["p"] == pytest.approx(2 / 720)
    assert rows["1-2"]["p_best"] <= 3 / 720
    assert rows["all"]["p"] == pytest.approx(2 / 720)
    means = places.mean(1)
    angles = torch.atan2(means[:, 1], means[:, 0])
    steps = torch.remainder(angles.diff(), 2 * np.pi) * N / (2 * np.pi)
    assert torch.allclose(steps, steps.round(), atol=0.2)
    assert set(steps.round().tolist()) in ({1.0}, {N - 1.0})


def test_a_circle_in_another_order_is_none():
    rows, _ = measured(planted(circle()[[0, 2, 4, 6, 1, 3, 5]], 0.3))
    assert rows["1-2"]["circularity"] < 0.1
    assert rows["1-2"]["p"] > 0.5


def test_a_line_is_no_circle():
    line = torch.stack([torch.arange(N).double() - 3, torch.zeros(N, dtype=torch.float64)], 1)
    rows, _ = measured(planted(line, 0.1))
    assert rows["all"]["power"] > 0.6
    assert rows["all"]["circularity"] < 0.1


def test_chance_gives_uniform_p_values():
    p = []
    for seed in range(60):
        rows, _ = measured(planted(torch.zeros(N, 2, dtype=torch.float64), 1.0, seed=100 + seed))
        p.append(rows["all"]["p"])
        best = min(row["p_best"] for name, row in rows.items() if name != "all")
        assert best >= min(row["p"] for row in rows.values())
    assert 0.3 < np.mean(p) < 0.7
    assert (np.array(p) < 0.05).sum() <= 8


def test_orders_of_few_names_are_all_of_them():
    orders, every = cycles._orders(5, 10, 0)
    assert every
    assert {tuple(one) for one in orders.tolist()} == {(0, *rest) for rest in itertools.permutations(range(1, 5))}
    orders, every = cycles._orders(12, 50, 0)
    assert not every
    assert orders.shape == (50, 12)
    assert (np.sort(orders, 1) == np.arange(12)).all()
    assert (orders == cycles._orders(12, 50, 0)[0]).all()


def test_names_in_a_model_whose_activations_are_read_as_they_are():
    model = tiny_model("llama")
    sae = with_rows(torch.eye(32), "eye", site="resid_post.1", model_name="llama")
    names, templates = ["cat", "dog", "moon", "king", "she"], ["the", "a big", "he ran"]
    found = cycle(model, sae, names, templates=templates, latents=range(32))
    x = torch.stack(
        [
            torch.stack([model.run(f"{t} {name}", capture="resid_post.1").last("resid_post.1")[0] for t in templates])
            for name in names
        ]
    )
    table = found.table.set_index(["seen", "space"])
    for seen, values in (("stream", x), ("latents", x.clamp_min(0))):  # a ReLU of an identity: the positive part
        means = (values - values.mean(0)).mean(1).double()
        power, circularity = arrangement(means @ means.T)
        assert table.loc[(seen, "all"), "power"] == pytest.approx(float(power), rel=1e-4)
        assert table.loc[(seen, "all"), "circularity"] == pytest.approx(float(circularity), rel=1e-4)
    assert found.orders == (24, True)
    assert len(found.points) == 2 * 5 * 3
    assert found.config["analysis"] == "latents.cycle"


def test_the_cluster_fires_at_names_and_hardly_elsewhere():
    sae = tiny_dictionary("relu", DictionaryTensors(torch.eye(4), torch.full((4,), -0.5), torch.eye(4), torch.zeros(4)))
    codes = torch.zeros(5, 4, 4)
    codes[2, :2, 1] = 1.0  # in half of one name's texts
    codes[:, 0, 2] = 1.0  # in a quarter of each's
    codes[:, :, 3] = 1.0  # everywhere, and at other tokens
    elsewhere = torch.zeros(20, 4)
    elsewhere[:, 3] = 1.0
    assert cycles._cluster(sae, codes, elsewhere) == [1]


def test_what_is_no_cycle_is_said():
    model, sae = tiny_model("llama"), with_rows(torch.eye(32), "eye", site="resid_post.1", model_name="llama")
    with pytest.raises(UnknownName, match="weekdays"):
        cycle(model, sae, "weekday")
    with pytest.raises(BadInput, match="five"):
        cycle(model, sae, ["a", "b", "c", "d"], templates=["x", "y"])
    with pytest.raises(BadInput, match="five"):
        cycle(model, sae, ["a", "b", "c", "d", "a"], templates=["x", "y"])
    with pytest.raises(BadInput, match="templates"):
        cycle(model, sae, NAMES)
    with pytest.raises(BadInput, match="resid_post.1"):
        cycle(model, sae, NAMES, templates=["the", "a"], site="resid_post.0", latents=[1])
    with pytest.raises(UnknownName, match="latent"):
        cycle(model, sae, ["cat", "dog", "moon", "king", "she"], templates=["the", "a"], latents=[32])
