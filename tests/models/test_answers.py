"""Answers as text are one token after their prompt, also where the tokenizer puts a space before every text."""

import pytest
import torch

from monosem import components, lenses
from monosem.data import TokenPairs
from monosem.errors import BadInput
from monosem.lenses.copying.heads import copying_pairs
from monosem.models import Model
from tiny import VOCAB, spaced_tokenizer, tiny_hf, tiny_model

PIECES = ["\u2581", "\u2581the", "\u2581capital", "\u2581is", "\u2581Paris", "\u2581Rome"]
PIECES += ["Rome", "\u2581'", "'", "s", "\u2581a", "\u2581cat", "\u2581cats", "2", "\u25812", "1", "\u25811", "+", "="]
PIECES += [f"<extra{i}>" for i in range(VOCAB - 4 - len(PIECES))]


def id_of(piece: str) -> int:
    return 4 + PIECES.index(piece.replace(" ", "\u2581"))


@pytest.fixture(scope="module")
def model() -> Model:
    """As Llama 2: a space is put before every text, so that " Paris" alone is a space and " Paris"."""
    return Model(tiny_hf("llama"), spaced_tokenizer(PIECES), "spaced")


def test_a_word_is_one_token_as_it_is_shown_and_as_it_is_read_alone(model):
    assert model.to_str_tokens("the capital is") == [" the", " capital", " is"]
    assert model.to_single_token(" Paris") == id_of(" Paris")
    assert model.to_single_token("Paris") == id_of(" Paris")
    usual = tiny_model("llama")
    with pytest.raises(BadInput, match="is 4 tokens"):
        usual.to_single_token("abcd")
    for bad in (1.5, True, ""):
        with pytest.raises(BadInput):
            usual.to_single_token(bad)


@pytest.mark.parametrize(
    ("prompt", "answer", "token"),
    [
        ("the capital is", " Paris", " Paris"),
        ("the capital is", "Paris", " Paris"),  # not in the vocabulary without its space
        ("the capital is '", "Rome", "Rome"),  # alone it would be another token, with a space
        ("1+1=", "2", "2"),
        ("the capital is ", "Paris", " Paris"),  # both together are split otherwise: as the text alone
    ],
)
def test_an_answer_is_what_follows_its_prompt(model, prompt, answer, token):
    assert model.to_single_token(answer, prompt) == id_of(token)
    ids = model.tokens(prompt).rows()[0]
    if not prompt.endswith(" "):
        assert model.tokens(prompt + (answer if token == answer else token)).rows() == [[*ids, id_of(token)]]
        assert model.to_single_token(answer, ids) == id_of(token)
    for given in ([prompt], [ids]):
        assert TokenPairs.of(model, given, given, [answer], [[answer, 5]]).right.tolist() == [id_of(token)]
    by_text = components.direct_attribution(model, [prompt], answer)
    torch.testing.assert_close(by_text.total, components.direct_attribution(model, [prompt], id_of(token)).total)


def test_a_word_that_would_be_glued_to_the_prompt_is_refused(model):
    with pytest.raises(BadInput, match="would be one word with the prompt's last; write ' Rome'"):
        model.to_single_token("Rome", "the capital is")
    with pytest.raises(BadInput, match="answer of pair 0: 'Rome' would be one word"):
        TokenPairs.of(model, ["the capital is"], ["the capital is"], ["Rome"])
    assert model.to_single_token(" Rome", "the capital is") == id_of(" Rome")


def test_each_row_has_its_own_context(model):
    prompts = ["the capital is '", "the capital is"]
    found = components.direct_attribution(model, prompts, ["Rome", " Rome"])
    expected = components.direct_attribution(model, prompts, [id_of("Rome"), id_of(" Rome")])
    torch.testing.assert_close(found.total, expected.total)


def test_patchscopes_take_answers_after_the_target_prompt(model):
    found = lenses.patchscope(model, "the cat", "the capital is", answer=" Paris", quiet=True)
    assert found.answers.unique().tolist() == [id_of(" Paris")]


def test_directions_of_several_texts(model):
    ids = [id_of(" Paris"), id_of(" Rome")]
    expected = model.hf.lm_head.weight[ids]
    torch.testing.assert_close(model.tokens_to_residual_directions(["Paris", "Rome"]), expected)


def test_entities_are_the_tokens_that_a_text_goes_on_with(model):
    """Not the space by itself that stands first when a word is tokenised alone."""
    pairs = copying_pairs(model, "concept", words=["cat Paris"], n=2, length=8)
    assert pairs.right.tolist() == [id_of(" Paris")] * 2
    assert [row[-1] for row in pairs.clean.rows()] == [id_of(" cat")] * 2
