"""Capability sets: scores as a pass over each option alone gives them, files of one's own, the sets that ship."""

import re

import pytest
import torch

from monosem import edits
from monosem.data.pair_files import read_options
from monosem.errors import BadFile, BadInput, UnknownName
from monosem.models import Model
from monosem.robustness import RobustnessConfig, capabilities
from monosem.robustness.capabilities import Item, items, share_right
from tiny import tiny_hf, tiny_tokenizer
from tiny_behaviour import behaviour

FILE = (
    '{"prompt": "the cat sat on the", "right": " mat and the dog", "wrong": [" moon was", " big tree"]}\n'
    '{"prompt": "she was", "right": " sad", "wrong": " happy"}\n'
    '{"prompt": "the sun and the", "right": " sea is", "wrong": [" sea was red", " moon", " night is"]}\n'
)


@pytest.fixture(scope="module")
def model():
    return Model(tiny_hf("llama"), tiny_tokenizer(), name="tiny")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(FILE)
    return path


def slow(model, item, given=()):
    """log p of each option, from a pass over the prompt and that option alone."""
    found = []
    for option in item.options:
        ids = [*item.prompt, *option]
        log_p = model.run([ids], edits=list(given)).logits[0].double().log_softmax(-1)
        found.append(float(sum(log_p[at - 1, ids[at]] for at in range(len(item.prompt), len(ids)))))
    return torch.tensor(found)


@pytest.mark.parametrize("changed", [False, True])
def test_scores_are_those_of_each_option_alone(model, file, changed):
    """Rows that several options share, options of one token and of several, with an edit and without."""
    given = [edits.add(("resid_post.1", torch.linspace(-4, 4, model.cfg.d_model)))] if changed else []
    some = items(model, str(file), 10)
    assert [len(item.options) for item in some] == [3, 2, 4]
    wanted = [slow(model, item, given) for item in some]
    for one, other in zip(capabilities._scores(model, some, given), wanted):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    found = share_right(model, some, given)
    assert found["count"] == sum(int(one.argmax()) == 0 for one in wanted)
    assert (found["of"], found["chance"]) == (3, pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3))


def test_what_is_likeliest_is_right(model):
    """The right option is put where the model's own likeliest token is, then elsewhere."""
    prompt = list(model.tokens(["the cat sat on the"]).rows()[0])
    order = model.run([prompt], logits="last").logits[0].argsort(descending=True).tolist()
    sets = ([order[0], order[5]], [order[5], order[0]], [order[0], order[7], order[9]])
    found = [share_right(model, [Item(prompt, [[one] for one in options])])["count"] for options in sets]
    assert found == [1, 0, 1]


def test_the_same_rows_in_every_kind_of_file(tmp_path, file):
    table = tmp_path / "mine.csv"
    table.write_text(
        "prompt,answer,wrong\nthe cat sat on the, mat and the dog, moon was| big tree\nshe was, sad, happy\n"
    )
    assert read_options(table) == read_options(file)[:2] == read_options(file, limit=2)


BAD = {
    "no column": ('{"prompt": "a", "right": " b"}', "needs a column 'wrong'"),
    "no prompt": ('{"prompt": "", "right": " b", "wrong": " c"}', "'prompt' has no text"),
    "no answer": ('{"prompt": "a", "right": " b", "wrong": []}', "'wrong' has no answer"),
    "a number": ('{"prompt": "a", "right": 3, "wrong": " c"}', "write the answer as text"),
    "two right ones": ('{"prompt": "a", "right": [" b", " d"], "wrong": " c"}', "one is right here"),
    "right and wrong": ('{"prompt": "a", "right": " b", "wrong": [" c", " b"]}', "' b' is in 'right' and in 'wrong'"),
    "nothing": ("\n", "has no rows"),
    "no JSON": ("{", "not valid JSONL"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_before_anything_is_computed(case, tmp_path):
    text, words = BAD[case]
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(BadFile, match=re.escape(words)):
        RobustnessConfig.load(behaviour(), capabilities=[str(path)])


def test_an_unknown_set_is_named():
    with pytest.raises(UnknownName, match="did you mean 'gsm8k'.*or give a .jsonl"):
        RobustnessConfig.load(behaviour(), capabilities=["gsm8"])


def test_an_option_that_begins_another_one_is_refused(model, tmp_path):
    """It could never be the less likely of the two."""
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "the cat sat on the", "right": " mat and", "wrong": [" mat", " moon"]}')
    with pytest.raises(BadInput, match="row 0: ' mat' is the beginning of ' mat and'"):
        items(model, str(path), 5)


def test_rows_that_the_context_cannot_hold(model, tmp_path):
    """Of a file of one's own they are refused, of a set that ships left out."""
    path, most = tmp_path / "mine.jsonl", model.cfg.n_ctx
    for words in (" and" * most, " and" * (most - 4)):
        path.write_text(f'{{"prompt": "the cat{words}", "right": " mat sat on the", "wrong": " moon"}}')
        with pytest.raises(BadInput, match=f"row 0: .* tokens,.* tiny has a context of {most}"):
            items(model, str(path), 5)
    assert all(len(item.prompt) < model.cfg.n_ctx for item in items(model, "gsm8k", 48))


@pytest.mark.parametrize("name", capabilities.SHIPPED)
def test_the_sets_that_ship(name):
    rows = read_options(capabilities.SETS / f"{name}.jsonl")
    assert len(rows) == len({prompt for prompt, _ in rows}) == 48
    for prompt, options in rows:
        assert len(options) == len(set(options)) == 4, prompt
        assert not any(a != b and a.startswith(b) for a in options for b in options), prompt
        assert prompt == prompt.rstrip()


def test_results_of_gsm8k_are_right():
    """Where the prompt ends in a sum of numbers alone, by adding it up."""
    done = 0
    for prompt, options in read_options(capabilities.SETS / "gsm8k.jsonl"):
        step = re.search(r"(?<!\bof )(?<=[a-wyz:,] )(\$?\d[\d$ .+*/-]*) ?= ?\$?$", prompt)
        if step:
            value = eval(step[1].replace("$", ""), {})
            assert [int(re.match(r" ?(\d+)", one)[1]) == value for one in options] == [True, False, False, False], (
                prompt
            )
            done += 1
    assert done >= 15


@pytest.mark.smollm2
@pytest.mark.parametrize("name", capabilities.KNOWN)
def test_smollm2_can_tell_every_option_apart(name, smollm2):
    some = items(smollm2, name, 24)
    assert len(some) == 24
    if name == "capitals":  # there are fewer than so many
        assert 24 < len(items(smollm2, name, 3000)) < 3000
    if name == "function_vectors":
        found = share_right(smollm2, some[:8])
        assert found["count"] == sum(int(slow(smollm2, item).argmax()) == 0 for item in some[:8])
