"""From topic to topic: against cosines and AUROCs made prompt by prompt, planted topics, a wild token."""

from itertools import combinations, permutations

import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_fitting import by_hand, wild_model

from monosem.activations import SkipRule
from monosem.data import PromptPairs
from monosem.directions import Direction, Directions, reading
from monosem.directions.topics import Topics, detected, doubts, topics_of
from monosem.errors import BadInput
from monosem.statistics import auroc_interval
from tiny_latents import MODEL, NEGATIVE, POSITIVE

GROUPS = ["abc"[i % 3] for i in range(len(POSITIVE))]
PAIRS = PromptPairs(POSITIVE, NEGATIVE, groups=GROUPS)
SITE = "resid_post.1"


def cosine(one, other):
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_cosines_and_aurocs_are_those_of_each_topics_prompts(monkeypatch):
    monkeypatch.setattr(reading, "KEPT", 6 * MODEL.cfg.d_model)  # three pairs at a time
    found = Directions.fit(MODEL, PAIRS, SITE)[0].provenance
    sides = [by_hand(prompts, SITE, -1) for prompts in (POSITIVE, NEGATIVE)]
    of = {name: [i for i, group in enumerate(GROUPS) if group == name] for name in "abc"}
    one = {name: sides[0][rows].mean(0) - sides[1][rows].mean(0) for name, rows in of.items()}
    pairs = {f"{a}, {b}": cosine(one[a], one[b]) for a, b in combinations("abc", 2)}
    assert found["transfer"] == pytest.approx(sum(pairs.values()) / 3, abs=1e-4)
    assert found["transfer_least"] == pytest.approx(min(pairs.values()), abs=1e-4)
    assert found["transfer_between"] == min(pairs, key=pairs.get)
    rest = {name: [i for i, group in enumerate(GROUPS) if group != name] for name in "abc"}
    others = {name: sides[0][rows].mean(0) - sides[1][rows].mean(0) for name, rows in rest.items()}
    assert found["transfer_rest"] == pytest.approx(sum(cosine(one[n], others[n]) for n in "abc") / 3, abs=1e-4)
    halves = {n: [(sides[0] - sides[1])[rows[half::2]].mean(0) for half in (0, 1)] for n, rows in of.items()}
    assert found["topic_halves"] == pytest.approx(sum(cosine(*halves[n]) for n in "abc") / 3, abs=1e-4)
    crossed = [cosine(x, y) for a, b in combinations("abc", 2) for x in halves[a] for y in halves[b]]
    assert found["transfer_halves"] == pytest.approx(sum(crossed) / len(crossed), abs=1e-4)
    roots = [(cosine(*halves[a]) * cosine(*halves[b])) ** 0.5 for a, b in combinations("abc", 2)]
    assert found["transfer_shared"] == pytest.approx(sum(crossed) / 4 / sum(roots), abs=1e-3)
    areas = {}
    for a, b in permutations("abc", 2):
        scores = torch.cat([side[of[b]] @ one[a] for side in sides])
        areas[f"{a} to {b}"] = roc_auc_score([1] * len(of[b]) + [0] * len(of[b]), scores)
    assert found["transfer_auroc"] == pytest.approx(sum(areas.values()) / 6, abs=1e-6)
    assert found["transfer_auroc_least"] == pytest.approx(min(areas.values()))
    assert areas[found["transfer_auroc_of"]] == pytest.approx(min(areas.values()))
    assert found["topics"]["names"] == [*"abc"]
    assert found["topics"]["cosine"][0][1] == pytest.approx(pairs["a, b"], abs=1e-4)
    assert found["topics"]["auroc"][1][0] == pytest.approx(areas["b to a"], abs=1e-4)
    assert found["topics"]["auroc"][0][0] is None


def planted(axes, n=16, noise=1.0, seed=0):
    """Pairs' differences of topics, each along an axis of its own, in noise (one for all, or each its own)."""
    draw = torch.Generator().manual_seed(seed)
    names = [f"topic {i}" for i in range(len(axes))]
    topics = Topics.of(names, 1, axes.shape[1])
    noises = [noise] * len(axes) if isinstance(noise, float) else noise
    for name, axis, loud in zip(names, axes, noises):
        rows = axis + loud * torch.randn(n, axes.shape[1], generator=draw).double()
        topics.take([name] * n, rows[None])
    return topics.cosines()[0]


def test_planted_topics_are_told_from_one_direction_and_from_none():
    eye = torch.eye(40).double()
    shared, own, none = (planted(8 * eye[[0, 0, 0]]), planted(8 * eye[:3]), planted(0 * eye[:3]))
    assert shared["transfer"] > 0.9
    assert shared["transfer_halves"] == pytest.approx(shared["topic_halves"], abs=0.05)  # as alike as halves of a topic
    assert abs(own["transfer"]) < 0.1
    assert own["transfer"] <= own["chance_transfer"]
    assert own["topic_halves"] > 0.8  # each is steady by itself
    assert abs(none["topic_halves"]) < 0.5
    assert shared["transfer"] > shared["chance_transfer"] > 0


def test_chance_holds_its_level():
    """Of topics without a direction about 5 % have a transfer above what chance gives."""
    above = [
        (one := planted(torch.zeros(3, 30).double(), n=16, seed=seed))["transfer"] > one["chance_transfer"]
        for seed in range(60)
    ]
    assert sum(above) <= 9  # 3 are expected; more than 9 have a probability of 0.001


