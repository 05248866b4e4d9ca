"""Pairs, the tasks that make them, and files of pairs: against the texts themselves, split by hand."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem import metrics
from monosem.data import TASKS, TokenPairs, greater_than, ioi, read_pairs, token_at
from monosem.errors import BadFile, BadInput, UnknownName
from monosem.models import Model, TokenBatch
from monosem.patching import METRICS
from monosem.patching.scoring import default_metric

NAMES = ("cat", "dog", "man", "woman", "child", "house", "tree")
SENTENCES = (
    "the {first} and the {second} sat in the {place}, the {s2} ran to the",
    "{first} and {second} in a {place} {s2} not",
)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Model]) -> Model:
    return tiny_model("llama")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that the tiny tokenizer has as tokens."""
    monkeypatch.setattr("monosem.data.words.PLACES", ("sun", "sea", "moon"))
    monkeypatch.setattr("monosem.data.words.OBJECTS", ("mat",))


def words_at(model: Model, pairs: TokenPairs, name: str, side: str = "clean") -> list[str]:
    rows = getattr(pairs, side).rows()
    return [model.str_token(row[int(at)]).strip() for row, at in zip(rows, pairs.spans[name])]


# ----------------------------------------------------------------------------------------------- indirect objects


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("template", ["ABBA", "BABA", "mixed"])
def test_ioi_spans_answers_and_orders_are_those_of_the_text(model: Model, template: Any) -> None:
    pairs = ioi(model, n=20, seed=1, template=template, names=NAMES, sentences=SENTENCES)
    texts = pairs.table(model)["clean"]
    assert len(set(texts)) == len(pairs) == 20
    orders = set()
    for i, text in enumerate(texts):
        said = [word for word in re.findall(r"\w+", text) if word in NAMES]
        twice, once = (next(name for name in said if said.count(name) == k) for k in (2, 1))
        assert [words_at(model, pairs, name)[i] for name in ("io", "s1", "s2")] == [once, twice, twice]
        assert model.str_token(int(pairs.right[i])) == f" {once}"
        assert model.str_token(int(pairs.wrong[i])) == f" {twice}"
        orders.add("ABBA" if said[0] == once else "BABA")
    assert orders == ({"ABBA", "BABA"} if template == "mixed" else {template})
    assert torch.equal(pairs.spans["end"], pairs.clean.last)
    assert torch.equal(pairs.spans["s1+1"], pairs.spans["s1"] + 1)
    assert bool((pairs.spans["s1"] < pairs.spans["s2"]).all())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("corruption", "pattern"),
    [("abc", (False, False, False)), ("s2_flip", (True, True, False)), ("random_names", (False, False, False))],
)
def test_ioi_corruptions(model: Model, corruption: Any, pattern: tuple[bool, ...]) -> None:
    pairs = ioi(model, n=15, corruption=corruption, names=NAMES, sentences=SENTENCES)
    spans = ("io", "s1", "s2")
    clean, corrupted = ([words_at(model, pairs, name, side) for name in spans] for side in ("clean", "corrupted"))
    for i in range(len(pairs)):
        own, other = ([side[k][i] for k in range(3)] for side in (clean, corrupted))
        assert tuple(x == y for x, y in zip(own, other)) == pattern
        if corruption == "abc":
            assert len({*own, *other}) == 5
        if corruption == "s2_flip":
            assert other[2] == own[0]
        if corruption == "random_names":
            assert other[1] == other[2] != other[0]
            assert not {*own} & {*other}
    changed = {tuple(row.nonzero().flatten().tolist()) for row in pairs.differs}
    assert len(pairs.differs.sum(1).unique()) == 1, changed


@pytest.mark.usefixtures("small")
def test_tasks_are_drawn_by_the_seed(model: Model) -> None:
    draw = lambda seed: ioi(model, n=6, seed=seed, names=NAMES, sentences=SENTENCES).clean.rows()  # noqa: E731
    assert draw(3) == draw(3) != draw(4)


