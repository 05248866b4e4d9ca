"""Directions of a model at many places: against sums made prompt by prompt, and against what is known of the data."""

import math
from itertools import pairwise

import pytest
import torch

from monosem import edits
from monosem.activations import SkipRule
from monosem.data import PromptPairs
from monosem.directions import METHODS, Direction, Directions, reading
from monosem.directions.diagnostics import Blocks, geometry
from monosem.errors import BadFile, BadInput, UnknownName
from monosem.models import Model
from monosem.statistics import EXACT
from tiny import tiny_hf, tiny_tokenizer
from tiny_latents import MODEL, NEGATIVE, POSITIVE

PAIRS = PromptPairs(POSITIVE, NEGATIVE)


def by_hand(prompts, site, at, skip_first=True):
    rows = []
    for prompt in prompts:
        x = MODEL.run([prompt], capture=site)[site][0].double()
        rows.append(x[at] if isinstance(at, int) else x[1:].mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize("at", [-1, -2, "mean"])
def test_every_layer_is_the_difference_of_means_there(at):
    found = Directions.fit(MODEL, PAIRS, at=at, batch_size=5)
    assert [str(one.site) for one in found] == ["resid_post.0", "resid_post.1", "resid_post.2"]
    for one in found:
        expected = by_hand(POSITIVE, one.site, at).mean(0) - by_hand(NEGATIVE, one.site, at).mean(0)
        torch.testing.assert_close(one.vector, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_stream_of_batches_gives_what_all_rows_at_once_give(name, monkeypatch):
    from monosem.directions.sample import Sample

    monkeypatch.setattr(reading, "KEPT", 6 * MODEL.cfg.d_model)  # three pairs at a time
    background = ["the cat sat", "a dog ran", "one two three"]
    beside = {"background": background} if name == "mean_centred" else {}
    found = Directions.fit(MODEL, PAIRS, "resid_post.1", method=name, batch_size=3, **beside)[0]
    # the stream takes one half after the other
    first, second = PAIRS.split(0.5, seed=0)
    sides = [
        torch.cat([by_hand(one, "resid_post.1", -1) for one in pair])
        for pair in ((first.positive, second.positive), (first.negative, second.negative))
    ]
    at_once = METHODS[name].find(Sample.of(*sides, background=by_hand(background, "resid_post.1", -1)))
    torch.testing.assert_close(found.vector, at_once.vector.float(), rtol=2e-3, atol=2e-3)


def test_prompts_of_one_length_are_read_together_and_every_number_stays_with_its_prompt(monkeypatch):
    long = ["the cat sat on the mat " * n for n in (7, 1, 6)] + ["a dog ran to the house " * n for n in (2, 7, 1)]
    monkeypatch.setattr(reading, "PASS", 6)
    pairs = PromptPairs([*POSITIVE[:4], *long[:3]], [*NEGATIVE[:4], *long[3:]], groups=[*"abcdabc"])
    read, run = [], Model.run
    monkeypatch.setattr(Model, "run", lambda self, x, **own: read.append(self.tokens(x).lengths) or run(self, x, **own))
    found = Directions.fit(MODEL, pairs, "resid_post.1", at="mean", method="pca_pairs")[0]
    assert any(lengths.min() < lengths.max() for lengths in read)  # some are padded
    alone = Directions.fit(MODEL, pairs, "resid_post.1", at="mean", method="pca_pairs", batch_size=1)[0]
    torch.testing.assert_close(found.vector, alone.vector, rtol=1e-4, atol=1e-5)
    for name, number in alone.provenance.items():
        if isinstance(number, float):
            assert found.provenance[name] == pytest.approx(number, abs=1e-4, nan_ok=True), name
    _, second = pairs.split(0.5, seed=0)
    reader = reading.Reader.of(MODEL, [MODEL.site("resid_post.1")], "mean")
    (rows,) = reader.rows(second.positive)
    expected = by_hand(second.positive, "resid_post.1", "mean").double()
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [3, 32])
def test_batches_cost_least_of_all_cuts_of_the_sorted_prompts(most, monkeypatch):
    monkeypatch.setattr(reading, "PASS", 6)
    lengths = torch.randint(2, 20, (10,), generator=torch.Generator().manual_seed(0))
    order = lengths.argsort().tolist()
    reader = reading.Reader.of(MODEL, [MODEL.site("resid_post.1")], "last", batch_size=most)
    batches = reader._batches(order, lengths)
    assert [one for batch in batches for one in batch] == order
    every = [(0, *(n for n in range(1, 10) if chosen >> n & 1), 10) for chosen in range(0, 2**10, 2)]
    costs = [
        sum((end - start) * int(lengths[order[end - 1]]) + 6 for start, end in pairwise(cuts))
        for cuts in every
        if all(end - start <= most for start, end in pairwise(cuts))
    ]
    assert sum(len(batch) * int(lengths[batch].max()) + 6 for batch in batches) == min(costs)


def cut(*texts):
    """Every beginning of some statements, as control vectors are often trained on."""
    return [" ".join(words[:n]) for words in map(str.split, texts) for n in range(2, len(words) + 1)]


BEGINNINGS = cut("the cat sat on a mat and the dog ran", "one two three four", "the cat sat in the house")


@pytest.mark.parametrize("at", ["last", "mean", 1, "regex:cat|two"])
def test_a_prompt_is_read_in_one_that_it_begins(at, monkeypatch):
    read, run = [], Model.run
    monkeypatch.setattr(Model, "run", lambda self, x, **own: read.append(self.tokens(x).lengths) or run(self, x, **own))
    reader = reading.Reader.of(MODEL, [MODEL.site("resid_post.0"), MODEL.site("resid_post.2")], at)
    read.clear()  # norms of usual tokens were measured
    found = reader.rows([*BEGINNINGS, BEGINNINGS[3]])
    assert sum(int(lengths.sum()) for lengths in read) < 0.6 * int(MODEL.tokens(BEGINNINGS).lengths.sum())
    place = {"mean": "mean", "last": -1}.get(at, 1)  # the expression finds the second word
    for number, site in enumerate(reader.skippers):
        expected = by_hand(BEGINNINGS, site, place)
        torch.testing.assert_close(found[number, :-1], expected.double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[number, -1], found[number, 3])
    assert reader.summary() == reading_alone(at, [*BEGINNINGS, BEGINNINGS[3]]).summary()


def reading_alone(at, texts):
    reader = reading.Reader.of(MODEL, [MODEL.site("resid_post.0"), MODEL.site("resid_post.2")], at)
    for text in texts:
        reader.rows([text])
    return reader


def test_a_prompt_is_read_alone_where_later_tokens_or_its_end_change_it():
    reader = reading.Reader.of(MODEL, [MODEL.site("resid_post.1")], "last")
    with MODEL.editing(edits.add(("resid_post.0", torch.ones(MODEL.cfg.d_model)), 3.0).at(positions=-1)):
        found = reader.rows(BEGINNINGS)
        expected = torch.cat([reader.rows([text]) for text in BEGINNINGS], 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, reader.rows(BEGINNINGS), atol=0.1)


def test_several_positions_and_sites():
    found = Directions.fit(MODEL, PAIRS, ["resid_pre.1", "mlp_out.2"], at=["last", -2])
    assert [(str(one.site), one.position) for one in found] == [
        ("resid_pre.1", "last"),
        ("resid_pre.1", "-2"),
        ("mlp_out.2", "last"),
        ("mlp_out.2", "-2"),
    ]
    assert found["mlp_out.2", "-2"] is found[3]
    with pytest.raises(BadInput, match="say which position"):
        found["mlp_out.2"]
    with pytest.raises(UnknownName, match="no direction at"):
        found["mlp_out.1"]
    assert list(Directions.fit(MODEL, PAIRS, layers=[0, -1]).table["site"]) == ["resid_post.0", "resid_post.2"]


def test_the_marker_off_by_one():
    """The output of block k is the input of block k + 1: a direction at one is the direction at the other."""
    posts = Directions.fit(MODEL, PAIRS, "resid_post")
    pres = Directions.fit(MODEL, PAIRS, "resid_pre", layers=[1, 2])
    for post, pre in zip(posts, pres):
        torch.testing.assert_close(post.vector, pre.vector)
    assert posts[0].cosine(pres[1]) < 0.999


def test_a_marker_put_at_the_output_of_a_block_arrives_at_the_input_of_the_next():
    """Seen by hooks on Hugging Face's own blocks, and by the sites of these names: nothing before, all of it after."""
    marker, blocks, seen = torch.randn(32, generator=torch.Generator().manual_seed(0)), MODEL.hf.model.layers, {}
    sites = ["resid_pre.1", "resid_pre.2", "resid_post.0", "resid_post.2"]
    plain = MODEL.run("the cat sat", capture=sites)
    handles = [
        block.register_forward_pre_hook(lambda _, args, i=i: seen.__setitem__(i, args[0]))
        for i, block in enumerate(blocks)
    ]
    put = MODEL.run("the cat sat", edits=edits.add(("resid_post.1", marker)), capture=sites)
    for handle in handles:
        handle.remove()
    wanted = plain["resid_pre.2"] + marker
    assert torch.allclose(seen[2], wanted, atol=1e-5)
    assert torch.allclose(put["resid_pre.2"], wanted, atol=1e-5)
    assert torch.equal(seen[1], plain["resid_pre.1"])
    assert torch.equal(put["resid_post.0"], plain["resid_post.0"])
    assert not torch.allclose(put["resid_post.2"], plain["resid_post.2"], atol=1e-2)


def test_one_prompt_said_twice_is_one_prompt():
    with pytest.warns(UserWarning, match="repeated"):
        twice = PromptPairs(["the cat is good"] * 8, ["the dog", "a man", "a king", "the sea"], paired=False)
    with pytest.raises(BadInput, match="two different prompts a side"):
        Directions.fit(MODEL, twice, "resid_post.1")


def test_held_out_numbers_come_from_prompts_that_the_direction_has_not_seen():
    found = Directions.fit(MODEL, PAIRS, "resid_post.1", seed=3)[0]
    first, second = PAIRS.split(0.5, seed=3)
    vectors = [
        by_hand(half.positive, "resid_post.1", -1).mean(0) - by_hand(half.negative, "resid_post.1", -1).mean(0)
        for half in (first, second)
    ]
    cosine = torch.nn.functional.cosine_similarity(*vectors, dim=0)
    assert found.provenance["stability"] == pytest.approx(float(cosine), abs=1e-4)
    up, down = (by_hand(side, "resid_post.1", -1) @ vectors[0] for side in (second.positive, second.negative))
    wins = sum((a > b) + 0.5 * (a == b) for a in up for b in down) / (len(up) * len(down))
    assert found.provenance["held_out_auroc"] == pytest.approx(float(wins), abs=1e-6)
    assert found.provenance["held_out_low"] < found.provenance["held_out_auroc"]
    others, rest = PAIRS.take(range(3)), PAIRS.take(range(3, 16))
    judged = Directions.fit(MODEL, rest, "resid_post.1", held_out=others)
    assert judged.config["held_out_prompts"] == {"positive": 3, "negative": 3}
    with pytest.raises(BadInput, match="6 held-out prompts are also among those that find"):
        Directions.fit(MODEL, PAIRS, "resid_post.1", held_out=others)


def test_statements_cut_after_every_word_are_said_to_leak():
    sides = [
        [" ".join(words[:n]) for words in map(str.split, texts) for n in (1, 2, 3)] for texts in (POSITIVE, NEGATIVE)
    ]
    cut = PromptPairs(*([f"the {text}" for text in side] for side in sides))
    first, second = cut.split(0.5, seed=0)
    by_hand = sum(
        any(one.startswith(other) or other.startswith(one) for other in first.prompts) for one in second.prompts
    )
    found = Directions.fit(MODEL, cut, "resid_post.1")
    assert 0 < found.config["leaks"] == by_hand
    assert any(doubt.startswith(f"{by_hand} of the 48 prompts that judge") for doubt in found.doubts)
    held = Directions.fit(
        MODEL, PromptPairs(cut.positive, cut.negative, groups=[p[:5] for p in cut.positive]), "resid_post.1"
    )
    assert held.config["leaks"] == 0
    assert not any("prompts that judge" in doubt for doubt in held.doubts)


def test_whole_groups_are_held_out_and_the_worst_is_named():
    groups = [prompt[0] for prompt in POSITIVE]
    found = Directions.fit(MODEL, PromptPairs(POSITIVE, NEGATIVE, groups=groups), "resid_post.1")
    _, second = PromptPairs(POSITIVE, NEGATIVE, groups=groups).split(0.5, seed=0)
    assert found[0].provenance["worst_group"] in second.groups
    assert found[0].provenance["worst_auroc"] <= found[0].provenance["held_out_auroc"] + 0.5
    assert found.config["p_floor"] == 2.0 ** (1 - 4)
    assert any("p cannot be below 0.12" in doubt for doubt in found.doubts)


def test_no_difference_is_not_found_significant():
    prompts = POSITIVE + NEGATIVE
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(2)).tolist()
    sides = [prompts[i] for i in order[::2]], [prompts[i] for i in order[1::2]]
    found = Directions.fit(MODEL, PromptPairs(*sides, paired=False))
    assert min(found.table["p_family"]) > 0.02
    assert any("no better than" in doubt or "includes chance" in doubt for doubt in found.doubts)
    real = Directions.fit(MODEL, PAIRS, at="mean")
    assert max(real.table["p_family"]) < 0.01
    assert all(real.table["stability"] > real.table["chance_stability"])