def test_topics_that_share_half_of_a_direction_are_told_from_loud_ones():
    eye = torch.eye(40).double()
    crossed = torch.stack([8 * eye[0] + 8 * eye[i] for i in (1, 2, 3)])  # true cosine 0.5
    found = planted(crossed, noise=2.0)
    assert found["transfer_shared"] == pytest.approx(0.5, abs=0.1)
    assert found["p_one_direction"] == pytest.approx(1 / 1001)
    (doubt,) = doubts({"here": found, "there": planted(8 * eye[[0, 0, 0]])})
    assert doubt == (
        f"at 1 of 2 places topics share less than half of a direction; at here halves of two topics have cosine "
        f"{found['transfer_halves']:.2f}, two halves of one {found['topic_halves']:.2f} (p 0.001)"
    )
    loud = [planted(eye[[0, 0, 0]], noise=[0.2, 0.6, 1.2], seed=seed) for seed in range(10)]  # one direction
    assert sum(one["p_one_direction"] <= 0.05 for one in loud) <= 3  # 0.5 are expected; more than 3: 0.001
    assert not doubts({"silent": found | {"transfer_shared": 0.75}})
    assert not doubts({"no halves agree": found | {"transfer_shared": None}})


def test_groups_are_numbers_or_names_and_the_worst_is_named_where_there_is_one():
    numbers = PromptPairs(POSITIVE, NEGATIVE, groups=torch.tensor(["abc".index(group) for group in GROUPS]))
    found, named = (Directions.fit(MODEL, pairs, SITE)[0].provenance for pairs in (numbers, PAIRS))
    assert found["topics"]["names"] == ["0", "1", "2"]
    assert found["topics"]["cosine"] == named["topics"]["cosine"]
    letters = str.maketrans("abc", "012")
    assert found["transfer_between"] == named["transfer_between"].translate(letters)
    assert found["worst_group"] == named["worst_group"].translate(letters)
    for wrong in (["a"], {"a"}, float("nan")):
        with pytest.raises(BadInput, match="cannot be a group"):
            PromptPairs(POSITIVE, NEGATIVE, groups=[wrong] * len(POSITIVE))
    groups, up = [1, 1, 1, 1, 2, 2, 2, 2], torch.arange(8.0).expand(2, 1, 8)
    (all_same,) = detected([1, 2], groups, up + 10, up)
    assert all_same["transfer_auroc_of"] == ""
    assert (all_same["transfer_auroc_least_low"], all_same["transfer_auroc_least_high"]) == (
        pytest.approx(auroc_interval(torch.arange(4.0) + 9, torch.arange(4.0)).low),
        1.0,
    )
    (one,) = detected([1, 2], groups, torch.stack([up[0] + 10, up[0]]), up)
    assert one["transfer_auroc_of"] == "2 to 1"


def test_one_wild_token_makes_no_topic_of_its_own():
    model = wild_model()
    up, down = ([f"{prompt} and" for prompt in side] for side in (POSITIVE, NEGATIVE))
    wild = [up[0].replace("good", "good moon"), *up[1:]]
    assert wild != up
    fits = [
        Directions.fit(model, PromptPairs(side, down, groups=GROUPS), "resid_post.0", at="mean", skip=skip)[
            0
        ].provenance
        for side, skip in ((up, None), (wild, None), (wild, SkipRule(outlier=None)))
    ]
    assert abs(fits[2]["transfer_least"] - fits[0]["transfer_least"]) > 0.2  # what the rule is for
    assert fits[1]["transfer"] == pytest.approx(fits[0]["transfer"], abs=0.1)
    assert fits[1]["transfer_least"] == pytest.approx(fits[0]["transfer_least"], abs=0.15)


def test_topics_need_pairs_enough():
    assert topics_of(PromptPairs(POSITIVE, NEGATIVE)) == []
    assert topics_of(PromptPairs(POSITIVE, NEGATIVE, groups=["a"] * len(POSITIVE))) == []
    few = ["a"] * 3 + ["b"] * 4 + ["c"] * (len(POSITIVE) - 7)
    assert topics_of(PromptPairs(POSITIVE, NEGATIVE, groups=few)) == ["b", "c"]
    many = [str(i // 4) for i in range(80)]
    made = PromptPairs([f"up {i}" for i in range(80)], [f"down {i}" for i in range(80)], groups=many)
    assert topics_of(made) == [str(i) for i in range(16)]


def test_they_are_said_and_kept(tmp_path):
    found = Directions.fit(MODEL, PAIRS, "resid_post")
    assert found.across_topics.startswith(
        f"{found.best.site} last, 3 topics: cosine {found.best.provenance['transfer']:.2f}"
    )
    found.save(tmp_path / "d.safetensors")
    again = Directions.load(tmp_path / "d.safetensors")
    assert again.across_topics == found.across_topics
    assert again[0].provenance["topics"] == found[0].provenance["topics"]
    assert {"transfer", "transfer_between", "chance_transfer"} <= set(found.table)
    assert Directions([Direction(torch.ones(32), found[0].site)]).across_topics == ""
    below = found[0].provenance | {"transfer": 0.1, "chance_transfer": 0.2}
    doubtful = Directions([Direction(torch.ones(32), found[0].site, provenance=below)])
    assert "at 1 of 1 places the directions of two topics agree no better than they would by chance" in doubtful.doubts