@pytest.mark.usefixtures("small")
def test_ioi_refuses_what_it_cannot_make(model: Model) -> None:
    with pytest.raises(BadInput, match="names are single tokens"):
        ioi(model, names=("cat", "zzyzx", "qwerty"), sentences=SENTENCES)
    with pytest.raises(BadInput, match="different pairs can be made, 999999"):
        ioi(model, n=999999, names=NAMES[:5], sentences=SENTENCES[1:], corruption="s2_flip")
    with pytest.raises(UnknownName, match="did you mean 's2_flip'"):
        ioi(model, corruption="s2flip")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="ABBA"):
        ioi(model, template="ABAB")  # type: ignore[arg-type]


@pytest.mark.smollm2
@pytest.mark.parametrize("task", TASKS)
def test_tasks_on_a_real_tokenizer(smollm2: Model, task: str) -> None:
    pairs = TASKS[task](smollm2, n=8)
    assert torch.equal(pairs.clean.lengths, pairs.corrupted.lengths)
    assert torch.equal(pairs.spans["end"], pairs.clean.last)
    assert len(pairs.solved(smollm2)) >= 6  # these are things that the model can do
    first = next(name for name in pairs.spans if name != "noun")
    assert all(bool(row[int(at)]) for row, at in zip(pairs.differs, pairs.spans[first]))


@pytest.mark.smollm2
def test_greater_than_with_a_token_a_digit(smollm2: Model) -> None:
    pairs = greater_than(smollm2, n=12, seed=5)
    assert default_metric(pairs) == "probability_diff"
    for i, text in enumerate(pairs.table(smollm2)["clean"]):
        start, century = re.search(r"(\d{4}) .* (\d{2})$", text).groups()  # type: ignore[union-attr]
        sides = [
            [int(smollm2.str_token(t)) for t in row[i].tolist() if t >= 0] for row in (pairs.right_set, pairs.wrong_set)
        ]
        assert sorted(sides[0] + sides[1]) == list(range(10))
        for digit in range(10):  # later for every unit, or earlier (or the same) for every unit
            later = {int(f"{century}{digit}{unit}") > int(start) for unit in range(10)}
            assert later == {digit in sides[0]}


# ---------------------------------------------------------------------------------------------------------- metrics


@given(st.lists(st.sampled_from(range(10)), min_size=2, max_size=10, unique=True), st.data())
@settings(max_examples=30, deadline=None)
def test_metrics_of_sets_are_sums_of_probabilities(tokens: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(tokens) - 1))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = 5 * torch.randn(3, 10, generator=draw)
    right, wrong = torch.tensor([tokens[:cut] + [-1]] * 3), torch.tensor([tokens[cut:]] * 3)
    exact = logits.double().softmax(-1)
    sides = [sum(exact[:, t] for t in side) for side in (tokens[:cut], tokens[cut:])]
    torch.testing.assert_close(
        metrics.log_odds(logits, right, wrong).double(), (sides[0] / sides[1]).log(), rtol=1e-5, atol=1e-5
    )
    prompts = TokenBatch.of([[0]] * 3, 0)
    found = METRICS["probability_diff"](logits, TokenPairs(prompts, prompts, right_set=right, wrong_set=wrong), logits)
    torch.testing.assert_close(found.double(), sides[0] - sides[1], rtol=1e-5, atol=1e-6)


def test_an_answer_that_stands_twice_in_a_set_counts_once(model: Model) -> None:
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    pairs = TokenPairs.of(
        model, ["the cat sat"], ["the dog sat"], right=[[" on", "on", " the"]], wrong=[[" in", " in"]]
    )
    on, the, inside = (model.to_single_token(text) for text in (" on", " the", " in"))
    exact = logits[0].double().softmax(-1)
    found = METRICS["probability_diff"](logits, pairs, logits)
    torch.testing.assert_close(found[0].double(), exact[on] + exact[the] - exact[inside], rtol=1e-5, atol=1e-6)
    sides = torch.tensor([[the, on, -1, on, the]]), torch.tensor([[inside, inside, inside]])  # made by hand
    wanted = ((exact[on] + exact[the]) / exact[inside]).log()
    torch.testing.assert_close(metrics.log_odds(logits, *sides)[0].double(), wanted, rtol=1e-5, atol=1e-6)


