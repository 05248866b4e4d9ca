"""Which tokens selectors choose, against lists made by eye, in padded batches and chats."""

import pytest

from monosem.directions import Last, Mean, Offset, Regex, TemplateSuffix
from monosem.directions.positions import selector
from monosem.errors import BadInput, UnknownName
from monosem.models import Model
from tiny import tiny_hf, tiny_tokenizer
from tiny_latents import MODEL

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant{% endif %}"
)


def chat_model():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Model(tiny_hf("llama"), tokenizer, "chatty")


def chosen(how, prompts=("the cat sat on the mat", "a dog"), model=MODEL, padding="right"):
    tokens = model.tokens(list(prompts), padding=padding)
    mask = how.mask(model, tokens)
    assert not bool((mask & ~tokens.mask).any())
    return [[model.str_token(int(i)) for i in ids[row]] for ids, row in zip(tokens.ids, mask)]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_tokens_by_their_index(padding):
    assert chosen(Last(), padding=padding) == [[" mat"], [" dog"]]
    assert chosen(Offset(-2), padding=padding) == [[" the"], [" a"]]
    assert chosen(Offset(0) | Last(), padding=padding) == [[" the", " mat"], [" a", " dog"]]
    assert chosen(~Last(), padding=padding) == [[" the", " cat", " sat", " on", " the"], [" a"]]
    assert chosen(Mean() & ~Offset(0), padding=padding)[1] == [" dog"]
    with pytest.raises(BadInput, match="2 tokens"):
        chosen(Offset(2))


@pytest.mark.parametrize("padding", ["right", "left"])
def test_tokens_by_an_expression(padding):
    assert chosen(Regex("cat sat|do"), padding=padding) == [[" cat", " sat"], [" dog"]]
    assert chosen(Regex("the"), padding=padding) == [[" the", " the"], []]
    with pytest.raises(BadInput, match="no regular expression"):
        Regex("(")


def test_tokens_of_a_template():
    model = chat_model()
    prompts = [model.chat("cat"), model.chat("the dog sat")]
    suffix = TemplateSuffix().suffix(model)
    assert model.text(suffix, special=True).replace(" ", "") == "</s><s>assistant"
    for row in chosen(TemplateSuffix(), prompts, model):
        assert len(row) == len(suffix)
    each = TemplateSuffix().each(model)
    assert [str(one) for one in each] == [f"template:{-back}" for back in range(len(suffix), 0, -1)]
    assert chosen(each[-1], prompts, model) == chosen(Last(), prompts, model)
    with pytest.raises(BadInput, match=r"model\.chat"):
        chosen(TemplateSuffix(), ["the cat"], model)
    user = chosen(Mean("user"), prompts, model)
    assert "".join(user[1]).replace(" ", "").endswith("thedogsat")


def test_words_for_selectors_are_read_back():
    for text in ("last", "mean", "mean:user", "template", "template:-2", "regex:a|b", "-3", "4"):
        assert str(selector(text)) == text
    assert selector(-1) == Last()
    assert selector("-1") == Last()
    for bad in ("first one", "mean:", "template:x", True):
        with pytest.raises(UnknownName, match="no position"):
            selector(bad)