def test_few_pairs_have_a_p_of_two_exchanges_at_least():
    sums = torch.zeros(2, 4, 1, 3).double()
    sums[0, :, 0, 0] = torch.tensor([1.0, 2, 3, 4])
    blocks = Blocks(sums, torch.ones(2, 4).long(), True, 2)
    assert EXACT >= 4
    assert float(blocks.tests()["p"]) == pytest.approx(2 / 16)
    assert blocks.p_floor() == pytest.approx(2 / 16)
    assert float(blocks.tests()["p_family"]) == pytest.approx(2 / 16)


def test_exchanges_are_counted_by_hand():
    sums = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    blocks = Blocks(sums, torch.ones(2, 5).long(), True, 2)
    differences = sums[0] - sums[1]
    lengths = []
    for code in range(32):
        signs = torch.tensor([1.0 - 2 * (code >> bit & 1) for bit in range(5)]).double()
        lengths.append(torch.einsum("b,bpd->pd", signs, differences).norm(dim=1))
    lengths = torch.stack(lengths)
    expected = (lengths >= lengths[0] - 1e-9).double().mean(0)
    torch.testing.assert_close(blocks.tests()["p"].double(), expected)


def test_bootstrap_draws_blocks_again():
    draw = torch.Generator().manual_seed(0)
    sums = 0.7 * torch.randn(2, 12, 1, 6, generator=draw).double()
    sums[0, ..., 0] += 2
    blocks, cosines = Blocks(sums, torch.ones(2, 12).long(), False, 6), []
    delta = (sums[0].mean(0) - sums[1].mean(0))[0]
    for _ in range(4000):
        a, b = (torch.randint(12, (12,), generator=draw) for _ in range(2))
        again = (sums[0][a].mean(0) - sums[1][b].mean(0))[0]
        cosines.append(float(torch.nn.functional.cosine_similarity(again, delta, dim=0)))
    assert float(blocks.tests()["bootstrap"]) == pytest.approx(sum(cosines) / 4000, abs=0.01)
    low = torch.tensor(cosines).quantile(0.025)
    assert float(blocks.tests()["bootstrap_low"]) == pytest.approx(float(low), abs=0.03)


