"""Answers of several tokens: every metric against whole runs of prompt and answer, token by token."""

from typing import Any

import pytest
import torch

from monosem import edits, patching
from monosem.data import TokenPairs
from monosem.errors import BadInput
from monosem.models import Model
from monosem.patching import METRICS, Cell, patch_sets, sweep, trace
from monosem.patching.scoring import default_metric
from tiny import tiny_model

CLEAN, OTHER = [[7, 21, 33, 40, 52], [9, 30, 31, 20]], [[7, 21, 34, 40, 52], [9, 35, 31, 20]]
RIGHT, WRONG = [[11, 60, 5], [70, 12]], [[17], [71, 13, 14]]
ALL = ["log_probability", "probability", "log_odds", "probability_diff", "negative_kl"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request: pytest.FixtureRequest) -> Model:
    return tiny_model(request.param, name="tiny")


def pairs_of(model: Model, **more: Any) -> TokenPairs:
    return TokenPairs.of(model, CLEAN, OTHER, RIGHT, WRONG, joint=True, **more)


def log_p(model: Model, prompt: list[int], answer: list[int], edit: Any = ()) -> float:
    """One run for every token of the answer, with what comes before it as the prompt."""
    total = 0.0
    for n, token in enumerate(answer):
        logits = model.run([[*prompt, *answer[:n]]], edits=edit).logits
        total += float(logits[0, -1].log_softmax(-1)[token])  # type: ignore[index]
    return total


