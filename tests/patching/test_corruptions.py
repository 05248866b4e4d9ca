"""The other side of a pair: noise, zeros, means, other prompts. Statistics against loops over rows and tokens."""

import itertools
from typing import Any

import pytest
import torch

from monosem import edits, patching
from monosem.data import TokenPairs
from monosem.errors import BadInput
from monosem.models import Model, Site
from monosem.patching import sweep
from monosem.patching.corruptions import embedding_sd, positional_means, token_means
from tiny import tiny_model

ROWS = [[7, 21, 33, 40, 52], [9, 30, 31], [8, 8, 60, 61, 62, 63, 64], [12, 13, 14, 15]]
OTHERS = [[7, 21, 34, 40, 52], [9, 35, 31], [8, 8, 60, 61, 62, 63, 65], [12, 13, 99, 15]]
RIGHT, WRONG = 11, 17


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request: pytest.FixtureRequest) -> Model:
    return tiny_model(request.param, name="tiny")


def pairs_of(model: Model, clean: list[list[int]] = ROWS, corrupted: list[list[int]] = OTHERS) -> TokenPairs:
    return TokenPairs.of(model, clean, corrupted, [RIGHT] * len(clean), [WRONG] * len(clean))  # type: ignore[arg-type]


def difference(logits: Any) -> float:
    return float(logits[0, -1, RIGHT] - logits[0, -1, WRONG])


def each_alone(model: Model, site: str) -> list[torch.Tensor]:
    """The site's activation of every row, run by itself, without padding."""
    return [model.run([row], capture=site)[site][0] for row in ROWS]


# ---------------------------------------------------------------------- noise


def test_noise_has_the_size_and_the_place_that_was_asked_for(model: Model) -> None:
    pairs = pairs_of(model)
    sites = patching.noise(sd=2.0, samples=200, positions=[1, -1]).sides(model, pairs, [])(0)
    clean = model.run([ROWS[0]], capture="embed")["embed"][0]
    noised = torch.stack(
        [model.run(side.tokens, capture="embed", edits=side.edits, logits=False)["embed"][0] - clean for side in sites]
    )
    every = torch.cat(each_alone(model, "embed"))
    assert embedding_sd(model, pairs.clean) == pytest.approx(float(every.std()), rel=1e-5)
    assert (noised[:, [0, 2, 3]] == 0).all()
    assert float(noised[:, [1, 4]].std()) == pytest.approx(2 * float(every.std()), rel=0.02)
    assert float(noised[:, [1, 4]].mean()) == pytest.approx(0, abs=0.03 * float(every.std()))
    correlation = torch.corrcoef(noised[:, [1, 4]].flatten(1))
    assert (correlation - torch.eye(200)).abs().max() < 0.6  # draws are independent of each other


def test_noise_is_seeded_and_differs_between_pairs(model: Model) -> None:
    same = [[7, 21, 33], [7, 21, 33]]
    pairs = pairs_of(model, same, [[7, 22, 33], [7, 22, 33]])

    def logits(seed: int, row: int) -> torch.Tensor:
        side = patching.noise(samples=1, seed=seed).sides(model, pairs, [])(row)[0]
        return model.run(side.tokens, edits=side.edits, logits="last").logits

    assert torch.equal(logits(0, 0), logits(0, 0))
    assert not torch.equal(logits(0, 0), logits(1, 0))
    assert not torch.equal(logits(0, 0), logits(0, 1))


def test_restoring_the_stream_undoes_the_noise_and_draws_are_averaged(model: Model) -> None:
    """Causal tracing: the clean value of every noised token at layer 0 restores the answer; a late one less."""
    pairs = pairs_of(model, ROWS[:1], OTHERS[:1])
    noise = patching.noise(sd=3, samples=4)
    whole = sweep(model, pairs, "resid_pre", "layer", layers=[0], corruption=noise, quiet=True)
    assert whole.direction == "denoising"
    assert float(whole.mean()) == pytest.approx(float(whole.clean["logit_diff"]), abs=1e-5)
    sides = noise.sides(model, pairs, [])(0)
    expected = [difference(model.run(side.tokens, edits=side.edits).logits) for side in sides]
    assert len(set(expected)) == 4
    assert float(whole.corrupted["logit_diff"]) == pytest.approx(sum(expected) / 4, abs=1e-5)
    # one cell by hand: the clean mlp_out of layer 1 at position 3 in every noised run
    cell = sweep(model, pairs, "mlp_out", layers=[1], positions=[3], corruption=noise, quiet=True)
    clean = model.run([ROWS[0]], capture="mlp_out.1")["mlp_out.1"]
    restored = [
        difference(model.run(s.tokens, edits=[*s.edits, edits.patch("mlp_out.1", clean).at(positions=3)]).logits)
        for s in sides
    ]
    assert float(cell.mean()) == pytest.approx(sum(restored) / 4, abs=1e-5)
    assert cell.method == "growing"
    for method in ("batched", "naive"):
        other = sweep(
            model, pairs, "mlp_out", layers=[1], positions=[3], corruption=noise, method=method, quiet=True
        )  # fmt: skip
        assert float(other.mean()) == pytest.approx(float(cell.mean()), abs=1e-5)


