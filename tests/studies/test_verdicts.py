"""The rules of a study on numbers made by hand: which latent is chosen, what is claimed, what is said to be weak."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from monosem.statistics import correlation_interval
from monosem.studies import surface
from monosem.studies.sections import ablation, candidates, conclusion

NOTHING = {"changed": 0, "changed_rate": 0.0, "changed_low": 0.0, "changed_high": 0.24, "kl": 1e-6, "n": 12}
SOME = {"changed": 3, "changed_rate": 0.25, "changed_low": 0.09, "changed_high": 0.53, "kl": 0.8, "n": 12}
TEXT = {"concept_shift": 0.6, "concept_low": 0.4, "concept_high": 0.8, "ratio": 1.5}
TEXT |= {"baseline_perplexity": 4.0, "edited_perplexity": 6.0}


def arm(kind, dose, test, control=NOTHING):
    return {"kind": kind, "label": kind, "dose": dose, "test": test, "control": control}


def sections(randoms=19):
    """A study in which everything holds."""
    weak = TEXT | {"concept_shift": 0.05, "ratio": 1.6}
    return {
        "target": {
            "latent": 5,
            "held_out": {"pairs": 12, "auroc": 1.0, "auroc_low": 0.83, "auroc_high": 1.0, "p": 0.0005,
                         "p_floor": 0.0005},
            "surface": {"verdict": "yes", "said": "nothing", "pairs": 24, "looked_at": ["words"], "restricted": {},
                        "whole": {"value": 1.0, "low": 0.9, "high": 1.0}},
        },
        "ablation": {
            "arms": [arm("target", 0.0, SOME)],
            "where_active": {"n": 8, "kl": 1.2, "changed": 3, "random_kls": [0.1] * randoms, "alike": randoms,
                             "p": 1 / (1 + randoms), "along_kls": [0.2] * 5 * randoms,
                             "p_along": 1 / (1 + 5 * randoms)},
        },
        "steering": {
            "primary_dose": 1.0,
            "p_concept": 1 / (1 + randoms),
            "p": {"test": 0.05, "control": 0.4},
            "arms": [arm("target", 1.0, SOME | TEXT), *(arm("random", 1.0, SOME | weak) for _ in range(randoms))],
        },
    }  # fmt: skip


def verdicts(made):
    return {claim["rule"]: claim["verdict"] for claim in conclusion.conclude(made)}


def said(made):
    return conclusion.headline(made, conclusion.conclude(made))


def test_where_everything_holds_the_smallest_sample_is_the_weakest_link():
    made = sections()
    assert set(verdicts(made).values()) == {"yes"}
    assert "12 pairs" in said(made)
    assert said(made).count("p = 0.05, its floor") == 1
    assert said(made).count("p = 0.01, its floor") == 2
    assert said(made).endswith(
        "Weakest link: ablation rests on the 8 of 12 test prompts on which it is active, 3 of 8 next tokens, "
        "p = 0.01, its floor."
    )
    text = " ".join(claim["text"] for claim in conclusion.conclude(made))
    assert "p = 0.0005, the least that 12 pairs and 2,000 shuffles can show" in text
    assert text.count("p = 0.05, the least that 19 controls can show") == 1
    assert "decoder rows of 95 random latents: median 0.200, highest 0.200, p = 0.01, the least that 95 direc" in text


def test_no_effect_is_no_claim():
    made = sections()
    made["ablation"]["where_active"] |= {"p_along": 0.6, "changed": 0, "kl": 0.05}
    made["target"]["held_out"] |= {"auroc": 0.55, "auroc_low": 0.35, "auroc_high": 0.75, "p": 0.4}
    made["steering"]["arms"][0]["test"] |= {"concept_shift": 0.0, "concept_low": -0.1, "concept_high": 0.1}
    made["steering"]["p_concept"] = 0.7
    found = verdicts(made)
    assert (found["detects"], found["matters"], found["steers"]) == ("no", "no", "no")
    for words in ("is not shown to tell", "is not shown to move", "is not shown to matter"):
        assert words in said(made)


def test_a_few_pairs_say_nothing():
    made = sections()
    made["target"]["held_out"] |= {"pairs": 2, "auroc_low": 0.39, "p": 0.25, "p_floor": 0.25}
    assert verdicts(made)["detects"] == "unclear"
    assert "2 held-out pairs are too few" in conclusion.conclude(made)[0]["text"]
    assert said(made).endswith(
        "Weakest link: detection rests on 2 held-out pairs, with AUROC 1.00 [0.39, 1.00], 2 pairs."
    )


def test_side_effects_of_the_amplified_arm_count():
    made = sections()
    made["steering"]["arms"][0]["control"] = SOME
    assert verdicts(made)["spares"] == "no"
    assert "Weakest link: amplified to 1 x its maximum, it changes 3 of 12 next tokens" in said(made)
    made["steering"]["arms"][0]["control"] = NOTHING | {"n": 3, "changed_high": 0.56}  # too few to show it
    assert verdicts(made)["spares"] == "unclear"
    made["ablation"]["arms"][0]["control"] = NOTHING | {"kl": 0.1}
    assert verdicts(made)["spares"] == "no"


def test_a_latent_that_is_silent_where_it_is_ablated_cannot_be_judged():
    made = sections()
    made["ablation"]["where_active"] |= {"n": 0, "kl": 0.0, "changed": 0, "random_kls": [0.0] * 19, "p": 1.0}
    assert verdicts(made)["matters"] == "unclear"
    assert said(made).endswith("it is silent on all 12 test prompts, so its ablation shows nothing.")


def test_a_change_without_another_token_is_not_yet_one_that_matters():
    made = sections()
    made["ablation"]["where_active"]["changed"] = 0
    assert verdicts(made)["matters"] == "unclear"


@pytest.mark.parametrize(
    ("kl", "directions", "verdict"),
    [(0.168, 99, "yes"), (0.09, 99, "no"), (0.168, 12, "unclear"), (0.09, 12, "no"), (0.168, 0, "unclear")],
)
def test_controls_that_are_less_active_carry_no_claim_and_as_large_changes_do(kl, directions, verdict):
    """French: the target writes 24 at its tokens, the controls 19 and 2 to 6. Ablated, all of these change less."""
    made = sections()
    arms = [{"kind": "target", "kls": {"test": [kl]}, "changes": {"test": [True]}}]
    arms += [
        {"kind": "random", "kls": {"test": [0.046 if i == 0 else 0.002]}, "changes": {"test": [0]}} for i in range(19)
    ]
    along = ([0.11] * 8 + [0.01] * 91)[:directions]
    where = ablation.where_active(arms, [0], {"target": 24.0, "randoms": [19.0] + [2.9] * 18}, along)
    assert (where["alike"], where["p"]) == (1, 0.5)
    assert where["p_along"] == (1 + sum(one >= kl for one in along)) / (1 + directions)
    made["ablation"]["where_active"] = where
    assert verdicts(made)["matters"] == verdict
    claim = next(claim for claim in conclusion.conclude(made) if claim["rule"] == "matters")
    assert "1 of them at least half as active there: p = 0.50" in claim["text"]
    assert ("but these are few" in claim["text"]) == (verdict == "unclear")


def test_latents_as_active_that_do_as_much_leave_doubt():
    made = sections()
    made["ablation"]["where_active"] |= {"alike": 19, "p": 0.35}
    assert verdicts(made)["matters"] == "unclear"
    assert "not more than ablating random latents that are about as active" in conclusion.conclude(made)[2]["text"]
    made["ablation"]["where_active"] |= {"alike": 5}  # too few to say so
    assert verdicts(made)["matters"] == "yes"


def test_random_latents_that_steer_as_much_void_the_claim():
    made = sections()
    made["steering"]["arms"][1]["test"] = SOME | TEXT | {"concept_shift": 0.7}
    made["steering"]["p_concept"] = 2 / 20
    assert verdicts(made)["steers"] == "no"
    made = sections(randoms=3)  # beats all three, which is not much
    assert verdicts(made)["steers"] == "unclear"


def test_coherence_is_judged_against_controls():
    made = sections()
    target = made["steering"]["arms"][0]["test"]
    target["ratio"] = 1.7  # little, but more than under any random latent
    assert verdicts(made)["coherent"] == "unclear"
    target["ratio"] = 5.0
    assert verdicts(made)["coherent"] == "no"
    for other in made["steering"]["arms"][1:]:
        other["test"] = other["test"] | {"ratio": 6.0}  # any latent does as much
    assert verdicts(made)["coherent"] == "unclear"


# ---------------------------------------------------------------------------------------------------------- the choice
def candidate(latent, auroc_low, preference_low, density, coherence=0.0):
    cost = candidates.DENSITY_COST * density
    return {
        "latent": latent, "auroc_low": auroc_low, "preference": preference_low + 0.1, "preference_low": preference_low,
        "coherence_cost": coherence, "density_cost": cost, "merit": preference_low - coherence - cost,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("other", "order"),
    [
        (candidate(2, 0.83, 0.583, 0.15), [1, 2]),  # a dense one gives way
        (candidate(2, 0.62, 0.583, 0.01), [1, 2]),  # one whose AUROC may be luck
        (candidate(2, 0.83, 0.583, 0.01, coherence=0.3), [1, 2]),  # one that spoils the concept's own text
        (candidate(2, 0.83, 0.583, 0.01), [2, 1]),  # none of these
    ],
)
def test_the_choice_weighs_certainty_coherence_and_density(other, order):
    rows = [candidate(1, 0.83, 0.445, 0.01), other]
    assert candidates.ranking(rows) == candidates.ranking(rows[::-1]) == order
    reason = candidates.reason(rows, order, 1.0)
    assert f"latent {order[0]} has the highest merit" in reason
    assert f"Runner-up: latent {order[1]}" in reason


def test_few_pairs_lower_what_is_asked():
    rows = [candidate(1, 0.6, 0.2, 0.0), candidate(2, 0.58, 0.9, 0.0), candidate(3, 0.6, 0.1, 0.0)]
    assert candidates.ranking(rows) == [1, 3, 2]
    assert "2 tell the search half apart" in candidates.reason(rows, [1, 3, 2], 1.0)
    assert "none reaches 0.7" in candidates.reason(rows, [1, 3, 2], 1.0)


# --------------------------------------------------------------------------------------------------------- the surface
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "ten", "red", "big"]
PAIRS = [
    (f"it is ({word}) and (so) on" if number % 2 else f"it is ({word}) so", f"it is {word} and so on")
    for number, word in enumerate(WORDS)
]


def context(active):
    """A stand-in for a study's context: every word and bracket is a token, `active(prompt)` gives its activations."""
    positive, negative = ([pair[side] for pair in PAIRS] for side in (0, 1))
    return SimpleNamespace(
        config=SimpleNamespace(positive=positive, negative=negative),
        along=lambda prompts, latent: [active(prompt) for prompt in prompts],
        model=SimpleNamespace(tokens=lambda prompts: SimpleNamespace(lengths=lengths(prompts))),
    )


