"""Absorption of one word: what sae-bench 0.6.0's own code gave (`golden/saebench_absorption.json`) and planted
absorbers."""

import json
from pathlib import Path

import pytest
import torch

from monosem.benchmarks.absorbing import Absorbed, absorbed, parts, rates, split_size
from monosem.errors import UnknownName

HELD = json.loads((Path(__file__).parent / "golden" / "saebench_absorption.json").read_text())


def golden_parts(variant):
    acts, W_dec, probe = (torch.tensor(HELD[name]) for name in ("codes", "W_dec", "probe"))
    x = torch.tensor(HELD["resid_along_probe"])[:, None] * torch.tensor([1.0, 0, 0, 0])
    return parts(x, acts, W_dec, probe, variant=variant)


@pytest.mark.parametrize("main", ["[0]", "[0, 4]"])
def test_saebench_gives_its_own_numbers(main):
    held = golden_parts("saebench")
    found = absorbed(held, json.loads(main), variant="saebench")
    for row, case in enumerate(HELD["cases"][main]):
        assert float(found.fraction[row]) == pytest.approx(case["fraction"], abs=1e-6), case["case"]
        assert bool(found.full[row]) == case["full"], case["case"]
        assert float(held.projection[row]) == pytest.approx(case["proj"], abs=1e-6)
        best = held.given[row].max(0)
        assert (int(best.indices), float(best.values)) == (case["top"], pytest.approx(case["top_proj"], abs=1e-6))


def test_split_sizes_are_those_of_saebench():
    for name, scores in HELD["split_f1"].items():
        assert [split_size(scores), split_size(scores) - 1] == HELD["splits"][name], name


def test_rates_are_means_over_the_words_that_the_probe_gets_right():
    """Of sae-bench's aggregate: letter a has 4 such words, of which 2 have rows."""
    rows = HELD["aggregate"]["rows"]
    for out in HELD["aggregate"]["out"]:
        own = [row for row in rows if row["letter"] == out["letter"]]
        silent = int(out["num_probe_true_positives"]) - len(own)
        fraction = torch.tensor([row["absorption_fraction"] for row in own] + [0.0] * silent)
        full = torch.tensor([row["is_full_absorption"] for row in own] + [False] * silent)
        means, fulls = rates([Absorbed(fraction, full)])
        assert means == [pytest.approx(out["mean_absorption_fraction"])]
        assert fulls == [pytest.approx(out["full_absorption_rate"])]


def test_decoder_norms_count():
    """Latent 1 has norm 2 and cosine .8: at activation .4 it gives .64 of .81, not .32."""
    ours, theirs = golden_parts("monosem"), golden_parts("saebench")
    row = [case["case"] for case in HELD["cases"]["[0]"]].index("absorber just below .4")
    assert float(ours.given[row, 1]) == pytest.approx(0.64)
    assert float(theirs.given[row, 1]) == pytest.approx(0.32)
    assert float(absorbed(ours, [0]).fraction[row]) == 1
    assert float(absorbed(theirs, [0], variant="saebench").fraction[row]) == 0


def test_full_absorption_is_absorption():
    """sae-bench counts a word as fully absorbed at fraction 0 (a latent with cosine .05); here it is at 1."""
    for main in ([0], [0, 4]):
        found = absorbed(golden_parts("monosem"), main)
        assert bool((found.fraction[found.full] > 1 - 1e-6).all())
        assert bool(found.full.any())
    row = [case["case"] for case in HELD["cases"]["[0]"]].index("weak cos .05 large act")
    assert not bool(absorbed(golden_parts("monosem"), [0]).full[row])


def test_a_constant_of_all_examples_is_no_contribution():
    """A latent that always fires, and a mean that lies far along the probe: neither absorbs, nor hides absorption."""
    eye, probe = torch.eye(4), torch.tensor([1.0, 0, 0, 0])
    W_dec = torch.stack([eye[0], eye[0], eye[0]])  # main, absorber, constant
    acts = torch.tensor([[1.0, 0, 10], [0, 1, 10]])
    x = acts @ W_dec + 7 * eye[0]
    rest = (17 * eye[0], torch.tensor([0.0, 0, 10]))
    found = absorbed(parts(x, acts, W_dec, probe, rest=rest), [0])
    assert found.fraction.tolist() == [0, 1]
    assert found.full.tolist() == [False, True]
    theirs = absorbed(parts(x, acts, W_dec, probe, variant="saebench"), [0], variant="saebench")
    assert theirs.fraction[0] > 0.8  # the constant "absorbs" what the main latent gives


def test_a_projection_of_zero_is_no_absorption():
    found = absorbed(parts(torch.zeros(1, 2), torch.ones(1, 2), torch.eye(2), torch.tensor([1.0, 0])), [1])
    assert (float(found.fraction), bool(found.full)) == (0, False)
    with pytest.raises(UnknownName, match="saebench"):
        absorbed(golden_parts("saebench"), [0], variant="saebenc")