def test_geometry_of_known_means():
    up, down = torch.tensor([3.0, 4, 0]), torch.tensor([3.0, 0, 0])
    numbers = geometry(up - down, up, down)
    assert numbers == pytest.approx({"norm": 4.0, "snr": 0.8, "purity": 1.0, "quality": 0.8 * 0.4, "massive": 1.0})
    assert geometry(torch.ones(32), torch.ones(32), -torch.ones(32))["massive"] == pytest.approx(8 / 32)


def test_tokens_and_turns():
    table = Directions.fit(MODEL, PAIRS).table
    vector = Directions.fit(MODEL, PAIRS)[1]
    logits = (vector.vector * MODEL.final_gain.float()) @ MODEL.W_U.float()
    assert table["promotes"][1][0] == MODEL.str_token(int(logits.argmax()))
    assert math.isnan(table["turn"][0])
    other = Directions.fit(MODEL, PAIRS)[0]
    assert table["turn"][1] == pytest.approx(math.degrees(math.acos(other.cosine(vector))), abs=1e-2)


# ---------------------------------------------------------------------- tokens that do not count
def wild_model():
    """A model whose token "king" has a stream 1,000 times as large."""
    hf = tiny_hf("llama")
    tokenizer = tiny_tokenizer()
    hf.get_input_embeddings().weight.data[tokenizer("moon", add_special_tokens=False).input_ids] *= 1000
    return Model(hf, tokenizer, "wild")


