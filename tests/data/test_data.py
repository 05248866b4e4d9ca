"""Documents, packing and prompt pairs: nothing lost, nothing reordered, nothing silent."""

import gzip
import json
import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem import data
from monosem.data import Document, PromptPairs, TokenStore, interleaved, packed, packing, shuffled, texts
from monosem.errors import BadFile, BadInput
from tiny import tiny_tokenizer

CHAT_TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# ------------------------------------------------------------------------------------------------------------ reading


def write(path, value):
    raw = value if isinstance(value, str) else "\n".join(map(json.dumps, value))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw.encode()) if path.suffix == ".gz" else raw.encode())
    return path


def test_every_kind_of_file_is_read_in_sorted_order(tmp_path):
    write(tmp_path / "b.txt", "a whole file\nof two lines")
    write(tmp_path / "a.jsonl", [{"text": "one", "id": "x"}, "two", {"text": "  "}])
    write(tmp_path / "sub" / "d.json.gz", json.dumps(["three", {"text": "four"}]))
    write(tmp_path / "sub" / "c.jsonl.gz", [{"text": "five"}])
    write(tmp_path / "README.md", "not a corpus")
    assert list(texts(tmp_path)) == [
        Document("a.jsonl#x", "one"),
        Document("a.jsonl#1", "two"),
        Document("b.txt", "a whole file\nof two lines"),
        Document("sub/c.jsonl.gz#0", "five"),
        Document("sub/d.json.gz#0", "three"),
        Document("sub/d.json.gz#1", "four"),
    ]


def test_parquet_and_named_field(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame({"body": ["one", "two"], "n": [1, 2]}).to_parquet(tmp_path / "t.parquet")
    assert [d.text for d in texts([tmp_path / "t.parquet"], field="body")] == ["one", "two"]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(BadFile, match="not a readable Parquet"):
        list(texts(tmp_path / "broken.parquet"))


def test_conversations_are_rendered_or_joined(tmp_path, chat_tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    file = write(tmp_path / "c.jsonl", [{"question": "hi", "answer": "yes"}, {"messages": turns}, {"text": "plain"}])
    rendered = "<s>user hi</s><s>assistant yes</s>"
    assert [d[1:] for d in texts(file, chat=chat_tokenizer)] == [(rendered, True), (rendered, True), ("plain", False)]
    assert [d[1:] for d in texts(file)] == [("hi\n\nyes", False), ("hi\n\nyes", False), ("plain", False)]
    with pytest.raises(BadInput, match="no chat template"):
        texts(file, chat=tiny_tokenizer())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "holds no text"),
        ("a.jsonl", '\n{"text": ', "line 2: not valid JSON"),
        ("a.json", '{"text": "x"}', "holds a JSON dict"),
        ("a.json", "[1]", "row 1: a JSON int"),
        ("a.json", "[", "not valid JSON"),
        ("a.pdf", "x", "of a kind that cannot be read"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    file = write(tmp_path / name, content)
    with pytest.raises(BadFile, match=message):
        list(texts(file))


def test_bad_bytes_and_paths(tmp_path):
    with pytest.raises(BadFile, match="does not exist"):
        texts(tmp_path / "none.txt")
    with pytest.raises(BadFile, match="holds no .txt"):
        texts(tmp_path)
    with pytest.raises(BadInput, match="no path"):
        texts([])
    whole = write(tmp_path / "a.jsonl.gz", ["some text " * 100]).read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-5], b"no gzip at all"):
        (tmp_path / "b.jsonl.gz").write_bytes(broken)
        with pytest.raises(BadFile, match="broken gzip"):
            list(texts(tmp_path / "b.jsonl.gz"))
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(BadFile, match="not UTF-8"):
        list(texts(tmp_path / "c.txt"))


def test_a_missing_field_names_those_that_there_are(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"texte": "x", "title": "y"}])
    with pytest.raises(BadInput, match="no field 'text'; its fields are 'texte', 'title'; did you mean 'texte'"):
        list(texts(file))
    with pytest.raises(BadInput, match="no field 'body'"):
        list(texts(file, field="body"))
    with pytest.raises(BadInput, match="holds a int, not a string"):
        list(texts(write(tmp_path / "b.jsonl", [{"text": 3}])))


def test_shuffled_holds_a_window_and_keeps_every_document():
    documents = [Document(str(i), "x") for i in range(100)]
    once = list(shuffled(documents, seed=1, window=10))
    assert Counter(once) == Counter(documents)
    assert once == list(shuffled(documents, seed=1, window=10)) != list(shuffled(documents, seed=2, window=10))
    assert once != documents