def test_log_odds_of_single_tokens_are_the_logit_difference(model: Model) -> None:
    pairs = TokenPairs.of(model, ["the cat sat"], ["the dog sat"], right=[" on"], wrong=[" in"])
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(METRICS["log_odds"](logits, pairs, logits), METRICS["logit_diff"](logits, pairs, logits))


# ------------------------------------------------------------------------------------------------------------ pairs


def test_unaligned_pairs_are_listed_or_left_out(model: Model) -> None:
    clean = ["the cat sat on", "the dog ran", "we ran to the sea"]
    corrupted = ["the dog sat on", "the dog ran to", "they ran to the sun"]
    answers = [" mat", " mat", " zz"]
    with pytest.raises(
        BadInput, match=r"pair 1 does not align: 3 clean tokens .* against 4 .*and 1 more: 2.*drop_unaligned"
    ):
        TokenPairs.of(model, clean, corrupted, right=answers)
    pairs = TokenPairs.of(model, clean, corrupted, right=answers, spans={"who": [1, 1, 0]}, drop_unaligned=True)
    assert pairs.table(model)["clean"].tolist() == ["the cat sat on"]
    assert pairs.spans["who"].tolist() == [1]
    assert pairs.notes[0].startswith("2 of 3 pairs left out (1, 2)")
    assert pairs.notes[0] in repr(pairs)
    with pytest.raises(BadInput, match="none of the 1 pairs"):
        TokenPairs.of(model, clean[1:2], corrupted[1:2], drop_unaligned=True)


def test_a_right_answer_that_is_the_wrong_one_is_refused(model: Model) -> None:
    """Every difference of the two would be 0, and every score 0 / 0."""
    prompts = ["the cat sat", "the dog sat"]
    with pytest.raises(BadInput, match=r"right and wrong answer of pair 1 are the same, ' in' \(\d+\)"):
        TokenPairs.of(model, prompts, prompts[::-1], right=[" on", " in"], wrong=[" in", " in"])
    with pytest.raises(BadInput, match="pair 0 are the same"):  # in another order
        TokenPairs.of(model, prompts[:1], prompts[1:], right=[[" on", " in"]], wrong=[[" in", " on"]])
    kept = TokenPairs.of(model, prompts, prompts[::-1], right=[" on", " in"], wrong=[" in", " in"], drop_unaligned=True)
    assert len(kept) == 1
    assert "1 of 2 pairs left out (1)" in kept.notes[0]
    with pytest.raises(BadInput, match=r"pair 0 are the same \(token ids \[7\]\)"):  # made by hand
        TokenPairs(kept.clean, kept.corrupted, torch.tensor([7]), torch.tensor([7]))


def test_pairs_of_mixed_lengths_select_and_show_what_differs(model: Model) -> None:
    pairs = TokenPairs.of(
        model,
        ["the cat sat", "a big red house is"],
        ["the dog sat", "a small blue house is"],
        right=[[" on", " in"], [" big"]],
        wrong=[" mat", " small"],
        spans={"noun": [1, 3]},
    )
    assert pairs.right_set.tolist()[1][1] == -1  # type: ignore[union-attr]
    assert pairs.wrong is not None
    assert pairs[[0]].clean.ids.shape == (1, 3)
    assert pairs[[0]].right_set.shape == (1, 2)  # type: ignore[union-attr]
    table = pairs.table(model)
    assert table["differs"].tolist() == ["1: ' cat' → ' dog'", "1: ' big' → ' small', 2: ' red' → ' blue'"]
    assert table["tokens"].tolist() == [3, 5]
    shown = pairs.show(model)
    assert "the|[ cat]| sat" in shown
    assert "[ small]|[ blue]" in shown
    assert "noun 3' house'" in shown
    assert pairs.flipped().table(model)["clean"].tolist() == table["corrupted"].tolist()


def test_spans_and_counts_are_checked(model: Model) -> None:
    with pytest.raises(BadInput, match="span 'noun' of pair 0 is at 3"):
        TokenPairs.of(model, ["the cat sat"], ["the dog sat"], spans={"noun": [3]})
    with pytest.raises(BadInput, match="right answers: 2 for 1 pairs"):
        TokenPairs.of(model, ["the cat sat"], ["the dog sat"], right=[" on", " in"])
    with pytest.raises(BadInput, match="empty set"):
        TokenPairs.of(model, ["the cat sat"], ["the dog sat"], right=[[]])