def test_one_wild_token_does_not_make_the_direction():
    model = wild_model()
    up = [f"{prompt} and" for prompt in POSITIVE[:6]]
    wild = [up[0].replace("good", "good moon"), *up[1:]]
    down = [f"{prompt} and" for prompt in NEGATIVE[:6]]
    found = Directions.fit(model, PromptPairs(wild, down), "resid_post.0", at="mean")
    assert found.config["tokens"]["left_out"]["outlier"] == 1
    plain = Directions.fit(model, PromptPairs(up, down), "resid_post.0", at="mean")
    assert found[0].cosine(plain[0]) > 0.5
    kept = Directions.fit(model, PromptPairs(wild, down), "resid_post.0", at="mean", skip=SkipRule(outlier=None))
    assert kept[0].cosine(plain[0]) < 0.5


def test_a_place_whose_token_is_an_outlier_is_left_out_and_named():
    model = wild_model()
    up, down = [f"{prompt} moon the" for prompt in POSITIVE[:4]], [f"{prompt} moon a" for prompt in NEGATIVE[:4]]
    found = Directions.fit(model, PromptPairs(up, down), "resid_post.0", at=["last", -2])
    assert [one.position for one in found] == ["last"]
    assert "outlier" in found.config["refused"]["resid_post.0 at -2"]
    assert any("could not be read" in doubt for doubt in found.doubts)
    with pytest.raises(BadInput, match="outlier"):
        Direction.fit(model, up, down, "resid_post.0", at=-2)


