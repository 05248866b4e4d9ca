"""What arms say together, from rows written by hand: verdicts no stronger than the numbers, areas, K-to-break."""

import math

import pytest

from monosem.robustness.arms import rate
from monosem.robustness.curves import area, compared, follows, least_to_break, verdict, within_budget
from monosem.robustness.report import breaking, caveats, halving, headlines
from monosem.robustness.span import cells, length, spans


def row(attack, control, strength, shown, kl=None, n=20):
    """An arm under which the behaviour still shows on the first `shown` of n prompts; all else is success."""
    lines = [{"shown": i < shown, "success": i >= shown} for i in range(n)]
    held = {"attack": attack, "control": control, "strength": strength, "n": n, "rows": lines}
    held |= {"shown": rate([line["shown"] for line in lines]), "success": rate([line["success"] for line in lines])}
    return held if kl is None else held | {"kl_token": {"value": kl, "low": kl, "high": kl}}


def said(rows, comparisons=1, budget=1.0):
    return verdict(rows, "ablation", budget, 0.2, comparisons)


NONE = row("none", "", None, 20)


def test_an_attack_that_breaks_it():
    found = said([NONE, row("ablation", "", 1.0, 0, 0.1), row("ablation", "random 1", 1.0, 20, 0.1)])
    assert found["words"] == "breaks it: at most 16 % is left"
    assert found["breaks"]
    assert found["sure"]
    assert found["p_none"] == pytest.approx(2 / 2**20)


def test_controls_that_do_nothing_are_seen_as_such():
    rows = [NONE, row("ablation", "", 1.0, 0, 0.5), row("ablation", "random 1", 1.0, 20, 0.001)]
    found = said(rows)
    assert found["words"].endswith("its controls hardly change the model")
    assert found["controls"]["random 1"]["idle"]
    found = said([*rows, row("ablation", "shuffled labels", 1.0, 20, 0.4)])
    assert "hardly" not in found["words"]
    assert [one["idle"] for one in found["controls"].values()] == [True, False]


def test_a_control_that_does_as_much_takes_the_verdict_away():
    rows = [NONE, row("ablation", "", 1.0, 0, 0.1), row("ablation", "random 1", 1.0, 2, 0.1)]
    found = said(rows)
    assert found["words"] == "no more than its control (random 1) does"
    assert not found["breaks"]


def test_a_control_is_taken_at_the_strength_of_nearest_price():
    """As of a subspace: at one number of directions prices differ by far."""
    rows = [NONE, row("ablation", "", 1, 12, 0.3), row("ablation", "", 2, 0, 0.6), row("ablation", "", 4, 0, 3.0)]
    dear = [row("ablation", "shuffled labels", k, 0, 2.5 * k) for k in (1, 2, 4)]
    cheap = [row("ablation", "random 1", k, 20 - 2 * k, 0.2 * k) for k in (1, 2, 4)]
    found = said([*rows, *dear, *cheap])
    assert found["strength"] == 2
    assert found["words"] == (
        "breaks it: at most 16 % is left; not shown to be more than any change would, as its control (shuffled labels) "
        "costs over 2 times as much KL"
    )
    assert (found["breaks"], found["compared"]) == (True, False)
    assert {name: one["strength"] for name, one in found["controls"].items()} == {"shuffled labels": 1, "random 1": 4}
    assert [one["dear"] for one in found["controls"].values()] == [True, False]


def test_a_control_just_over_the_budget_still_counts():
    rows = [NONE, row("ablation", "", 1, 14, 0.1), row("ablation", "", 2, 0, 0.95)]
    control = [row("ablation", "random 1", 1, 20, 0.11), row("ablation", "random 1", 2, 0, 1.01)]
    found = said([*rows, *control])
    assert found["words"] == "no more than its control (random 1) does"
    assert found["as_controls"]
    assert found["controls"]["random 1"]["strength"] == 2


def test_loops_are_no_break():
    """Nothing is left of the behaviour, and little of the answers."""
    arm = row("ablation", "", 1.0, 0, 0.1)
    for loops, breaks in ((4, True), (5, False), (12, False)):
        lines = [{"shown": False, "success": i >= loops} for i in range(20)]
        broken = arm | {"rows": lines, "success": rate([line["success"] for line in lines])}
        found = said([NONE, broken, row("ablation", "random 1", 1.0, 20, 0.1)])
        assert found["breaks"] == breaks
        if not breaks:
            assert found["words"] == f"weakens it: little is left, but {loops} of 20 responses are empty or loops"
            assert not found["sure"]


