"""Amounts: in usual norms, by iso-KL beside a slow formula without a cache, and doses beside random directions."""

import numpy as np
import pytest
import torch

from monosem import edits, steering
from monosem.activations.medians import median_norms
from monosem.errors import BadInput
from monosem.steering import Spoken
from tiny import tiny_model

MODEL = tiny_model("llama")
DRAW = torch.Generator().manual_seed(4)
SITE = "resid_post.1"
V = torch.randn(32, generator=DRAW) * 5
ROWS = [torch.randint(3, 100, (length,), generator=DRAW).tolist() for length in (3, 6, 4)]
STEPS = 6


def quantile(make_edits, level: float) -> float:
    """Row by row in whole passes: the unedited model's own text, KL before each of its tokens."""
    found = []
    for row in ROWS:
        text = list(row)
        for _ in range(STEPS):
            given = make_edits(len(row), len(text))
            p, q = (MODEL.run([text], edits=e).logits[0, -1].double().log_softmax(-1) for e in ([], given))
            found.append(float((p.exp() * (p - q)).sum()))
            token = int(p.argmax())
            if token in MODEL.end_ids:
                break
            text.append(token)
    return float(np.quantile(found, level))


@pytest.mark.parametrize("target", [0.05, 0.5])
@pytest.mark.parametrize("start", [0.01, 1.0, -3.0])
def test_iso_kl_finds_the_amount(target, start):
    make = lambda c: edits.add((SITE, V), c)  # noqa: E731
    found = steering.iso_kl(MODEL, ROWS, make, target=target, start=start, max_new_tokens=STEPS)
    assert np.sign(found.amount) == np.sign(start)
    assert found.nats == pytest.approx(target, rel=0.06)
    assert quantile(lambda *_: make(found.amount), 0.95) == pytest.approx(found.nats, rel=1e-3)
    assert len(found.table) <= 9
    assert tuple(found.table.iloc[-1]) == pytest.approx((found.amount, found.nats))


def test_iso_kl_tells_prompt_and_new_tokens_apart():
    make = lambda c: edits.add((SITE, V), c).at(scope="generated")  # noqa: E731
    found = steering.iso_kl(MODEL, ROWS, make, target=0.2, max_new_tokens=STEPS, quantile=0.5)

    def slow(prompt, length):
        return [edits.add((SITE, V), found.amount).at(positions=list(range(prompt, length)))] if length > prompt else []

    assert quantile(slow, 0.5) == pytest.approx(found.nats, rel=1e-3)


def test_amounts_that_are_not_there():
    with pytest.raises(BadInput, match="changes nothing"):
        steering.iso_kl(MODEL, ROWS, lambda c: edits.scale(SITE, 1.0), max_new_tokens=3, evaluations=3)
    with pytest.raises(BadInput, match=r"no amount of 4 tried gives 50 nats: nearest .* most"):
        steering.iso_kl(MODEL, ROWS, lambda c: edits.set_to((SITE, V), 1.0), target=50, max_new_tokens=3, evaluations=4)
    with pytest.raises(BadInput, match="target > 0"):
        steering.iso_kl(MODEL, ROWS, lambda c: edits.add((SITE, V), c), target=0.0)


def test_an_amount_in_usual_norms():
    amount = steering.in_norms(MODEL, (SITE, V), 0.25)
    plain = MODEL.run(ROWS[0], capture=SITE)[SITE]
    found = MODEL.run(ROWS[0], capture=SITE, edits=edits.add((SITE, V), amount))[SITE] - plain
    site = MODEL.site(SITE)
    torch.testing.assert_close(found.norm(dim=-1), torch.full((1, 3), 0.25 * median_norms(MODEL, [site])[site]))
    with pytest.raises(BadInput, match="length above 0"):
        steering.in_norms(MODEL, (SITE, 0 * V), 1.0)