def test_solved_keeps_the_pairs_that_the_model_gets_right(model: Model) -> None:
    texts = ["the cat sat", "we ran to the sea", "a big red house is", "it was not"]
    tokens = [model.run(text, logits="last").logits[0] for text in texts]  # type: ignore[index]
    best, worst = ([int(pick(logits)) for logits in tokens] for pick in (torch.argmax, torch.argmin))
    right = [best[0], worst[1], best[2], worst[3]]
    wrong = [worst[0], best[1], worst[2], best[3]]
    pairs = TokenPairs.of(model, texts, texts, right=right, wrong=wrong)
    for options in ({}, {"top": True}):
        kept = pairs.solved(model, batch_size=3, **options)
        assert kept.clean.rows() == [pairs.clean.rows()[i] for i in (0, 2)]
        assert "2 of 4 pairs kept" in repr(kept)
    with pytest.raises(BadInput, match="answers none of the 2"):
        pairs[[1, 3]].solved(model)


@pytest.mark.parametrize("at", [[1.7], [True], ["1"], [[1, 2]]])
def test_positions_of_spans_are_whole_numbers(model: Model, at: list[Any]) -> None:
    with pytest.raises(BadInput, match="span 'noun'"):
        TokenPairs.of(model, ["the cat sat"], ["the dog sat"], right=[" on"], wrong=[" in"], spans={"noun": at})


def test_token_at_finds_the_token_of_a_character(model: Model) -> None:
    text = "the cat sat on zz"
    assert [token_at(model, text, text.index(word)) for word in ("the", "cat", "sat", "on")] == [0, 1, 2, 3]
    with pytest.raises(BadInput, match="no token"):
        token_at(model, text, 99)


# ------------------------------------------------------------------------------------------------------------ files

CSV = """,clean,corrupted,corrupted_hard,correct_idx,incorrect_idx
7,"When Ann and Tom ran, Tom ran to","When Ann and Tom ran, Jim ran to","When Ann and Tom ran, Ann ran to",71,5
8,"Then, Tom and Jim sat. Tom sat on","Then, Tom and Jim sat. Ann sat on","Then, Tom and Jim sat. Jim sat on",72,6
"""


@pytest.fixture
def capitals(model: Model, tiny_model: Callable[..., Model]) -> Model:
    """A tiny model whose tokenizer has three names."""
    made = tiny_model("llama")
    made.tokenizer.add_tokens([" Ann", " Tom", " Jim"])  # type: ignore[union-attr]
    made.tokenizer = _Limited(made.tokenizer)  # type: ignore[assignment]
    return made