def test_few_prompts_cannot_show_much():
    few = [
        row("none", "", None, 4, n=4),
        row("ablation", "", 1.0, 0, 0.1, n=4),
        row("ablation", "random 1", 1.0, 4, 0.1, n=4),
    ]
    assert said(few)["words"] == "no change that these prompts could show"
    some = [NONE, row("ablation", "", 1.0, 14, 0.1), row("ablation", "random 1", 1.0, 20, 0.1)]
    assert said(some)["words"] == "weakens it"
    assert said(some, comparisons=6)["words"] == "no change that these prompts could show"
    up_to = [NONE, row("ablation", "", 1.0, 3, 0.1), row("ablation", "random 1", 1.0, 20, 0.1)]
    assert said(up_to)["words"] == "breaks it on these prompts; up to 36 % may be left"
    assert (said(up_to)["breaks"], said(up_to)["sure"]) == (True, False)


def test_a_model_that_is_changed_beyond_the_budget_is_no_broken_behaviour():
    rows = [NONE, row("ablation", "", 1.0, 0, 1.5), row("ablation", "random 1", 1.0, 20, 1.5)]
    assert said(rows, budget=2.0)["breaks"]
    found = said(rows)
    assert found["words"].startswith("changes the model by more than the budget")
    assert found["over_budget"]
    assert not found["breaks"]


def test_words_without_a_thread_are_no_broken_behaviour():
    """As after circuit breakers: no refusal, and no answer either."""
    for perplexity, breaks in ((5.0, True), (99.0, True), (2500.0, False), (None, True)):
        arm = {**row("ablation", "", 1.0, 0, 0.1), "perplexity": perplexity}
        found = said([NONE, arm, row("ablation", "random 1", 1.0, 20, 0.1)])
        assert found["breaks"] == breaks
    assert "lose the thread (median perplexity 2,500)" in said([NONE, {**arm, "perplexity": 2500.0}])["words"]


def test_a_control_that_only_says_nonsense_is_named_as_such():
    """It still takes the verdict away: at this price any change may do as much."""
    control = row("ablation", "random 1", 1.0, 2, 0.1)
    for perplexity, more in ((99.0, ""), (8202.0, ", whose responses lose the thread, median perplexity 8,202")):
        found = said([NONE, row("ablation", "", 1.0, 0, 0.1), control | {"perplexity": perplexity}])
        assert found["words"] == f"no more than its control (random 1{more}) does"
        assert found["controls"]["random 1"]["perplexity"] == perplexity


def test_the_headline_says_no_more_than_the_verdicts():
    def line(left, n=20, **more):
        arms = [row("ablation", "", 1.0, left, 0.1, n=n) | more, row("ablation", "random 1", 1.0, n, 0.1, n=n)]
        parts = {"none": {"arms": [row("none", "", None, n, n=n)]}, "ablation": {"arms": arms}}
        (said,) = headlines({"config": {"budget": 1.0, "break_at": 0.2}, "parts": {"model": parts}})
        return said

    assert line(0).endswith("20 of 20 prompts: broken by ablation at all sites.")
    assert line(3).endswith("broken by ablation at all sites on these prompts, though more may be left than they show.")
    assert line(14).endswith("broken by no attack that was tried.")
    lost = "broken by no attack that was tried; its responses lose the thread under ablation at all sites."
    assert line(0, perplexity=2500.0).endswith(lost)


def test_a_direction_that_a_filter_left_out_is_no_proof_of_robustness():
    def of(reason):
        return caveats({"parts": {"model": {"direction": {"left_out": reason}}}}, "model")

    assert of("") == []
    assert "(changes too much): where the behaviour survives" in of("changes too much")[0]


def test_a_behaviour_that_is_not_there_cannot_be_broken():
    rows = [row("none", "", None, 6), row("ablation", "", 1.0, 0, 0.1), row("ablation", "random 1", 1.0, 6, 0.1)]
    assert said(rows)["words"].startswith("the behaviour shows too seldom")


def test_the_strength_is_chosen_by_the_price():
    rows = [row("ablation", "", 0.5, 20, 0.2), row("ablation", "", 1.0, 0, 3.0)]
    assert within_budget(rows, "ablation", 1.0)["strength"] == 0.5
    assert within_budget(rows, "ablation", 5.0)["strength"] == 1.0
    assert within_budget(rows, "ablation", 0.1)["strength"] == 0.5  # the weakest, and said to be over
    assert verdict([NONE, *rows], "ablation", 0.1, 0.2, 1)["over_budget"]


def test_mcnemar_counts_prompts_that_change():
    assert compared(row("a", "", None, 10), row("b", "", None, 10)) == 1.0
    assert compared(row("a", "", None, 10), row("b", "", None, 4)) == pytest.approx(2 / 2**6)