def test_a_value_in_a_latents_maxima_needs_an_index(tiny_dictionary):
    with pytest.raises(BadInput, match="has no index"):
        steering.in_maxima(tiny_dictionary("relu", site=SITE, model_name="llama"), 3, 1.0)


def test_doses_beside_random_directions_of_the_same_length():
    amounts = [-1.0, 0.0, 0.5, 1.0]
    found = steering.dose_response(
        MODEL, ROWS, (SITE, V), amounts, controls=2, max_new_tokens=3, score=lambda texts: [len(t) for t in texts]
    )
    table = found.table
    assert len(table) == 12
    assert table.query("amount == 0")["kl"].abs().max() < 1e-6
    for amount in amounts:
        alone = steering.compare(MODEL, ROWS, edits.add((SITE, V), amount), max_new_tokens=3)
        row = table[(table["direction"] == "given") & (table["amount"] == amount)].iloc[0]
        assert row["kl"] == pytest.approx(alone.summary["kl"], abs=1e-5)
        assert row["score"] == pytest.approx(np.mean([len(line["edited_text"]) for line in alone.rows]))
    others = steering.random_directions((SITE, V), 2, seed=0)
    for number, (site, vector) in enumerate(others):
        assert float(vector.norm()) == pytest.approx(float(V.norm()), rel=1e-5)
        alone = steering.compare(MODEL, ROWS, edits.add((site, vector), 1.0), max_new_tokens=3)
        row = table[(table["direction"] == "random") & (table["number"] == number) & (table["amount"] == 1.0)].iloc[0]
        assert row["kl"] == pytest.approx(alone.summary["kl"], abs=1e-5)
    values = list(table[table["direction"] == "given"]["kl"])
    ranks = [np.argsort(np.argsort(values)).astype(float), np.array([2.5, 0.0, 1.0, 2.5])]
    assert found.monotone["kl"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)
    drawn = {trace.name: list(trace.y) for trace in found.plot().data}
    assert list(drawn) == ["given", "random 1", "random 2"]
    assert drawn["given"] == values
    with pytest.raises(BadInput, match="one a text"):
        steering.dose_response(MODEL, ROWS, (SITE, V), [1.0], score=lambda texts: [1.0], max_new_tokens=2)
    with pytest.raises(BadInput, match="needs amounts"):
        steering.dose_response(MODEL, ROWS, (SITE, V), [])


class Earlier:
    """A gate that reads the block before, token by token."""

    sites = (MODEL.site("resid_pre.0"),)

    def __call__(self, x, moment):
        return moment.notes[self.sites[0]][1] @ V > 0


@pytest.mark.parametrize(
    "sites", [["embed"], ["resid_pre.0"], ["resid_post.1"], ["z.1", "resid_pre.1"], ["z.1", "z.0"]]
)
@pytest.mark.parametrize("gated", [False, True])
def test_a_pass_that_begins_at_the_edit_says_what_the_whole_pass_says(sites, gated):
    spoken = Spoken.by(MODEL, ROWS, max_new_tokens=STEPS)
    changes = [edits.scale(site, 1.5) for site in sites]
    if gated:
        changes = [one.when(Earlier()) for one in changes if one.site.layer]
    found, wanted = spoken.divergence(changes), []
    for row, new, counted in zip(ROWS, spoken.ids.tolist(), spoken.counted.tolist()):
        whole = [[*row, *new[:-1]]]
        p, q = (MODEL.run(whole, edits=e).logits[0, len(row) - 1 :].double().log_softmax(-1) for e in ([], changes))
        wanted += [float(one) for one, counts in zip((p.exp() * (p - q)).sum(-1), counted) if counts]
    assert found.tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    layers = {int(name.rpartition(".")[2]) if "." in name else 0 for name in sites}
    assert set(spoken.streams) == (set() if gated or 0 in layers else {1})
    with MODEL.editing(edits.scale("z.1", 0.5)):
        inside = spoken.divergence(changes)
    assert set(spoken.streams) <= {1}
    assert not changes or not torch.allclose(inside, found)
