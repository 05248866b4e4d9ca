"""Attribution patching against finite differences of patched runs, and against exact sweeps where nothing is curved."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from monosem import edits
from monosem.data import TokenPairs
from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors
from monosem.errors import BadInput
from monosem.models import Model, TokenBatch
from monosem.patching import attribution, check_estimate, noise, sweep, zero
from tiny import FAMILIES, tiny_hf, tiny_tokenizer

# norms compute in float32 in a float64 model, too: a step this large keeps rounding out of the derivative, and the
# five-point rule its curvature
STEP = 0.02
CLOSE = {"rel": 1e-3, "abs": 1e-4}


def derivatives(patched: Callable[[float], Tensor], pairs: TokenPairs, clean: Tensor) -> dict[str, float]:
    """d metric / d share at 0 for logits that depend on a share, exact to the fourth order in STEP."""
    runs = {n: patched(n * STEP) for n in (-2, -1, 1, 2)}
    found = {}
    for name, metric in METRICS.items():
        f = {n: float(metric(logits, pairs, clean)) for n, logits in runs.items()}
        found[name] = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * STEP)
    return found


def double(family: str) -> Model:
    """In float64, and smooth: no clipped projections; experts by the code that knows float64."""
    hf = tiny_hf(family, **({"clip_qkv": None} if family == "olmo" else {})).double()
    if hf._can_set_experts_implementation():
        hf.set_experts_implementation("eager")
    return Model(hf, tiny_tokenizer(), name=family)


def difference(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """Logit difference in the logits' own precision."""
    return logits[:, 3] - logits[:, 50]


def curved(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    return logits.softmax(-1)[:, 3] * (logits * clean).sum(-1)


METRICS = {"difference": difference, "curved": curved}


def pairs_of(length: int = 7, rows: int = 1, seed: int = 0) -> TokenPairs:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (2, rows, length), generator=draw)
    whole = torch.ones(rows, length, dtype=torch.bool)
    right, wrong = torch.full((rows,), 3), torch.full((rows,), 50)
    return TokenPairs(TokenBatch(ids[0], whole), TokenBatch(ids[1], whole), right, wrong)


def slope(model: Model, pairs: TokenPairs, site: str, index: tuple, direction: str) -> dict[str, float]:
    """d metric / d share of a patch that writes base + share · (source - base) at an index of the site, at share 0."""
    ends = (pairs.clean, pairs.corrupted)[:: 1 if direction == "noising" else -1]
    clean = model.run(pairs.clean, logits="last").logits
    base, source = (model.run(tokens, capture=site)[site] for tokens in ends)

    def patched(share: float) -> Tensor:
        value = base.clone()
        value[index] += share * (source - base)[index]
        return model.run(ends[0], edits=edits.patch(site, value), logits="last").logits

    return derivatives(patched, pairs, clean)