def test_the_area_is_a_sum_of_steps():
    rows = [
        NONE,
        row("ablation", "", 1.0, 10, 0.25),
        row("ablation", "", 2.0, 0, 0.5),
        row("ablation", "", 4.0, 0, 2.0),
    ]
    # 0 up to 0.25 nats, a half up to 0.5, all from there to 1
    assert area(rows, "ablation", "", 1.0).value == pytest.approx(0.25 * 0.5 + 0.5)
    worse = [NONE, row("ablation", "", 1.0, 0, 0.5), row("ablation", "", 2.0, 20, 0.75)]
    assert area(worse, "ablation", "", 1.0).value == pytest.approx(0.5)  # the best within a budget, not the last
    found = area(rows, "ablation", "", 1.0)
    assert found.low < found.value < found.high


def test_the_least_strength_that_breaks_it():
    rows = [row("subspace", "", float(k), shown) for k, shown in ((1, 18), (2, 4), (4, 1), (8, 0))]
    assert least_to_break(rows, "subspace", "", 0.2) == {"seen": 2, "sure": 8}
    assert least_to_break(rows, "subspace", "", 0.5) == {"seen": 2, "sure": 2}
    assert least_to_break(rows[:1], "subspace", "", 0.2) == {"seen": None, "sure": None}
    assert least_to_break(rows, "subtraction", "", 0.2) == {"seen": None, "sure": None}


@pytest.mark.parametrize(
    ("unattacked", "halved"), [(20, ("1", "2")), (12, ("2", "2")), (1, ("2", "none of those tried")), (0, None)]
)
def test_half_is_half_of_the_unattacked_rate(unattacked, halved):
    """Of 20 at most 7 are left under one gap, none under two: 7 is half of 20, not of 12; none of none is no half."""
    rows = [row("none", "", None, unattacked)]
    rows += [row("subtraction", "", float(gaps), min(unattacked, left), 0.1) for gaps, left in ((1, 7), (2, 0))]
    nothing = f"nothing to break: {unattacked} of 20 unattacked"
    ((name, seen, sure, price),) = halving(rows, {"budget": 1.0})
    assert (name, (seen, sure)) == ("fitted", halved or (nothing, nothing))
    assert (price == "–") == (halved is None)
    ((_, seen, _, _),) = breaking(rows, {"budget": 1.0}, "subtraction", 0.2)  # a fifth left is broken
    assert (seen == nothing) == (unattacked <= 4)


def test_the_span_is_of_layers_that_halve_it():
    """Of 20 shown without an attack: 10 left is half as seen, 3 surely less; layer 20 breaks the model."""
    left = {4: 20, 8: 3, 12: 12, 16: 10, 20: 0, 24: 20}
    arms = [row("subtraction", "", float(layer), n, 2.0 if layer == 20 else 0.1) for layer, n in left.items()]
    arms += [row("subtraction", "random 1", float(layer), 20, 0.1) for layer in left]
    fitted, random = spans({"layers": {"arms": arms}}, NONE, 1.0)
    assert (fitted["tried"], fitted["seen"], fitted["sure"]) == ([*left], [8, 16], [8])
    said = ("subtraction of the direction", "4, 8, 12, 16, 20, 24", "1 of 6 layers, 8", "2 of 6 layers, 8 to 16")
    assert cells(fitted) == (*said, "20")
    assert cells(random)[2:] == ("none of 6 layers", "none of 6 layers", "–")
    (one,) = spans({"layers": {"arms": [row("one_layer", "", 4.0, 0, 0.1)]}}, NONE, 1.0)
    assert cells(one)[1:3] == ("4", "1 of 1 layer, 4")
    (one,) = spans({"layers": {"arms": [row("one_layer", "", 4.0, 0, 0.1)]}}, row("none", "", None, 0), 1.0)
    assert cells(one)[2] == "nothing to break"
    assert list(spans({}, NONE, 1.0)) == []  # a report from before there were spans


def test_the_length_that_is_subtracted_is_said():
    assert length({}) == length({"scales": {"one_layer": None}}) == ""
    assert length({"scales": {"subtraction": 2.0}}).startswith("Subtraction is of 2 gaps at every layer, ")
    told = length({"scales": {"subtraction": 2.0}, "share": 0.25})
    assert told.startswith(
        "Subtraction is of 2 gaps at the direction's own layer, 25 % of the stream's usual norm there"
    )


def test_following():
    assert follows([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]) > 0.8
    assert math.isnan(follows([1.0, 2.0, 3.0], [1, 1, 1]))
