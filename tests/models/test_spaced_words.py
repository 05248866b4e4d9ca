"""Every helper that reads words, with a tokenizer that puts a space before every text (Llama 2, Mistral 7B): alone
" Paris" is two tokens for it, a space and " Paris", and "Paris" is the token that shows as " Paris"."""

import json
from pathlib import Path

import pytest
import torch

from monosem import components, data, lenses, patching
from monosem.data import TokenPairs, words
from monosem.errors import BadInput
from monosem.lenses.copying.heads import copying_pairs
from monosem.models import Model
from tiny import spaced_tokenizer, tiny_hf, tiny_model

LETTERS = [chr(c) for c in (*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1))]
PLAIN = [*LETTERS, *"0123456789.,'=?-", "chien", "chi", "Rome", "Max"]
SPACED = sorted(
    {
        word
        for text in (*words.IOI, *words.GREATER_THAN, *words.CAPITAL_FORMS, *words.PRONOUN_FORMS)
        for word in text.replace(",", " ").replace(".", " ").replace("'", " ").split()
        if "{" not in word
    }
    | {*words.NAMES, *words.PLACES, *words.OBJECTS, *words.EVENTS, *words.CAPITALS, *words.CAPITALS.values()}
    | {"she", "he", "Max", "chien", "dog", "cat", "the", "capital"}
)
PIECES = [*PLAIN, "\u2581", *(f"\u2581{word}" for word in SPACED), "\n"]


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = spaced_tokenizer(PIECES)
    return Model(tiny_hf("llama", vocab_size=len(tokenizer)), tokenizer, "spaced")


def ident(model: Model, piece: str) -> int:
    return model.tokenizer.convert_tokens_to_ids(piece.replace(" ", "\u2581"))


def test_every_token_is_found_by_what_is_shown_of_it(model):
    assert model.bare(" Max") == [ident(model, " "), ident(model, " Max")]  # what the tokenizer makes of it alone
    for piece in PIECES:
        token = ident(model, piece)
        shown = model.str_token(token)
        assert shown == piece.replace("\u2581", " ")
        assert model.shown_as(shown) == token
        if shown.startswith(" ") and shown.strip():
            assert model.to_single_token(shown) == token
    assert model.shown_as("nowhere") is None
    assert model.to_single_token("Max") == ident(model, " Max")  # alone, as the tokenizer reads it
    with pytest.raises(BadInput, match="is 5 tokens"):
        model.to_single_token(" zzz")


def test_sets_targets_and_directions(model):
    ids = [ident(model, " she"), ident(model, " he")]
    assert lenses.gap(model, ["the cat"], [" she"], [" he"]).a == ids[:1]
    by_text, by_id = (lenses.logit(model, "the capital", targets=one) for one in (" she", ids[0]))
    torch.testing.assert_close(by_text.ranks[" she"], by_id.ranks[" she"])
    torch.testing.assert_close(model.tokens_to_residual_directions([" she", " he"]), model.hf.lm_head.weight[ids])
    by_text, by_id = (components.direct_attribution(model, "the dog", *pair) for pair in ([" she", " he"], ids))
    torch.testing.assert_close(by_text.total, by_id.total)
    assert model.get_token_position(" cat", "the dog cat") == 2


@pytest.mark.parametrize("task", ["ioi", "capitals", "pronouns"])
def test_tasks_have_answers_with_their_space_and_spans_on_the_words(model, task):
    pairs = data.TASKS[task](model, n=6)
    for row in range(len(pairs)):
        ids = pairs.clean.rows()[row]
        shown = [model.str_token(i) for i in ids]
        text = model.text(ids)
        assert "".join(shown).strip() == text
        right, wrong = (model.str_token(int(side[row])) for side in (pairs.right, pairs.wrong))
        assert right[0] == wrong[0] == " "
        assert right[1:] in SPACED
        for name, at in pairs.spans.items():
            word = shown[int(at[row])]
            if name in ("io", "s1", "s2", "country", "name"):
                assert word[1:] in {*words.NAMES, *words.CAPITALS}
        if task == "ioi":
            assert shown[int(pairs.spans["io"][row])] == right
            assert shown[int(pairs.spans["s1"][row])] == shown[int(pairs.spans["s2"][row])] == wrong


def test_years_are_digits(model):
    pairs = data.greater_than(model, n=4)
    assert pairs.right_set is not None
    for row in range(len(pairs)):
        start = model.str_token(pairs.clean.rows()[row][int(pairs.spans["start"][row])])
        above = {model.str_token(i) for i in pairs.right_set[row].tolist() if i >= 0}
        assert above == {str(digit) for digit in range(int(start) + 1, 10)}


def test_pairs_and_joint_answers_go_on_after_the_prompt(model):
    prompts = ["the capital", "the dog"]
    assert TokenPairs.of(model, prompts, prompts, [" Max", " cat"]).right.tolist() == [
        ident(model, " Max"),
        ident(model, " cat"),
    ]
    joint = TokenPairs.of(model, prompts, prompts, [" Max Paris", " zz"], joint=True).right_tokens.tolist()
    assert joint[0][:2] == [ident(model, " Max"), ident(model, " Paris")]
    assert joint[1] == [ident(model, piece) for piece in (" ", "z", "z")][: len(joint[1])]
    for prompt, answer, row in zip(prompts, [" Max Paris", " zz"], joint):
        whole = model.tokens(prompt + answer).rows()[0]
        assert whole == model.tokens(prompt).rows()[0] + [token for token in row if token >= 0]


def test_a_subject_is_found_among_the_tokens(model):
    found = patching.trace(model, "the capital Paris dog", "Paris", " Max", samples=1, quiet=True)
    assert found.answers == (" Max",)
    assert found.subject.tolist() == [[False, False, True, False]]


def test_words_that_are_copied_have_no_space_of_their_own(model):
    pairs = copying_pairs(model, "concept", words=["Max Paris", "cat dog"], n=4, length=9)
    first = {row[-1] for row in pairs.clean.rows()}
    assert first == {ident(model, " Max"), ident(model, " cat")}
    assert set(pairs.right.tolist()) == {ident(model, " Paris"), ident(model, " dog")}


def test_the_beginnings_of_a_word_with_and_without_its_space(model):
    found = {model.str_token(token) for token in lenses.first_tokens(model, "chien")}
    assert found == {" chien", "chien", "chi"}


def test_a_patchscope_finds_another_models_tokens_by_what_they_show(model):
    usual = tiny_model("llama", name="usual")  # the same words, with other ids
    target = lenses.TargetPrompt("the capital", model=model)
    found = lenses.patchscope(usual, "the dog cat", target, answer="token", quiet=True)
    shown = [[model.str_token(int(i)) for i in row] for row in found.answers]
    assert shown == [[" the", " dog", " cat"]]


def test_the_command_line_takes_what_it_shows(model, tmp_path: Path):
    from typer.testing import CliRunner

    from monosem.cli import app

    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    asked = ["lens", "logit", str(tmp_path), "the capital", "--target", " Paris", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    table = lenses.logit(model, "the capital", targets=ident(model, " Paris")).table
    rows = json.loads(done.stdout)
    assert len(rows) == len(table)
    column = next(name for name in rows[0] if "rank" in name)
    expected = table[next(name for name in table if "rank" in name)]
    assert expected.notna().any()
    assert [row[column] for row in rows] == [None if value != value else value for value in expected]