class _Limited:
    """Ids of added tokens moved into the vocabulary of the tiny model (its `<extra>` entries)."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        found = self.inner(text, **options)
        rows = found.input_ids if isinstance(text, list) else [found.input_ids]
        moved = [[100 - 1 - (t - 100) if t >= 100 else t for t in row] for row in rows]
        found["input_ids"] = moved if isinstance(text, list) else moved[0]
        return found


def test_csv_with_ids_of_another_tokenizer(capitals: Model, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(CSV)
    pairs = read_pairs(capitals, path)
    assert pairs.right.tolist() == [99, 97]  # type: ignore[union-attr]  # Ann, Jim: the names that come once
    assert pairs.wrong.tolist() == [98, 98]  # type: ignore[union-attr]
    assert "correct_idx and incorrect_idx are ids of an unknown tokenizer" in pairs.notes[0]
    rows = pairs.clean.rows()
    for name, ids in {"io": [99, 97], "s1": [98, 98], "s2": [98, 98]}.items():
        assert [row[int(at)] for row, at in zip(rows, pairs.spans[name])] == ids
    assert bool((pairs.spans["s1"] < pairs.spans["s2"]).all())
    hard = read_pairs(capitals, path, corrupted="corrupted_hard", limit=1)
    assert len(hard) == 1
    assert hard.corrupted.rows()[0][int(hard.spans["s2"][0])] == 99
    kept = read_pairs(capitals, path, answer_ids="keep")
    assert kept.right.tolist() == [71, 72]  # type: ignore[union-attr]
    with pytest.raises(UnknownName, match="did you mean 'corrupted_hard'"):
        read_pairs(capitals, path, corrupted="corruptedhard")


def test_csv_and_json_say_the_same(model: Model, tmp_path: Path) -> None:
    rows = [
        {"clean": "the cat sat", "corrupted": "the dog sat", "right": " on", "wrong": " in"},
        {"clean": "we ran to", "corrupted": "they ran to", "right": [" the", " a"], "wrong": " sea"},
    ]
    several = lambda given: given if isinstance(given, list) else [given]  # noqa: E731
    circuit = [
        {
            "clean": row["clean"],
            "corrupt": row["corrupted"],
            "answers": several(row["right"]),
            "wrong_answers": several(row["wrong"]),
        }
        for row in rows
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps({"prompts": circuit, "word_idxs": {}}))
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "d.csv").write_text(
        "clean,corrupted,right,wrong\nthe cat sat,the dog sat, on, in\nwe ran to,they ran to, the| a, sea\n"
    )
    wanted = TokenPairs.of(model, *([r[side] for r in rows] for side in ("clean", "corrupted", "right", "wrong")))
    for name in ("a.json", "b.json", "c.jsonl", "d.csv"):
        pairs = read_pairs(model, tmp_path / name)
        assert torch.equal(pairs.clean.ids, wanted.clean.ids)
        assert torch.equal(pairs.corrupted.ids, wanted.corrupted.ids)
        assert torch.equal(pairs.right_set, wanted.right_set)  # type: ignore[arg-type]
        assert torch.equal(pairs.wrong, wanted.wrong)  # type: ignore[arg-type]
        assert pairs.spans["end"].tolist() == [2, 2]
    (tmp_path / "e.json").write_text(json.dumps([["the cat sat", "the dog sat"]]))
    assert read_pairs(model, tmp_path / "e.json").right is None
    for limit in (0, -1, True):  # -1 left the last row out
        with pytest.raises(BadInput, match="limit is a whole number"):
            read_pairs(model, tmp_path / "a.json", limit=limit)
    (tmp_path / "f.json").write_text(json.dumps([rows[0] | {"right": 7}]))
    assert read_pairs(model, tmp_path / "f.json", answer_ids="keep").right.tolist() == [7]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "clean,other\nthe cat,the dog\n", "needs a column 'corrupted'; it has clean, other"),
        ("a.csv", "clean,corrupted\nthe cat,\n", "pair 0: 'corrupted' has no text"),
        ("a.csv", "clean,corrupted,right,wrong\nthe cat,the dog,, in\n", "pair 0: 'right' has no answer"),
        ("a.csv", "clean,corrupted,correct_idx,incorrect_idx\nthe cat,the dog,1,2\n", "answer cannot be found"),
        ("a.csv", "clean,corrupted\n", "has no pairs"),
        ("a.json", '[{"clean": "the cat", "corrupted": "the dog", "right": 7, "wrong": " in"}]', "is the number 7"),
        ("a.json", '[{"clean": "a", "corrupted": "the", "right": " in", "wrong": [" on", 7]}]', "is the number 7"),
        ("a.json", "[1, 2]", "pair 0: an object with clean and corrupted is needed"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", '{"clean": "x"}', "a list of pairs is needed"),
        ("a.txt", "the cat", "pairs are read from .csv"),
        ("a.json", None, "cannot read"),
    ],
)
def test_bad_files_say_what_is_wrong(model: Model, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadFile, match=message):
        read_pairs(model, tmp_path / name)


def test_unaligned_rows_of_a_file(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("clean,corrupted\nthe cat sat,the dog sat\nthe cat,the cat sat\n")
    with pytest.raises(BadInput, match="pair 1 does not align"):
        read_pairs(model, tmp_path / "a.csv")
    pairs = read_pairs(model, tmp_path / "a.csv", drop_unaligned=True)
    assert len(pairs) == 1
    assert any("1 of 2 pairs left out" in note for note in pairs.notes)