def by_hand(model: Model, row: int, prompt: list[int], edit: Any = ()) -> dict[str, float]:
    right, wrong = (log_p(model, prompt, side[row], edit) for side in (RIGHT, WRONG))
    p, q = (model.run([ids], edits=e).logits[0, -1].log_softmax(-1) for ids, e in ((CLEAN[row], ()), (prompt, edit)))
    exp = lambda x: float(torch.tensor(x).exp())  # noqa: E731
    return {
        "log_probability": right, "probability": exp(right), "log_odds": right - wrong,
        "probability_diff": exp(right) - exp(wrong), "negative_kl": -float((p.exp() * (p - q)).sum()),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["growing", "batched", "naive"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_metric_of_a_sweep(model: Model, direction: Any, method: Any) -> None:
    pairs = pairs_of(model)
    into, source = (OTHER, CLEAN) if direction == "denoising" else (CLEAN, OTHER)
    for site in ("resid_pre", "mlp_out", "resid_post"):
        found = sweep(
            model, pairs, site, positions=[1, -1], layers=[1, -1], metric=ALL, direction=direction, method=method,
            quiet=True,
        )  # fmt: skip
        assert found.method == method
        for row in range(2):
            ends = (by_hand(model, row, CLEAN[row]), by_hand(model, row, OTHER[row]))
            value = model.run([source[row]], capture=[found.cells[0].place, found.cells[-1].place])
            for i, cell in enumerate(found.cells):
                at = cell.position % len(into[row])  # type: ignore[operator]
                write = edits.patch(cell.place, value[cell.place][0, at]).at(positions=[at])
                hand = by_hand(model, row, into[row], write)
                for name in ALL:
                    assert float(found.values[name][i, row]) == pytest.approx(hand[name], abs=2e-5), (cell, name)
                    assert float(found.clean[name][row]) == pytest.approx(ends[0][name], abs=2e-5)
                    assert float(found.corrupted[name][row]) == pytest.approx(ends[1][name], abs=2e-5)


def test_values_sets_heads_and_noise(model: Model) -> None:
    """What other kinds of experiments write is of the prompt alone; the answer's own tokens stay as they are."""
    pairs = pairs_of(model)
    options: dict[str, Any] = {"corruption": patching.zero(), "metric": "log_odds", "quiet": True}
    zeroed = sweep(model, pairs, "z", ("layer", "head"), layers=[1], heads=[1], **options)
    means = sweep(model, pairs, "pattern", ("layer", "head"), layers=[0], heads=[0], **options)
    for row, prompt in enumerate(CLEAN):
        of_prompt = slice(0, len(prompt))
        for found, site, head in ((zeroed, "z.1", 1), (means, "pattern.0", 0)):
            write = edits.patch(site, 0.0).at(positions=of_prompt, heads=[head])
            hand = by_hand(model, row, prompt, write)["log_odds"]
            assert float(found.values["log_odds"][0, row]) == pytest.approx(hand, abs=2e-5)
    cells = [Cell("attn_out", 0, (1,)), Cell("mlp_out", 1, (2, -1))]
    joint = patch_sets(model, pairs, [cells, []], metric="log_odds", quiet=True)
    for row, prompt in enumerate(OTHER):
        clean = model.run([CLEAN[row]], capture=[cell.place for cell in cells])
        last = len(prompt) - 1
        places = ((cells[0].place, 1), (cells[1].place, 2), (cells[1].place, last))
        write = [edits.patch(place, clean[place][0, at]).at(positions=[at]) for place, at in places]
        hand = by_hand(model, row, prompt, write)["log_odds"]
        assert float(joint.values["log_odds"][0, row]) == pytest.approx(hand, abs=2e-5)
        assert float(joint.effects()[1, row]) == pytest.approx(0, abs=1e-6)
    traced = trace(model, pairs, slice(1, 2), layers=[1], samples=2, metric=["probability", "log_odds"], quiet=True)
    noise = patching.noise(samples=2, positions=traced.subject, of="noised").sides(model, pairs, [])(0)
    draws = [by_hand(model, 0, CLEAN[0], padded(side.edits[0], 5)) for side in noise]
    assert float(traced.corrupted["probability"][0]) == pytest.approx(
        sum(d["probability"] for d in draws) / 2, abs=1e-6
    )
    assert float(traced.corrupted["log_odds"][0]) == pytest.approx(sum(d["log_odds"] for d in draws) / 2, abs=2e-5)
    assert len(traced.answers[0]) > 0


def padded(edit: Any, length: int) -> Any:
    return edit.at(positions=slice(0, length))


def test_answers_are_read_after_their_prompt_or_refused() -> None:
    model = tiny_model("llama", name="tiny")
    prompts = ["the cat sat", "the dog sat"]
    pairs = TokenPairs.of(model, prompts, prompts[::-1], [" on mat", " in"], [" mat on", " on the mat"], joint=True)
    assert pairs.joint
    assert pairs.right_tokens is not None
    assert [[t for t in row if t >= 0] for row in pairs.right_tokens.tolist()] == [
        model.tokens([text]).rows()[0] for text in ("on mat", "in")
    ]
    assert pairs[[1]].right_tokens.shape == (1, 2)  # type: ignore[union-attr]
    assert " on mat" in pairs.show(model)
    assert "' mat on'" in pairs.table(model)["wrong"][0]
    assert default_metric(pairs) == "log_odds"
    single = TokenPairs.of(model, prompts, prompts[::-1], [" on", " in"], [" mat", " on"], joint=True)
    assert not single.joint  # nothing but single tokens: as ever
    with pytest.raises(BadInput, match="2 tokens"):
        TokenPairs.of(model, prompts, prompts[::-1], [" on mat", " in"])
    with pytest.raises(BadInput, match="pair 0 are the same"):
        TokenPairs.of(model, prompts, prompts[::-1], [" on mat", " in"], [" on mat", " on"], joint=True)
    with pytest.raises(BadInput, match="one word with the prompt's last"):
        TokenPairs.of(model, prompts, prompts[::-1], ["mat on", " in"], joint=True)
    with pytest.raises(BadInput, match=r"\[' on', ' mat'\] is a set of answers"):  # not the text " on mat"
        TokenPairs.of(model, prompts, prompts[::-1], [[" on", " mat"], " in"], [" mat on", " on the"], joint=True)


def test_pairs_that_are_solved(model: Model) -> None:
    pairs = pairs_of(model)
    better = [log_p(model, CLEAN[row], RIGHT[row]) > log_p(model, CLEAN[row], WRONG[row]) for row in range(2)]
    flipped = TokenPairs.of(model, CLEAN, OTHER, WRONG, RIGHT, joint=True)
    for one, wanted in ((pairs, better), (flipped, [not yes for yes in better])):
        if any(wanted):
            kept = one.solved(model)
            assert kept.clean.rows() == [row for row, yes in zip(CLEAN, wanted) if yes]
    greedy = []
    for prompt in CLEAN:
        ids = list(prompt)
        for _ in range(2):
            ids.append(int(model.run([ids], logits="last").logits.argmax()))  # type: ignore[union-attr]
        greedy.append(ids[-2:])
    top = TokenPairs.of(model, CLEAN, OTHER, [greedy[0], [greedy[1][0], (greedy[1][1] + 1) % 90]], joint=True)
    assert len(top.solved(model, top=True)) == 1


def test_what_has_no_joint_answer_is_refused(model: Model) -> None:
    pairs = pairs_of(model)
    with pytest.raises(BadInput, match="several tokens, and no one logit: use log_odds"):
        sweep(model, pairs, positions=[-1], quiet=True)
    only = TokenPairs.of(model, CLEAN, OTHER, RIGHT, joint=True)
    with pytest.raises(BadInput, match="log_odds needs wrong answers"):
        sweep(model, only, positions=[-1], metric="log_odds", quiet=True)
    assert sweep(model, only, layers=[0], positions=[1], metric="log_probability", quiet=True).mean().isfinite().all()
    cell = [Cell("mlp_out", 0)]
    for call in (
        lambda: patching.attribution(model, pairs, metric="log_odds"),
        lambda: patching.paths(model, pairs, "z", "logits", metric="log_odds"),
        lambda: patching.causal_evidence(model, pairs, [cell]),
        lambda: patching.backup(model, pairs, cell),
        lambda: patching.localise(model, pairs),
        lambda: pairs.advantage(torch.zeros(2, 90)),
    ):
        with pytest.raises(BadInput, match="several"):
            call()
    assert set(METRICS) == {*ALL, "logit_diff"}


@pytest.mark.parametrize("site", ["final_norm", "logits"])
def test_edits_in_force_behind_the_last_layer_count(model: Model, site: str) -> None:
    with model.editing(edits.function(site, lambda x: x * 0.5)):
        found = patch_sets(model, pairs_of(model), [[Cell("mlp_out", 1, (-1,))]], metric="log_odds", quiet=True)
        for row in range(2):
            values = model.run([CLEAN[row]], capture="mlp_out.1")["mlp_out.1"][0, -1]
            at = edits.patch("mlp_out.1", values).at(positions=len(CLEAN[row]) - 1)
            assert found.values["log_odds"][0, row] == pytest.approx(
                by_hand(model, row, OTHER[row], at)["log_odds"], abs=1e-4
            )
            assert found.clean["log_odds"][row] == pytest.approx(by_hand(model, row, CLEAN[row])["log_odds"], abs=1e-4)


@pytest.mark.parametrize("where", [{"positions": -1}, {"scope": "prompt"}])
def test_edits_in_force_that_know_where_the_prompt_ends(model: Model, where: dict[str, Any]) -> None:
    """The answer follows the prompt, and they would act on its tokens; by index they are as by hand."""
    pairs = pairs_of(model)
    edit = edits.function("mlp_out.0", lambda x: x * -1.5)
    with model.editing(edit.at(**where)):
        for call in (lambda: sweep(model, pairs, layers=[0], positions=[1], quiet=True), lambda: pairs.solved(model)):
            with pytest.raises(BadInput, match="an answer of several tokens follows"):
                call()
    with model.editing(edit.at(positions=1)):
        found = patch_sets(model, pairs, [[Cell("mlp_out", 1, (-1,))]], metric="log_odds", quiet=True)
        assert found.clean["log_odds"][0] == pytest.approx(by_hand(model, 0, CLEAN[0])["log_odds"], abs=1e-4)