def lengths(prompts):
    return torch.tensor([len(prompt.split()) for prompt in prompts])


def tokens_of(prompt):
    return [piece for word in prompt.split() for piece in (f" {word.strip('()')}", *([")"] if ")" in word else []))]


def test_a_latent_that_fires_on_brackets_is_found_out():
    found = surface.surface(context(lambda p: [(t, float(p.count("(")) if t == ")" else 0.0) for t in tokens_of(p)]), 0)
    assert found["whole"]["value"] == 1.0
    assert found["restricted"]["on words alone"]["value"] == 0.5
    assert found["verdict"] == "no"
    assert "no longer tells the sides apart on words alone" in found["said"]
    brackets = next(feature for feature in found["features"] if feature["name"] == "brackets")
    assert brackets["auroc"]["value"] == 1.0
    assert (brackets["against"]["count"], brackets["against"]["of"]) == (0, 0)


def test_a_latent_that_follows_length_within_a_side_is_doubted():
    longer = lambda p: [(t, float(len(p) + 20 * p.count("("))) for t in tokens_of(p)]  # noqa: E731
    found = surface.surface(context(longer), 0)
    assert found["verdict"] == "unclear"
    assert "also follows" in found["said"]


def test_a_latent_of_the_concept_is_not():
    numbers = {prompt: n for n, prompt in enumerate(p for pair in PAIRS for p in pair)}
    strong = {prompt: (1 + n * 7 % 5 / 9) * ("(" in prompt) for prompt, n in numbers.items()}
    found = surface.surface(context(lambda p: [(t, strong[p] * (t == " is")) for t in tokens_of(p)]), 0)
    assert found["verdict"] == "yes"
    assert found["restricted"]["without the first word"]["value"] == 1.0
    assert "brackets" in found["said"]  # the sides do differ in them


def test_first_words():
    up, down = surface.first_words([["Il fait", "Il va", "The end"], ["The cat", "The dog", "A cow"]])
    assert up == [1, 1, -2]
    assert down == [0, 0, 0]  # one on each side beside itself


def test_correlation_within_groups():
    rng = torch.Generator().manual_seed(0)
    x = [torch.randn(9, generator=rng) + shift for shift in (0, 100)]
    y = [value + torch.randn(9, generator=rng) for value in x]
    ranks = [[stats.rankdata(group) / 9 for group in side] for side in (x, y)]
    value, low, high = correlation_interval(x, y)
    centred = [[rank - group.mean() for group in side for rank in group] for side in ranks]
    assert value == pytest.approx(stats.pearsonr(*centred).statistic, abs=1e-5)
    assert low < value < high
    shuffled = copy.deepcopy(y)[::-1]
    assert correlation_interval(x, shuffled).low < 0  # the shift between the groups is no correlation
    constant = correlation_interval([torch.ones(9)], [x[0]])
    assert math.isnan(constant.value)
    assert (constant.low, constant.high) == (-1, 1)