def test_noise_goes_where_the_prompts_differ_unless_told() -> None:
    model = tiny_model("llama", name="tiny")
    side = patching.noise(samples=1).sides(model, pairs_of(model), [])(2)[0]
    embed = model.run(side.tokens, capture="embed", edits=side.edits, logits=False)["embed"][0]
    changed = (embed != model.run([ROWS[2]], capture="embed")["embed"][0]).any(-1)
    assert changed.nonzero()[:, 0].tolist() == [6]
    with pytest.raises(BadInput, match="positions="):
        sweep(model, pairs_of(model, ROWS[:1], ROWS[:1]), corruption=patching.noise(), quiet=True)
    for bad in ({"sd": 0}, {"sd": float("nan")}, {"samples": 0}):
        with pytest.raises(BadInput):
            patching.noise(**bad)


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_post", "pattern"])
def test_zeroing_is_patching_with_zero(model: Model, site: str) -> None:
    pairs = pairs_of(model, ROWS[2:3], OTHERS[2:3])
    found = sweep(model, pairs, site, corruption=patching.zero(), positions=[2, 6], quiet=True)
    assert (found.direction, found.corruption) == ("noising", "zero")
    for cell, value in zip(found.cells, found.mean().tolist()):
        zero = edits.patch(cell.place, 0.0).at(positions=cell.position)  # type: ignore[arg-type]
        assert value == pytest.approx(difference(model.run([ROWS[2]], edits=zero).logits), abs=1e-5)


@pytest.mark.parametrize("site", ["resid_mid", "z", "mlp_post"])
def test_means_count_every_real_token_once(model: Model, site: str) -> None:
    place, tokens = Site(site, 1), model.tokens(ROWS)
    alone = each_alone(model, f"{site}.1")
    assert torch.allclose(token_means(model, tokens, [place])[place].float(), torch.cat(alone).mean(0), atol=1e-5)
    by_position = positional_means(model, tokens, [place])[place].float()
    assert len(by_position) == 7
    for position in range(7):
        there = torch.stack([x[position] for x in alone if len(x) > position])
        assert torch.allclose(by_position[position], there.mean(0), atol=1e-5)
    left = model.tokens(ROWS, padding="left")
    assert torch.allclose(positional_means(model, left, [place])[place].float(), by_position, atol=1e-5)


@pytest.mark.parametrize("site", ["resid_mid", "z", "mlp_post"])
def test_the_mean_at_the_last_token_is_over_each_rows_own(model: Model, site: str) -> None:
    place = Site(site, 1)
    expected = torch.stack([x[-1] for x in each_alone(model, f"{site}.1")]).mean(0)
    for padding in ("right", "left"):
        tokens = model.tokens(ROWS, padding=padding)
        assert torch.allclose(token_means(model, tokens, [place], last=True)[place].float(), expected, atol=1e-5)
    pairs = pairs_of(model, ROWS[:1], OTHERS[:1])
    found = sweep(model, pairs, site, layers=[1], positions=[-1], corruption=patching.last_mean(ROWS), quiet=True)
    write = edits.patch(place, expected).at(positions=-1)
    assert float(found.mean()) == pytest.approx(difference(model.run([ROWS[0]], edits=write).logits), abs=1e-5)
    assert (found.direction, found.corruption) == ("noising", "mean at the last token")


@pytest.mark.parametrize("last", [False, True])
def test_one_wild_token_does_not_drown_a_mean(model: Model, last: bool) -> None:
    """A token whose stream is 100 times as long as the others' is left out, everywhere where it is."""
    rows = [[7, 21, 33, 40], [9, 30, 31, 44], [8, 60, 61, 62], [12, 13, 14, 15]]
    place = Site("resid_pre", 1)
    wild = edits.scale("resid_pre.1", 200).at(rows=[2], positions=-1)
    calm = model.run(rows, capture=place)[place]
    with model.editing(wild):
        kept, all_of_them = (
            token_means(model, model.tokens(rows), [place], last=last, outlier=outlier)[place].float()
            for outlier in (patching.corruptions.OUTLIER, None)
        )
    others = torch.ones(4, 4, dtype=torch.bool)
    others[2, -1] = False
    expected = calm[[0, 1, 3], -1].mean(0) if last else calm[others].mean(0)
    assert torch.allclose(kept, expected, atol=1e-5)
    assert float(all_of_them.norm()) > 5 * float(expected.norm())
    for make in (patching.mean, patching.last_mean):
        with pytest.raises(BadInput, match="outlier=, in medians"):
            make(outlier=0.5)