# site -> axes, the coordinates of one cell, and what that cell is in the site's tensor (with batch axis)
CELLS = {
    "resid_pre": (("layer", "position"), {"layer": 1, "position": 4}, (slice(None), 4)),
    "resid_mid": (("layer", "position"), {"layer": 0, "position": 6}, (slice(None), 6)),
    "resid_post": (("layer",), {"layer": 2}, (slice(None),)),
    "attn_out": (("layer", "position"), {"layer": 1, "position": 3}, (slice(None), 3)),
    "mlp_out": (("layer", "position"), {"layer": 0, "position": 2}, (slice(None), 2)),
    "q": (("layer", "head"), {"layer": 1, "head": 2}, (slice(None), slice(None), 2)),
    "k": (("layer", "head"), {"layer": 2, "head": 1}, (slice(None), slice(None), 1)),
    "v": (("layer", "position", "head"), {"layer": 0, "position": 1, "head": 0}, (slice(None), 1, 0)),
    "z": (("layer", "head"), {"layer": 1, "head": 3}, (slice(None), slice(None), 3)),
    "pattern": (("layer", "head"), {"layer": 1, "head": 1}, (slice(None), 1)),
    "mlp_post": (("layer", "position"), {"layer": 1, "position": 5}, (slice(None), 5)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_estimate_is_the_derivative_along_the_patch(family):
    model, pairs = double(family), pairs_of()
    for number, (site, (over, where, index)) in enumerate(CELLS.items()):
        if not _offered(model, f"{site}.0"):
            continue
        direction = ("noising", "denoising")[number % 2]
        found = attribution(model, pairs, site, over, metric=METRICS, direction=direction, quiet=True)
        cell = next(i for i, c in enumerate(found.cells) if all(getattr(c, axis) == at for axis, at in where.items()))
        expected = slope(model, pairs, f"{site}.{where['layer']}", index, direction)
        for name, value in expected.items():
            assert float(found.effects(name)[cell]) == pytest.approx(value, **CLOSE), (site, name)


def _offered(model: Model, site: str) -> bool:
    try:
        model.site(site)
    except KeyError:
        return False
    return True


def test_many_sites_share_one_gradient_and_pairs_stay_apart(tiny_model):
    model, pairs = tiny_model("gpt2"), pairs_of(rows=3)
    sites = ["resid_pre", "attn_out", "mlp_out", "resid_mid", "resid_post"]
    together = attribution(model, pairs, sites, metric=METRICS, quiet=True)
    for site in sites:
        own = [i for i, cell in enumerate(together.cells) if cell.site == site]
        alone = [attribution(model, pairs[[row]], site, metric=METRICS, quiet=True) for row in range(3)]
        for name in METRICS:
            expected = torch.cat([one.values[name] for one in alone], 1)
            torch.testing.assert_close(together.values[name][own], expected, rtol=1e-4, atol=1e-5)


def test_neurons_and_keys_add_up_to_their_layer(tiny_model):
    model, pairs = tiny_model("llama"), pairs_of()
    whole = attribution(model, pairs, "mlp_post", "layer", metric=METRICS, layers=[1], quiet=True)
    units = attribution(
        model, pairs, "mlp_post", ("layer", "neuron"), metric=METRICS, layers=[1], neurons={1: range(48)}, quiet=True
    )
    heads = attribution(model, pairs, "pattern", ("layer", "head"), metric=METRICS, quiet=True)
    cut = attribution(model, pairs, "pattern", ("layer", "position", "head", "key"), metric=METRICS, quiet=True)
    for name in METRICS:
        assert float(units.effects(name).sum()) == pytest.approx(float(whole.effects(name)), rel=1e-4)
        assert len(cut.cells) == 3 * 4 * 7 * 7
        assert float(cut.effects(name).sum()) == pytest.approx(float(heads.effects(name).sum()), rel=1e-4)


def test_where_nothing_is_curved_the_estimate_is_exact(tiny_model):
    """Without the final norm, the last stream and the last MLP's neurons reach the logits linearly."""
    model, pairs = tiny_model("llama"), pairs_of(rows=2)
    model.hf.model.norm = nn.Identity()
    linear = {"difference": difference}
    for direction in ("noising", "denoising"):
        for site in ("resid_post", "mlp_out", "mlp_post"):
            exact = sweep(model, pairs, site, metric=linear, direction=direction, layers=[2], quiet=True)
            estimate = attribution(model, pairs, site, metric=linear, direction=direction, layers=[2], quiet=True)
            assert float(exact.effects().abs().max()) > 0.1
            torch.testing.assert_close(estimate.values, exact.values, rtol=1e-4, atol=1e-5)


def test_integrated_gradients_add_up_to_the_gap():
    model, pairs = double("llama"), pairs_of()
    errors = []
    for steps in (1, 8, 64):
        found = attribution(model, pairs, "resid_pre", metric=METRICS, layers=[0], steps=steps, quiet=True)
        gap = {name: float(found.clean[name] - found.corrupted[name]) for name in METRICS}
        errors.append({name: abs(float(found.effects(name).sum()) - gap[name]) for name in METRICS})
        assert found.method == ("attribution" if steps == 1 else f"attribution, {steps} steps")
    for name in METRICS:
        assert errors[2][name] < 1e-3 * abs(gap[name]) < errors[0][name]


def test_latents_are_differentiated_along_what_they_write():
    model, pairs = double("llama"), pairs_of()
    draw = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (32, 20), "b_enc": (20,), "W_dec": (20, 32), "b_dec": (32,)}
    weights = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    weights["W_dec"] *= 0.03  # patches that stay in the linear range of a step
    dictionary = Dictionary(DictionaryParts(DictionaryTensors(**weights), "relu", site="resid_post.1"))
    found = attribution(
        model, pairs, over=("layer", "latent"), metric=METRICS, dictionary=dictionary, latents=range(20), quiet=True,
        sites="resid_post",
    )  # fmt: skip
    base, source = (
        model.run(tokens, capture="resid_post.1")["resid_post.1"] for tokens in (pairs.corrupted, pairs.clean)
    )
    codes = [(x @ weights["W_enc"] + weights["b_enc"]).relu() for x in (base, source)]
    clean = model.run(pairs.clean, logits="last").logits
    moved = 0
    for latent in range(20):
        change = (codes[1] - codes[0])[..., latent, None] * weights["W_dec"][latent]
        change[:, 0] = 0  # a dictionary is not trained on the first token

        def patched(share: float, change: Tensor = change) -> Tensor:
            value = base + share * change
            return model.run(pairs.corrupted, edits=edits.patch("resid_post.1", value), logits="last").logits

        for name, expected in derivatives(patched, pairs, clean).items():
            assert float(found.effects(name)[latent]) == pytest.approx(expected, **CLOSE)
            moved += abs(expected) > 1e-3
    assert moved > 10


def test_values_and_noise_stand_for_the_other_side(tiny_model):
    model, pairs = tiny_model("gemma2"), pairs_of(rows=2)
    gone = attribution(model, pairs, "z", ("layer", "head"), metric=METRICS, corruption=zero(), quiet=True)
    assert gone.direction == "noising"
    run = model.run(pairs.clean, capture="z.1", grad=True)
    value = difference(run.logits[:, -1], pairs, run.logits[:, -1]).sum()
    expected = -(torch.autograd.grad(value, run["z.1"])[0] * run["z.1"]).sum((1, 3))
    torch.testing.assert_close(gone.effects("difference")[4:8].T.float(), expected.detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="steps=1"):
        attribution(model, pairs, "z", ("layer", "head"), metric=METRICS, corruption=zero(), steps=2, quiet=True)
    # noise so small that its effect is linear
    small = check_estimate(
        model, pairs, "resid_pre", metric=METRICS, corruption=noise(sd=1e-3, samples=2), layers=[1], quiet=True
    )
    assert small.pearson("difference") > 0.999
    assert small.slope("difference") == pytest.approx(1, abs=0.02)


def test_a_metric_without_gradient_is_refused(tiny_model):
    with pytest.raises(BadInput, match="carries no gradient"):
        attribution(tiny_model("llama"), pairs_of(), metric={"rank": lambda x, p, c: x.detach()[:, 3]}, quiet=True)
    with pytest.raises(BadInput, match="steps"):
        attribution(tiny_model("llama"), pairs_of(), steps=0, quiet=True)


def test_the_comparison_shows_how_far_to_trust_it(tiny_model, tmp_path):
    model, pairs = tiny_model("qwen3"), pairs_of(rows=3)
    found = check_estimate(
        model, pairs, ["z", "mlp_out"], "layer", metric=["logit_diff", "negative_kl"], steps=4, quiet=True
    )
    exact = sweep(model, pairs, ["z", "mlp_out"], "layer", metric=["logit_diff", "negative_kl"], quiet=True)
    estimate = attribution(
        model, pairs, ["z", "mlp_out"], "layer", metric=["logit_diff", "negative_kl"], steps=4, quiet=True
    )
    for metric in exact.metrics:
        x, y = (one.effects(metric).mean(1).numpy() for one in (exact, estimate))
        assert found.pearson(metric) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
        ranks = [pd.Series(side).rank().to_numpy() for side in (x, y)]
        assert found.spearman(metric) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-5)
        assert found.slope(metric) == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0], rel=1e-4)
    worst = found.disagreements(2, "negative_kl")
    assert len(found.table) == 12
    assert list(worst["metric"]) == ["negative_kl"] * 2
    errors = (estimate.effects("negative_kl") - exact.effects("negative_kl")).mean(1).abs()
    assert abs(worst["difference"][0]) == pytest.approx(float(errors.max()), rel=1e-4)
    assert found.best == found.exact.cells[int(np.abs(np.subtract(*(x.numpy() for x in found.effects()))).argmax())]
    assert list(found.summary["site"]) == ["all", "z", "mlp_out"] * 2
    figure = found.plot("negative_kl")
    assert [trace.name for trace in figure.data] == ["equal", "z", "mlp_out"]
    assert list(figure.data[0].x) == list(figure.data[0].y)
    assert figure.data[1].y[1] == pytest.approx(float(estimate.effects("negative_kl").mean(1)[1]), rel=1e-4)
    found.save(tmp_path / "comparison.csv")
    assert len(pd.read_csv(tmp_path / "comparison.csv")) == 12


@pytest.mark.smollm2
def test_on_the_real_model_late_heads_are_estimated_well(smollm2):
    pairs = TokenPairs.of(
        smollm2,
        ["When Mary and John went to the store, John gave a drink to"],
        ["When Mary and John went to the store, Mary gave a drink to"],
        right=[" Mary"], wrong=[" John"],
    )  # fmt: skip
    found = check_estimate(smollm2, pairs, "z", ("layer", "head"), layers=range(20, 30), quiet=True)
    assert found.pearson() > 0.9
    assert float(found.exact.effects().abs().max()) > 0.5
