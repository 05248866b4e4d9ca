"""What may be a prompt: every spelling of the same prompts gives the same numbers, and what is no prompt is refused."""

import warnings
from collections import UserDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import models, processors
from transformers import BatchEncoding

from monosem import edits, latents, lenses
from monosem.components import detect_head, direct_attribution
from monosem.data import PromptPairs, TokenPairs, TokenStore, as_store
from monosem.errors import BadInput, Mismatch
from monosem.lenses.corpus import prompts_of
from monosem.metrics import continuation_perplexity, next_token_loss
from monosem.models import Model, TokenBatch
from monosem.patching import sweep
from monosem.steering import compare
from tiny import model_of, tiny_hf, tiny_model, tiny_tokenizer
from tiny_dictionaries import tiny_dictionary

TEXTS = ["the cat sat on the mat", "a dog ran"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def model() -> Model:
    made = tiny_model("llama", name="tiny")
    made.tokenizer.chat_template = TEMPLATE
    return made


def alone(model: Model, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([row])).logits[0]


def continued(model: Model, row: list[int], steps: int) -> list[int]:
    """Greedy, with whole native passes."""
    new = []
    for _ in range(steps):
        new.append(int(alone(model, [*row, *new])[-1].argmax()))
    return new


def encoding(model: Model, side: str = "right", kind: str | None = "pt") -> BatchEncoding:
    return model.tokenizer(TEXTS, padding=kind is not None, padding_side=side, return_tensors=kind)


def unpadded(model: Model) -> list[list[int]]:
    return [model.tokenizer(text).input_ids for text in TEXTS]


# name -> the same two prompts
SPELLINGS = {
    "texts": lambda m: TEXTS,
    "a tuple of texts": lambda m: tuple(TEXTS),
    "a generator of texts": lambda m: (text for text in TEXTS),
    "an array of texts": lambda m: np.array(TEXTS),
    "a column of texts": lambda m: pd.Series(TEXTS),
    "lists of ids": unpadded,
    "tuples of ids": lambda m: tuple(map(tuple, unpadded(m))),
    "lists of numpy integers": lambda m: [list(np.array(row)) for row in unpadded(m)],
    "arrays": lambda m: list(map(np.array, unpadded(m))),
    "unsigned arrays": lambda m: [np.array(row, dtype=np.uint16) for row in unpadded(m)],
    "tensors": lambda m: list(map(torch.tensor, unpadded(m))),
    "tensors of one row": lambda m: [torch.tensor([row]) for row in unpadded(m)],
    "lists of tensors": lambda m: [[torch.tensor(token) for token in row] for row in unpadded(m)],
    "an encoding": encoding,
    "an encoding padded on the left": lambda m: encoding(m, "left"),
    "an encoding of arrays": lambda m: encoding(m, "left", "np"),
    "an encoding of lists": lambda m: encoding(m, kind=None),
    "a dict": lambda m: dict(encoding(m)),
    "a UserDict": lambda m: UserDict(encoding(m, "left")),
    "encodings": lambda m: [m.tokenizer(text) for text in TEXTS],
    "encodings of tensors": lambda m: [m.tokenizer(text, return_tensors="pt") for text in TEXTS],
    "a batch": lambda m: m.tokens(TEXTS),
    "a batch padded on the left": lambda m: m.tokens(TEXTS, padding="left"),
    "ids with a mask": lambda m: m.tokens(encoding(m, "left").input_ids, mask=encoding(m, "left").attention_mask),
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_the_same_prompts_gives_the_same_numbers(model, spelling):
    given = lambda: SPELLINGS[spelling](model)  # noqa: E731
    rows = unpadded(model)
    logits = [alone(model, row) for row in rows]

    run = model.run(given())
    assert run.tokens.rows() == rows
    _, cache = model.run_with_cache(given(), names_filter="resid_post.2")
    called = model(given())
    for number, expected in enumerate(logits):
        mask = run.tokens.mask[number]
        torch.testing.assert_close(run.logits[number][mask], expected, **CLOSE)
        torch.testing.assert_close(called[number][mask], expected, **CLOSE)
        seen = model.unembed(cache["resid_post", 2][number][cache.tokens.mask[number]])
        torch.testing.assert_close(seen, expected, **CLOSE)
    last = torch.stack([expected[-1] for expected in logits])
    torch.testing.assert_close(model.run(given(), logits="last").logits, last, **CLOSE)
    lens = lenses.read(model, given(), positions="last", quiet=True).top_probabilities[-1]
    seen = lens[~lens.isnan().any(-1)]
    torch.testing.assert_close(seen, last.softmax(-1).topk(seen.shape[-1]).values, **CLOSE)
    losses = [-e[:-1].log_softmax(-1)[torch.arange(len(r) - 1), r[1:]] for e, r in zip(logits, rows)]
    torch.testing.assert_close(model(given(), return_type="loss"), torch.cat(losses).mean(), **CLOSE)
    made = model.generate(given(), max_new_tokens=5, stop_at_eos=False)
    assert made.new == [continued(model, row, 5) for row in rows]
    ids = model.to_tokens(given())
    assert ids[run.tokens.mask].tolist() == [token for row in rows for token in row]


def numbers(found) -> torch.Tensor:
    """All numbers of a table, or a tensor."""
    return (
        found if isinstance(found, torch.Tensor) else torch.tensor(found.table.select_dtypes("number").to_numpy(float))
    )


# what takes prompts, besides runs, generation and the lenses that read them
CONSUMERS = {
    "gap": lambda m, x: lenses.gap(m, x(), " cat", " dog", quiet=True),
    "trajectory": lambda m, x: lenses.trajectory(m, x(), second_edits=edits.scale("z.1", 0.0), quiet=True),
    "entropy": lambda m, x: lenses.entropy_profile(m, x(), max_new_tokens=3, quiet=True),
    "languages": lambda m, x: lenses.languages(m, x(), {"a": ["cat"], "b": ["dog"]}, quiet=True),
    "patchscope": lambda m, x: lenses.patchscope(m, x(), "the cat", positions=-1, answer="token", quiet=True),
    "fitted lenses": lambda m, x: torch.tensor(prompts_of(m, x(), 2, 3, 1)),
    "attribution": lambda m, x: direct_attribution(m, x(), " cat", by="layer"),
    "detect_head": lambda m, x: detect_head(m, x()),
    "latents": lambda m, x: latents.top(m, tiny_dictionary(), x()),
    "steering": lambda m, x: compare(m, x(), edits.scale("z.1", 0.0), max_new_tokens=3),
    "pairs": lambda m, x: TokenPairs.of(m, x(), x(), [5, 6]).clean.ids,
    "loss": lambda m, x: m.loss_fn(m(x()), x(), per_token=True).sum(1),
    "str tokens": lambda m, x: torch.tensor([len(row) for row in m.to_str_tokens(x())]),
}


@pytest.mark.filterwarnings("error:.*padding token")
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_consumer_reads_prompts_alike(model, consumer):
    ask = CONSUMERS[consumer]
    expected = numbers(ask(model, lambda: TEXTS))
    for spelling in ("a generator of texts", "tensors", "an encoding", "an encoding of lists", "ids with a mask"):
        found = numbers(ask(model, lambda spelling=spelling: SPELLINGS[spelling](model)))
        torch.testing.assert_close(found, expected, **CLOSE, equal_nan=True)


@pytest.mark.parametrize(
    "one",
    [
        lambda m: TEXTS[0],
        lambda m: m.tokenizer(TEXTS[0]).input_ids,
        lambda m: np.array(m.tokenizer(TEXTS[0]).input_ids),
        lambda m: torch.tensor(m.tokenizer(TEXTS[0]).input_ids, dtype=torch.int32),
        lambda m: m.tokenizer(TEXTS[0]),
        lambda m: m.tokenizer(TEXTS[0], return_tensors="np"),
        lambda m: {"input_ids": m.tokenizer(TEXTS[0]).input_ids, "labels": None},
    ],
)
def test_one_prompt(model, one):
    row = model.tokenizer(TEXTS[0]).input_ids
    torch.testing.assert_close(model.run(one(model)).logits, alone(model, row)[None], **CLOSE)


def test_the_columns_of_a_masked_table_stay(model):
    """What was captured lines up with what the user's own tensor holds."""
    for side in ("left", "right"):
        given = encoding(model, side)
        assert torch.equal(model.tokens(given).ids, given.input_ids)
        assert torch.equal(model.tokens(given).mask, given.attention_mask.bool())
        right, left = model.tokens(given, padding="right"), model.tokens(given, padding="left")
        assert right.mask[1].tolist() == [True] * 3 + [False] * 3
        assert left.mask[1].tolist() == [False] * 3 + [True] * 3
        assert right.rows() == left.rows() == unpadded(model)


# ---------------------------------------------------------------------- chats
CHATS = [
    [{"role": "user", "content": "the cat sat"}],
    [{"role": "user", "content": "a dog"}, {"role": "assistant", "content": "ran"}, {"role": "user", "content": "on"}],
]


def test_chats_go_through_the_template(model):
    expected = [
        model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in CHATS
    ]
    assert model.tokens(CHATS[0]).rows() == expected[:1]
    assert model.tokens(CHATS).rows() == expected
    assert model.tokens(CHATS[0][0]).rows() == expected[:1]
    encoded = model.tokenizer.apply_chat_template(CHATS, add_generation_prompt=True, padding=True, return_tensors="pt")
    assert model.tokens(encoded).rows() == expected
    assert model.tokens([model.chat(chat) for chat in CHATS]).rows() == expected
    bare = Model(tiny_hf("llama"), tiny_tokenizer(), "bare")
    with pytest.raises(BadInput, match="no chat template"):
        bare.run(CHATS[0])


def test_an_assistants_turn_at_the_end_is_continued(model):
    chat = [*CHATS[0], {"role": "assistant", "content": "on the"}]
    assert model.chat(chat).endswith("assistant: on the")
    assert model.text(model.tokens(chat).rows()[0]).endswith("on the")


def with_prefix(prefix: str, template: str) -> Model:
    """A tokenizer that puts these special tokens before every text."""
    tokenizer = tiny_tokenizer()
    parts = [(token, tokenizer.convert_tokens_to_ids(token)) for token in prefix.split()]
    assert all(number != tokenizer.unk_token_id for _, number in parts)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{prefix} $A", pair=f"{prefix} $A $B", special_tokens=parts
    )
    tokenizer.chat_template = template
    return Model(tiny_hf("llama"), tokenizer, "prefixed")


@pytest.mark.parametrize(
    ("prefix", "template"),
    [
        ("<s>", "<s>{{ messages[0]['content'] }}"),
        ("<s>", "\n<s>{{ messages[0]['content'] }}"),
        ("<pad> <s>", "<pad><s>{{ messages[0]['content'] }}"),  # as GLM-4's [gMASK] <sop>
        ("<pad> <s>", " <pad><s>{{ messages[0]['content'] }}"),
    ],
)
def test_the_prefix_of_a_rendered_chat_is_not_doubled(prefix, template):
    model = with_prefix(prefix, template)
    expected = model.tokenizer.apply_chat_template(CHATS[0], return_dict=False)
    assert model.tokens(model.chat(CHATS[0])).rows() == model.tokens(CHATS[0]).rows() == [expected]
    start = [model.tokenizer.convert_tokens_to_ids(token) for token in prefix.split()]
    bare = model.tokenizer("the cat", add_special_tokens=False).input_ids
    assert model.prefix == start
    assert model.tokens("the cat").rows() == [start + bare] == model.to_tokens("the cat", prepend_bos=True).tolist()
    assert model.to_tokens("the cat", prepend_bos=False).tolist() == [bare]
    assert model.tokens("the <s> cat").rows() == [model.tokenizer("the <s> cat").input_ids]
    for empty in ("", [""]):
        with pytest.raises(BadInput, match="prompt 0 is empty"):
            model.run(empty)


# ---------------------------------------------------------------------- masks and padding
def test_padding_in_bare_ids_is_warned_of(model):
    for side, edge in (("right", "end"), ("left", "begin")):
        ids = encoding(model, side).input_ids
        for given in (ids, ids.numpy(), ids.tolist()):
            with pytest.warns(UserWarning, match=f"{edge} with 0 to 3 times the padding token '<pad>'"):
                model.run(given)
        for call in (model.generate, model.run_with_cache, model.to_tokens, model):
            with pytest.warns(UserWarning, match="padding token"):
                call(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.run([[5, 2, 6, 2], [7, 8, 9, 2]])  # equal runs
        model.run([[5, 2, 2], [7, 8]])  # nobody pads rows of different length
        model.run(encoding(model))
        model.run(["the <pad>", "a dog"])


def test_masks(model):
    ids, mask = encoding(model, "left").input_ids, encoding(model, "left").attention_mask
    for given in (mask, mask.bool(), mask.numpy(), mask.tolist(), mask.float()):
        torch.testing.assert_close(
            model.run(model.tokens(ids, mask=given), logits="last").logits,
            torch.stack([alone(model, row)[-1] for row in unpadded(model)]),
            **CLOSE,
        )
    assert model.tokens([5, 6, 7], mask=[0, 1, 1]).rows() == [[6, 7]]
    beyond = ids.masked_fill(mask == 0, 5000)  # a padding token that the embedding has no row for
    assert model.tokens(beyond, mask=mask).rows() == unpadded(model)
    model.run({"input_ids": ids.masked_fill(mask == 0, -100), "attention_mask": mask})
    for bad, message in [
        ((ids, mask[:, 1:]), "places in the mask"),
        ((ids, mask * 2), "1 at real tokens"),
        ((ids, mask * 0), "prompt 0 is empty"),
        ((TEXTS, mask), "token ids"),
        ((model.tokens(TEXTS), mask), "token ids"),
        ((encoding(model), mask), "token ids"),
    ]:
        with pytest.raises(BadInput, match=message):
            model.tokens(bad[0], mask=bad[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_generation_from_a_batch_padded_on_the_right(family):
    model = tiny_model(family)
    rows = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
    pairs = TokenPairs.of(model, rows, rows)
    holes = TokenBatch(torch.tensor([[5, 9, 6, 7]]), torch.tensor([[True, False, True, True]]))
    expected = [continued(model, row, 6) for row in rows]
    for given in (model.tokens(rows), TokenBatch.of(rows, 99), pairs.clean):
        assert model.generate(given, max_new_tokens=6, stop_at_eos=False).new == expected
    assert model.generate(holes, max_new_tokens=3, stop_at_eos=False).new == [continued(model, [5, 6, 7], 3)]


def test_going_on_from_a_generation(model):
    rows = [[5, 6, 7, 8, 9, 10, 11], [12, 13]]
    first = model.generate(rows, max_new_tokens=4, stop_at_eos=False)
    for given in (first, first.ids):
        second = model.generate(given, max_new_tokens=3, stop_at_eos=False)
        assert [a + b for a, b in zip(first.new, second.new)] == [continued(model, row, 7) for row in rows]
    torch.testing.assert_close(model.run(first).logits, model.run(first.ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_last_token_at_the_edge_of_the_context(family):
    """The last chosen token is never read, so the prompt may fill the context."""
    model = tiny_model(family)
    row = torch.randint(3, 100, (64,), generator=torch.Generator().manual_seed(1)).tolist()
    assert model.generate([row, row[:3]], max_new_tokens=1, stop_at_eos=False).new[0] == continued(model, row, 1)
    native = model.hf.generate(
        torch.tensor([row[:60]]), attention_mask=torch.ones(1, 60), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    made = model.generate([row[:60]], max_new_tokens=5, stop_at_eos=False)
    assert made.new == native[:, 60:].tolist() == [continued(model, row[:60], 5)]
    losses = -alone(model, made.ids.rows()[0][:-1])[59:].log_softmax(-1)[torch.arange(5), made.new[0]]
    found = continuation_perplexity(model, made.ids, made.prompt.lengths)
    torch.testing.assert_close(found, losses.mean().exp()[None], rtol=1e-4, atol=0)
    for options in ({"max_new_tokens": 6}, {"max_new_tokens": 5, "capture": "resid_post.1"}):
        with pytest.raises(BadInput, match="context of 64"):
            model.generate([row[:60]], **options)


# ---------------------------------------------------------------------- what is no prompt
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1.0, 2.0], "float"),
        ([[1.0, 2.0]], "integers"),
        (np.zeros((1, 3)), "integers"),
        (torch.zeros(1, 3), "integers"),
        (torch.ones(1, 3, dtype=torch.bool), "integers"),
        ([True, False], "bool"),
        ([[5, True]], "integers"),
        ([["the cat"], ["a dog"]], "a list of texts inside a list"),
        ([[["the"]]], "not a row"),
        (["the cat", [5, 6]], "prompt 0 is a text and prompt 1 is token ids"),
        ([5, "the cat"], "prompt 0 is a token id and prompt 1 is a text"),
        ([[5, 6], {"role": "user", "content": "a"}], "one kind"),
        ([[5, "a"]], "not a row"),
        ([5, -1], "token id -1 is outside"),
        ([[5, 100]], "token id 100 is outside"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"\[batch, pos\]"),
        ([[[5, 6], [7, 8]]], "not a row"),
        (7, r"not .7. \(int\)"),
        (None, "not None"),
        (b"the cat", "bytes"),
        ({"text": "the cat"}, "keys text"),
        ({"content": "the cat"}, "keys content"),
        (pd.DataFrame({"text": ["the cat"]}), "keys text"),
        ({"input_ids": [[5, 6]], "pixel_values": [1]}, "pixel_values"),
        ({"input_ids": [[5, 6]], "position_ids": [[3, 4]]}, "position_ids"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, "places in the mask"),
        ([[{"role": "user", "content": "a"}, "b"]], "conversation 0"),
        ([{"role": "user", "contents": "a"}], "role and content"),
        ([[{"role": "user", "content": "a"}], [{"role": "user"}]], "role and content"),
        ([], "no prompts given"),
        (torch.zeros(0, 3, dtype=torch.long), "no prompts given"),
        ("", "prompt 0 is empty"),
        (["a", ""], "prompt 1 is empty"),
        ([[5], []], "prompt 1 is empty"),
        (torch.zeros(2, 0, dtype=torch.long), "prompt 0 is empty"),
        ({"input_ids": [[5, 6], [7, 8]], "attention_mask": [[1, 1], [0, 0]]}, "prompt 1 is empty"),
        (TokenBatch(torch.tensor([[5]]), torch.tensor([[False]])), "prompt 0 is empty"),
    ],
)
def test_what_is_no_prompt_is_refused_in_words(model, bad, message):
    for call in (model.run, model.generate, model.run_with_cache, model.to_tokens, lambda x: lenses.read(model, x)):
        if bad is None and call == model.generate:
            continue
        with pytest.raises(BadInput, match=message):
            call(bad)


def test_a_blank_is_a_prompt(model):
    row = model.tokenizer(" ").input_ids
    torch.testing.assert_close(model.run(" ").logits, alone(model, row)[None], **CLOSE)


def test_data_reads_a_tokenizers_output_and_not_its_keys(model):
    given = model.tokenizer(["the cat sat", "a dog ran"], return_tensors="pt")
    pairs = TokenPairs.of(model, given, given)
    assert pairs.clean.rows() == given.input_ids.tolist()
    assert as_store(model, given, 3).windows.tolist() == given.input_ids.tolist()
    with pytest.raises(BadInput, match="padding"):
        as_store(model, encoding(model), 3)
    with pytest.raises(BadInput, match="list of strings"):
        PromptPairs(given, given)


# ---------------------------------------------------------------------- starts, and ids without text
def test_generation_from_nothing_starts_with_the_bos_that_the_model_names():
    def start(bos: int | None, generation: int | None, config: int | None) -> int:
        hf = tiny_hf("llama", bos_token_id=config, eos_token_id=1)
        hf.generation_config.bos_token_id = generation
        tokenizer = tiny_tokenizer()
        tokenizer.bos_token = None if bos is None else tokenizer.convert_ids_to_tokens(bos)
        model = Model(hf, tokenizer, "starts")
        assert model.generate(max_new_tokens=1).prompt.ids.tolist() == [[model.bos]]
        return model.bos

    assert start(0, 7, 8) == 0
    assert start(None, 7, 8) == 7
    assert start(None, None, 8) == 8
    assert start(None, None, None) == 1  # the tokenizer's EOS


def test_ids_beyond_the_tokenizer_are_shown_as_numbers():
    model = Model(tiny_hf("llama", vocab_size=128), tiny_tokenizer(), "wide")
    assert model.str_token(120) == "<120>" == model.text([120])
    cat = model.tokenizer("the cat").input_ids
    assert model.text([*cat, 120, 121, *cat]) == "the cat<120><121>the cat"
    assert model.to_string([*cat, 120]) == "the cat<120>"
    assert model.run([[*cat, 120]]).str_tokens == [[" the", " cat", "<120>"]]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_between_tokens_is_no_token(family):
    """What is kept by position, and losses, against the rows without padding."""
    model = model_of(family)
    ids, mask = torch.tensor([[5, 9, 6, 7, 9, 8], [5, 9, 6, 7, 10, 8]]), torch.ones(2, 6)
    mask[0, [1, 4]] = 0
    parted, rows = model.tokens(ids, mask=mask), [[5, 6, 7, 8], [5, 9, 6, 7, 10, 8]]
    for positions in ([1, -1], slice(-3, None), "last"):
        kept = [model.run(x, capture="resid_post.1", positions=positions)["resid_post.1"] for x in (parted, rows)]
        torch.testing.assert_close(*kept, rtol=1e-4, atol=1e-5)
    assert float(model(parted, return_type="loss")) == pytest.approx(float(model(rows, return_type="loss")), rel=1e-5)
    losses = [next_token_loss(model.run(x).logits, model.tokens(x)).nanmean() for x in (parted, rows)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_prompts_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    one = tiny_model("llama", name="one")
    twin, other = tiny_model("llama", seed=1, name="twin"), tiny_model("llama", name="other")
    twin.tokenizer, words = tiny_tokenizer(), tiny_tokenizer()
    vocab = words.get_vocab()
    turned = [*range(3), *(id + 1 if id < 99 else 3 for id in range(3, 100))]  # every word has the next one's id
    words.backend_tokenizer.model = models.WordLevel({word: turned[id] for word, id in vocab.items()}, "<pad>")
    other.tokenizer = words
    pairs = TokenPairs.of(one, TEXTS[:1], ["the dog sat on the mat"], right=[" on"], wrong=[" in"])
    made = one.generate("the cat", max_new_tokens=2)
    batch, left = one.tokens(TEXTS), one.tokens(TEXTS, padding="left")
    for given in (batch, batch[[1]], left, pairs.clean, pairs[[0]].clean, made):
        twin.run(given)
        with pytest.raises(Mismatch, match="tokenised for another model"):
            other.run(given)
    with pytest.raises(Mismatch, match="tokenised for another model"):
        sweep(other, pairs, quiet=True)
    with pytest.raises(Mismatch, match="tokenised for another model"):
        pairs.solved(other)
    folder = tmp_path / "store"
    stored = TokenStore.build(one, ["the cat sat on the mat"] * 9, 8, path=folder)
    for store in (stored, TokenStore.open(folder), TokenStore.build(one, ["the cat sat on the mat"] * 9, 8)):
        assert as_store(twin, store, 8) is store
        with pytest.raises(Mismatch, match="these windows were tokenised for another model"):
            as_store(other, store, 8)
    assert other.run(one.tokens(TEXTS[:1]).ids).logits is not None  # bare ids say nothing of where they are from