def test_interleaved_keeps_shares_of_characters_until_sources_end():
    rng = random.Random(0)
    sources = [[Document(f"{s}{i}", s * rng.randint(1, 60)) for i in range(300)] for s in "abc"]
    mixed = list(interleaved(sources, seed=3, weights=[2, 1, 1]))
    assert Counter(mixed) == Counter(chain(*sources))
    assert mixed == list(interleaved(sources, seed=3, weights=[2, 1, 1]))
    seen = Counter()
    for document in mixed[:400]:
        seen[document.text[0]] += len(document.text)
        assert abs(seen["a"] / 2 - seen["b"]) <= 60
        assert abs(seen["b"] - seen["c"]) <= 60
    for weights in ([1, 1], [1, 0, 1]):
        with pytest.raises(BadInput, match="positive weight"):
            list(interleaved(sources, weights=weights))


# ------------------------------------------------------------------------------------------------------------ packing

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "zebra", "<s>", "."]), max_size=12).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(WORDS, min_size=1, max_size=9), context=st.integers(2, 9), batch=st.integers(1, 4))
def test_packing_loses_no_token_and_keeps_order(model, documents, context, batch):
    tokenizer = model.tokenizer
    expected = []
    for text in documents:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        expected += [*ids, tokenizer.eos_token_id] if ids else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BATCH_DOCUMENTS", batch)
        if len(expected) < context:
            with pytest.raises(BadInput, match="too few for one window"):
                list(packed(model, documents, context))
            return
        windows = torch.cat(list(packed(model, documents, context)))
        store = TokenStore.build(model, documents, context)
    full = len(expected) // context * context
    assert windows.shape == (full // context, context)
    assert windows.flatten().tolist() == expected[:full]
    assert store.packing.dropped == len(expected) - full
    assert torch.equal(store[:], windows)


def test_special_tokens_are_parsed_in_rendered_documents_only(tiny_model):
    model = tiny_model()
    model.tokenizer.add_tokens("<|im_end|>", special_tokens=True)
    end = len(model.tokenizer) - 1
    text = "the cat<|im_end|>"
    plain, rendered = (
        TokenStore.build(model, [Document("a", text, flag)] * 2, 2)[:].flatten().tolist() for flag in (False, True)
    )
    words = model.tokenizer("the cat").input_ids
    assert rendered == [*words, end, 1] * 2
    assert end not in plain
    assert plain[: len(words)] == words


def test_separator_rule():
    tokenizer = tiny_tokenizer()
    assert data.document_separator(tokenizer) == tokenizer.eos_token_id
    tokenizer.add_tokens("<|endoftext|>", special_tokens=True)
    assert data.document_separator(tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>") == 100
    bare = tiny_tokenizer()
    bare.eos_token = None
    with pytest.raises(BadInput, match="no eos token"):
        data.document_separator(bare)


@pytest.mark.smollm2
def test_smollm2_documents_are_separated_as_in_its_pretraining(smollm2):
    assert data.document_separator(smollm2.tokenizer) == 0  # <|endoftext|>, not its eos <|im_end|>
    assert smollm2.prefix == []
    literal, turn = "Markup like <|im_end|> in a text.", smollm2.chat("Hi")
    store = TokenStore.build(smollm2, [Document("a", literal), Document("b", turn, rendered=True)], 8)
    text, _, chat = "|".join(map(str, store[:].flatten().tolist())).partition("|0|1|")
    assert smollm2.text(list(map(int, text.split("|")))) == literal
    assert "2" not in text.split("|")
    assert "2" in chat.split("|")


def test_windows_begin_with_the_tokens_that_the_tokenizer_puts_first(tiny_model):
    from tokenizers.processors import TemplateProcessing

    model = tiny_model()
    core = model.tokenizer.backend_tokenizer
    core.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    assert model.prefix == [0]
    store = TokenStore.build(model, ["the cat sat on the mat", "a dog ran"], context=4)
    joined = [*model.tokenizer("the cat sat on the mat", add_special_tokens=False).input_ids, 1]
    joined += [*model.tokenizer("a dog ran", add_special_tokens=False).input_ids, 1]
    assert store[:].tolist() == [[0, *joined[i : i + 3]] for i in range(0, len(joined) - 2, 3)]
    assert [store.document(0, 0), store.document(2, 1), store.document(2, 2)] == ["0", "0", "1"]


def test_store_on_disk_equals_store_in_memory(model, tmp_path):
    documents = [Document(f"d{i}", "the cat sat on the mat " * (1 + i % 3)) for i in range(20)]
    memory = TokenStore.build(model, documents, 8)
    disk = TokenStore.build(model, documents, 8, path=tmp_path / "store")
    again = TokenStore.open(tmp_path / "store")
    for store in (disk, again):
        assert store.fingerprint == memory.fingerprint
        assert torch.equal(store[:], memory[:])
        assert torch.equal(store[np.array([3, 0])], memory[np.array([3, 0])])
        assert store.packing == memory.packing
    for window in range(len(memory)):
        begun = [d for s, d in zip(memory.packing.starts, memory.packing.documents) if s <= window * 8]
        assert again.document(window, 0) == begun[-1]
    limited = TokenStore.build(model, documents, 8, tokens=33)
    assert torch.equal(limited[:], memory[:4])
    assert all(start < 32 for start in limited.packing.starts)
    assert TokenStore.of(memory[:]).fingerprint == memory.fingerprint != limited.fingerprint


def test_bad_stores(model, tmp_path):
    folder = tmp_path / "store"
    TokenStore.build(model, ["the cat sat on the mat"] * 5, 8, path=folder)
    (folder / "windows.bin").write_bytes((folder / "windows.bin").read_bytes()[:-1])
    with pytest.raises(BadFile, match="truncated"):
        TokenStore.open(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(BadFile, match="does not describe"):
        TokenStore.open(folder)
    with pytest.raises(BadFile, match="cannot read"):
        TokenStore.open(tmp_path / "nothing")
    for bad in (torch.zeros(3, 4), torch.zeros(4, dtype=torch.long), torch.zeros(0, 4, dtype=torch.long)):
        with pytest.raises(BadInput, match="token ids"):
            TokenStore.of(bad)
    with pytest.raises(BadInput, match="context 65"):
        TokenStore.build(model, ["the cat"], 65)
    with pytest.raises(BadInput, match="documents are not known"):
        TokenStore.of(torch.zeros(1, 4, dtype=torch.long)).document(0, 0)


# -------------------------------------------------------------------------------------------------------------- pairs


def test_pairs():
    pairs = PromptPairs(["good", "happy", "sunny", "kind"], ["bad", "sad", "grey", "mean"])
    assert list(pairs)[1] == ("happy", "sad")
    assert pairs.prompts[:2] + pairs.prompts[-2:] == ["good", "happy", "grey", "mean"]
    kept, held_out = pairs.split(0.25, seed=1)
    assert len(held_out.positive) == 1
    assert sorted([*kept, *held_out]) == sorted(pairs)
    loose = PromptPairs(["a", "b", "c", "d"], ["e", "f"], paired=False)
    assert [len(side) for part in loose.split() for side in (part.positive, part.negative)] == [2, 1, 2, 1]
    with pytest.raises(BadInput, match="not paired"):
        list(loose)
    with pytest.raises(BadInput, match="cannot hold out"):
        pairs.split(0.01)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_groups_of_pairs_are_held_out_whole(share):
    groups = ["x"] * 5 + ["y"] * 3 + ["z"] * 2
    pairs = PromptPairs([f"good {i}" for i in range(10)], [f"bad {i}" for i in range(10)], groups=groups)
    for seed in range(6):
        kept, held_out = pairs.split(share, seed=seed)
        assert not set(kept.groups) & set(held_out.groups)
        for part in (kept, held_out):
            assert [(up, groups[int(up[-1])]) for up in part.positive] == list(zip(part.positive, part.groups))
        assert sorted([*kept, *held_out]) == sorted(pairs)
    taken = pairs.take([7, 0])
    assert (list(taken), taken.groups) == ([("good 7", "bad 7"), ("good 0", "bad 0")], ("y", "x"))
    alone = PromptPairs(pairs.positive, pairs.negative, groups=["x"] * 10).split(share, seed=1)
    assert list(alone[1]) == list(PromptPairs(pairs.positive, pairs.negative).split(share, seed=1)[1])
    for wrong in (["x"] * 9, "xxxxxxxxxx"):
        with pytest.raises(BadInput, match="one name for each of the 10 pairs"):
            PromptPairs(pairs.positive, pairs.negative, groups=wrong)
    with pytest.raises(BadInput, match="paired=True"):
        PromptPairs(["a"], ["b"], paired=False, groups=["x"])


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        (["a", "b"], ["c"], "2 positive but 1 negative"),
        ([], ["c"], "no positive prompts"),
        (["a"], [], "no negative prompts"),
        (["a", " "], ["b", "c"], "positive prompt 2 of 2 is blank"),
        ("ab", ["c", "d"], "must be a list of strings"),
        (["a"], [3], "must be a list of strings"),
    ],
)
def test_bad_pairs(positive, negative, message):
    with pytest.raises(BadInput, match=message):
        PromptPairs(positive, negative)


def test_repeated_prompts_warn():
    with pytest.warns(UserWarning, match="1 positive prompts are repeated, e.g. 'a'"):
        PromptPairs(["a", "a"], ["b", "c"])
    with pytest.warns(UserWarning, match="stand on both sides, e.g. 'a'"):
        PromptPairs(["a", "b"], ["c", "a"])


def test_documents_apart_share_no_window(model):
    texts = ["one two three", "four", " ".join(["five"] * 50), "six seven"]
    store = TokenStore.build(model, texts, 16, apart=True)
    separator = store.packing.separator
    ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    prefix = len(store.packing.prefix)
    rows = []
    for one in ids:  # each document alone, filled up
        whole = [*one, separator]
        whole += [separator] * (-len(whole) % (16 - prefix))
        rows += [[*store.packing.prefix, *whole[i : i + 16 - prefix]] for i in range(0, len(whole), 16 - prefix)]
    assert store[:].tolist() == rows
    assert [store.document(row, prefix) for row in range(len(rows))][:2] == ["0", "1"]
    joined = TokenStore.build(model, texts, 16)
    assert len(joined) < len(store)