def test_the_same_token_everywhere_is_no_direction():
    with pytest.raises(BadInput, match="same mean"):
        Directions.fit(
            MODEL, PromptPairs([f"{p} the" for p in POSITIVE[:4]], [f"{p} the" for p in NEGATIVE[:4]]), "embed"
        )


# ---------------------------------------------------------------------- files and bad input
def test_files_keep_everything(tmp_path):
    found = Directions.fit(MODEL, PAIRS, method="svd", k=2, at=["last", "mean"])
    found.save(tmp_path / "all.safetensors")
    again = Directions.load(tmp_path / "all.safetensors")
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.vector, other.vector)
        assert torch.equal(one.basis, other.basis)
        assert (one.site, one.model_name, one.provenance) == (other.site, other.model_name, other.provenance)
    with pytest.raises(BadFile, match="6 directions"):
        Direction.load(tmp_path / "all.safetensors")
    lda = Direction.fit(MODEL, POSITIVE, NEGATIVE, "resid_post.1", method="lda")
    lda.save(tmp_path / "one.safetensors")
    x = MODEL.run(POSITIVE[:2], capture="resid_post.1")["resid_post.1"]
    torch.testing.assert_close(Direction.load(tmp_path / "one.safetensors").score(x), lda.score(x))
    found.save(tmp_path / "table.csv")
    assert "held_out_auroc" in (tmp_path / "table.csv").read_text()


def test_an_erasure_is_kept_in_a_direction():
    found = Direction.fit(MODEL, POSITIVE, NEGATIVE, "resid_post.1", method="leace")
    sides = [found.erased(by_hand(side, "resid_post.1", -1).float()) for side in (POSITIVE, NEGATIVE)]
    before = [by_hand(side, "resid_post.1", -1) for side in (POSITIVE, NEGATIVE)]
    gap = (sides[0].mean(0) - sides[1].mean(0)).norm() / (before[0].mean(0) - before[1].mean(0)).norm()
    assert gap < 1e-4
    with pytest.raises(BadInput, match="no erasure"):
        Direction.fit(MODEL, POSITIVE, NEGATIVE, "resid_post.1").erased(before[0])


def test_bad_input():
    unpaired = PromptPairs(POSITIVE, NEGATIVE[:5], paired=False)
    with pytest.raises(BadInput, match="takes pairs"):
        Directions.fit(MODEL, unpaired, method="pca_pairs")
    assert len(Directions.fit(MODEL, unpaired, "resid_post.1")) == 1
    with pytest.raises(BadInput, match="at least two"):
        Directions.fit(MODEL, PromptPairs(POSITIVE[:1], NEGATIVE[:1]))
    with pytest.raises(BadInput, match="background="):
        Directions.fit(MODEL, PAIRS, method="mean_centred")
    with pytest.raises(BadInput, match="k=2"):
        Directions.fit(MODEL, PAIRS, k=2)
    with pytest.raises(BadInput, match="of the stream"):
        Directions.fit(MODEL, PAIRS, "q.1")
    with pytest.raises(BadInput, match="layers="):
        Directions.fit(MODEL, PAIRS, "resid_post.1", layers=[0])
    with pytest.raises(UnknownName, match="uncentred|does not centre"):
        Directions.fit(MODEL, PAIRS, method="pca_diff")
    with pytest.raises(BadInput, match="2 positions"):
        Direction.fit(MODEL, POSITIVE, NEGATIVE, "resid_post.1", at=["last", "mean"])
