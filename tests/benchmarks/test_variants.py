"""Core numbers: what the other tools gave for the same activations, and cases whose answer follows from algebra.

`golden/saebench_core.json` holds what sae-bench 0.6.0's own function gave, `golden/metrics.json` what sae-lens 6.54.12,
dictionary-learning 0.1.0 and eai-sparsify 1.3.3 gave.
"""

import json
from pathlib import Path

import pytest
import torch

from monosem.benchmarks import CoreBatch, core_variant
from monosem.errors import BadInput, UnknownName

GOLDEN = Path(__file__).parent / "golden"


def same(found, expected, tolerance=1e-6):
    """Relative, as the files hold float32; null is NaN."""
    for name, value in expected.items():
        if isinstance(value, list):
            wanted = torch.tensor([float("nan") if one is None else one for one in value]).double()
            assert torch.allclose(found[name], wanted, atol=tolerance, rtol=tolerance, equal_nan=True), name
        else:
            assert found[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@pytest.fixture(scope="module")
def metrics():
    held = json.loads((GOLDEN / "metrics.json").read_text())
    x = torch.tensor(held["x"])
    W_enc, b_enc, W_dec, b_dec = (torch.tensor(held[name]) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    pre = (x - b_dec) @ W_enc + b_enc
    top = pre.topk(held["k"], dim=-1)
    acts = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
    return held, torch.tensor(held["tokens"]), x, acts @ W_dec + b_dec, acts


def batches(x, rebuilt, acts, mask, size):
    return [CoreBatch(*(part[i : i + size] for part in (x, rebuilt, acts, mask))) for i in range(0, len(x), size)]


@pytest.mark.parametrize("part", ["all", "without_token_0"])
def test_saelens_numbers(metrics, part):
    held, tokens, *activations = metrics
    mask = torch.ones_like(tokens, dtype=torch.bool) if part == "all" else tokens != 0
    same(core_variant("saelens", batches(*activations, mask, 2)), held["saelens"][part])


def test_dictionary_learning_and_sparsify_numbers(metrics):
    held, tokens, *activations = metrics
    mask = torch.ones_like(tokens, dtype=torch.bool)
    found = core_variant("dictionary_learning", batches(*activations, mask, 2))
    same(found, held["dictionary_learning"])
    first, second = ([one] for one in batches(*activations, mask, 2))
    fvu = [core_variant("sparsify", one)["fvu"] for one in (first, second)]
    assert fvu == pytest.approx(held["sparsify"]["fvu_per_batch"], rel=1e-6)
    whole = batches(*activations, mask, 4)
    assert core_variant("sparsify", whole)["fvu"] == pytest.approx(held["sparsify"]["fvu_whole"], rel=1e-6)
    assert core_variant("monosem", whole)["fve"] == pytest.approx(1 - held["sparsify"]["fvu_whole"], rel=1e-6)


@pytest.mark.parametrize("part", ["no_ignore", "ignore_7_8"])
def test_saebench_numbers_and_the_right_ones(part):
    held = json.loads((GOLDEN / "saebench_core.json").read_text())
    tokens, x = torch.tensor(held["tokens"]), torch.tensor(held["acts"])
    sae = {name: torch.tensor(held["sae"][name]) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    acts = (x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
    acts = acts.relu()
    acts[..., 9] *= -1
    rebuilt = acts @ sae["W_dec"] + sae["b_dec"]
    mask = ~torch.isin(tokens, torch.tensor([7, 8])) if part == "ignore_7_8" else torch.ones_like(tokens).bool()
    made = [CoreBatch(*parts) for parts in zip(x, rebuilt, acts, mask)]
    expected, found = held["out"][part], core_variant("saebench", made)
    same(found, expected["metrics"], 2e-6)
    same(found, {name: expected[name] for name in ("feature_density", "consistent_activation_heuristic")})
    ours = core_variant("monosem", made)
    assert ours["fve"] == pytest.approx(expected["right_explained_variance"], rel=2e-6)
    assert ours["mse"] == pytest.approx(expected["right_mse_per_token"], rel=2e-6)


def made(x, rebuilt):
    acts = torch.ones(*x.shape[:2], 3)
    return [CoreBatch(x, rebuilt, acts, torch.ones(x.shape[:2], dtype=torch.bool))]


def test_a_scaled_reconstruction():
    """x̂ = s x of centred x: FVE = 1 - (1 - s)², cosine 1, bias s, in every tool but SAEBench's explained variance."""
    x = torch.randn(4, 50, 6, dtype=torch.float64)
    x -= x.mean((0, 1))
    found = {name: core_variant(name, made(x, 0.7 * x)) for name in ("monosem", "saelens", "saebench", "sparsify")}
    assert found["monosem"]["fve"] == pytest.approx(0.91)
    assert found["monosem"]["cosine"] == pytest.approx(1)
    assert found["monosem"]["relative_reconstruction_bias"] == pytest.approx(0.7)
    assert found["saelens"]["explained_variance"] == pytest.approx(0.91)
    assert found["sparsify"]["fvu"] == pytest.approx(0.09)
    assert found["saebench"]["explained_variance"] != pytest.approx(0.91, abs=0.01)


def test_a_constant_shift_costs_variance_except_where_the_error_is_centred():
    x = torch.randn(4, 50, 6, dtype=torch.float64)
    spread = (x - x.mean((0, 1))).square().sum(-1).mean()
    found, other = (core_variant(name, made(x, x + 2)) for name in ("monosem", "dictionary_learning"))
    assert found["fve"] == pytest.approx(float(1 - 4 * 6 / spread))
    assert found["fve_centred_error"] == pytest.approx(1)
    assert other["frac_variance_explained"] == pytest.approx(1)
    assert found["mse"] == pytest.approx(24)


def test_a_constant_input_has_no_variance_to_explain():
    x = torch.ones(2, 5, 3)
    assert core_variant("monosem", made(x, x + 1))["fve"] == -torch.inf


def test_bad_input():
    x = torch.ones(1, 2, 3)
    with pytest.raises(UnknownName, match="no variant 'saelense'; did you mean 'saelens'"):
        core_variant("saelense", made(x, x))
    with pytest.raises(BadInput, match="no token counts"):
        core_variant("saelens", [CoreBatch(x, x, x, torch.zeros(1, 2, dtype=torch.bool))])