def test_positional_means_of_patterns(model: Model) -> None:
    place = Site("pattern", 1)
    alone = each_alone(model, "pattern.1")
    found = positional_means(model, model.tokens(ROWS), [place])[place].float()
    for query, key in itertools.product(range(7), repeat=2):
        there = torch.stack(
            [x[:, query, key] if key < x.shape[2] else 0 * x[:, 0, 0] for x in alone if x.shape[1] > query]
        )
        assert torch.allclose(found[:, query, key], there.mean(0), atol=1e-5)


def test_mean_ablation_writes_the_mean(model: Model) -> None:
    pairs = pairs_of(model, ROWS[:1], OTHERS[:1])
    alone = each_alone(model, "mlp_out.1")
    found = sweep(model, pairs, "mlp_out", layers=[1], corruption=patching.mean(ROWS), quiet=True)
    for position, value in enumerate(found.mean().tolist()):
        write = edits.patch("mlp_out.1", torch.cat(alone).mean(0)).at(positions=position)
        assert value == pytest.approx(difference(model.run([ROWS[0]], edits=write).logits), abs=1e-5)
    found = sweep(model, pairs, "mlp_out", "layer", layers=[1], corruption=patching.positional_mean(ROWS), quiet=True)
    means = torch.stack([torch.stack([x[p] for x in alone if len(x) > p]).mean(0) for p in range(5)])
    expected = difference(model.run([ROWS[0]], edits=edits.patch("mlp_out.1", means[None])).logits)
    assert float(found.mean()) == pytest.approx(expected, abs=1e-5)


def test_without_a_reference_means_are_of_both_prompts(model: Model) -> None:
    pairs = pairs_of(model, ROWS[:1], OTHERS[:1])
    both = torch.cat([model.run([row[0]], capture="z.2")["z.2"][0] for row in (ROWS[:1], OTHERS[:1])])
    found = sweep(model, pairs, "z", "layer", layers=[2], corruption=patching.mean(), quiet=True)
    expected = difference(model.run([ROWS[0]], edits=edits.patch("z.2", both.mean(0))).logits)
    assert float(found.mean()) == pytest.approx(expected, abs=1e-5)


def test_means_that_mean_nothing_are_refused(model: Model) -> None:
    pairs = pairs_of(model, ROWS[2:3], OTHERS[2:3])
    with pytest.raises(BadInput, match="positional_mean"):
        sweep(model, pairs, "pattern", corruption=patching.mean(), quiet=True)
    with pytest.raises(BadInput, match="7 tokens"):
        sweep(model, pairs, corruption=patching.positional_mean([ROWS[0]]), quiet=True)
    with pytest.raises(BadInput, match="noising"):
        sweep(model, pairs, corruption=patching.mean(), direction="denoising", quiet=True)


# ---------------------------------------------------------------------- other prompts


def test_resampling_takes_another_prompts_activation_at_the_same_position(model: Model) -> None:
    pairs = pairs_of(model, ROWS[:1], OTHERS[:1])
    found = sweep(
        model, pairs, "resid_pre", layers=[1], direction="noising",
        corruption=patching.resample([ROWS[1], ROWS[2]]), quiet=True,
    )  # fmt: skip
    other = model.run([ROWS[2]], capture="resid_pre.1")["resid_pre.1"]  # the only one that is long enough
    for position, value in enumerate(found.mean().tolist()):
        write = edits.patch("resid_pre.1", other[:, : len(ROWS[0])]).at(positions=position)
        assert value == pytest.approx(difference(model.run([ROWS[0]], edits=write).logits), abs=1e-5)
    corrupted = difference(model.run([ROWS[2][:5]]).logits)
    assert float(found.corrupted["logit_diff"]) == pytest.approx(corrupted, abs=1e-5)


def test_resampling_draws_evenly_from_the_others_and_is_seeded() -> None:
    model = tiny_model("llama", name="tiny")
    rows = [[i, 20, 30] for i in range(3, 8)]
    pairs = pairs_of(model, rows, rows)
    drawn = [
        [int(side.tokens.ids[0, 0]) for side in patching.resample(samples=400, seed=seed).sides(model, pairs, [])(2)]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == {3, 4, 6, 7}  # never the pair itself
    assert all(60 < drawn[0].count(first) < 140 for first in (3, 4, 6, 7))
    with pytest.raises(BadInput, match="longer"):
        patching.resample([[1, 2]]).sides(model, pairs, [])(0)
    with pytest.raises(BadInput, match="samples"):
        patching.resample(samples=0)
