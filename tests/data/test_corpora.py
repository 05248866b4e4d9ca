"""Rows of the data sets that people have: no turn is lost, one bad row stops nothing, and both are said."""

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from monosem.cli import app
from monosem.cli.latents import prompt_lines
from monosem.data import SkippedRows, TokenStore, document_separator, shuffled, texts
from monosem.errors import BadFile, BadInput, MonosemError
from tiny import tiny_hf, tiny_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
USER, MODEL, SYSTEM = (
    {"role": role, "content": text} for role, text in [("user", "U"), ("assistant", "A"), ("system", "S")]
)
PARTS = [{"type": "text", "text": "U"}, {"type": "text", "text": "more"}]


@pytest.fixture
def chat() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def read(path: Path, **options: Any) -> list[str]:
    return [document.text for document in texts(path, **options)]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "U", "input": "more", "output": "A"}, [("user", "U\n\nmore"), ("assistant", "A")]),
        ({"instruction": "U", "input": "", "output": "A"}, [("user", "U"), ("assistant", "A")]),
        ({"instruction": "U", "input": None, "output": "A"}, [("user", "U"), ("assistant", "A")]),
        ({"context": "more", "question": "U", "answer": "A"}, [("user", "U\n\nmore"), ("assistant", "A")]),
        ({"instruction": "U", "context": "more", "response": "A"}, [("user", "U\n\nmore"), ("assistant", "A")]),
        ({"prompt": "U", "response": "A", "system": "S"}, [("system", "S"), ("user", "U"), ("assistant", "A")]),
        ({"prompt": "U", "response": "A", "system": ""}, [("user", "U"), ("assistant", "A")]),
        ({"input": "U", "output": "A"}, [("user", "U"), ("assistant", "A")]),
        (
            {"system": "S", "conversations": [{"from": "human", "value": "U"}, {"from": "gpt", "value": "A"}]},
            [("system", "S"), ("user", "U"), ("assistant", "A")],
        ),
        ({"system": "S", "messages": [SYSTEM, USER]}, [("system", "S"), ("user", "U")]),
        ({"prompt": [SYSTEM, USER], "completion": [MODEL]}, [("system", "S"), ("user", "U"), ("assistant", "A")]),
        ({"prompt": [USER], "chosen": [MODEL], "rejected": [USER]}, [("user", "U"), ("assistant", "A")]),
        ({"chosen": [USER, MODEL], "rejected": [USER, USER]}, [("user", "U"), ("assistant", "A")]),
        ({"messages": [{"role": "user", "content": PARTS}, MODEL]}, [("user", "U\nmore"), ("assistant", "A")]),
        ({"messages": [USER, MODEL], "text": None, "prompt": "other"}, [("user", "U"), ("assistant", "A")]),
    ],
)
def test_no_turn_of_a_conversation_is_lost(tmp_path: Path, chat: Any, row: Any, turns: list[tuple[str, str]]) -> None:
    file = write(tmp_path / "a.jsonl", row)
    assert read(file, chat=chat) == ["".join(f"[{role}] {content}\n" for role, content in turns)]
    assert read(file) == ["\n\n".join(content for _, content in turns)]


def test_calls_of_tools_are_kept(tmp_path: Path, chat: Any) -> None:
    chat.chat_template = (
        "{% for m in messages %}{{ m.content }}{% for t in m.tool_calls %}<{{ t.f }}>{% endfor %}{% endfor %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"f": "look"}]}
    file = write(tmp_path / "a.jsonl", {"messages": [USER, call]})
    assert read(file, chat=chat) == ["U<look>"]
    assert read(file) == ['U\n\n[{"f": "look"}]']


def test_a_named_field_holds_turns_or_text(tmp_path: Path, chat: Any) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "no", "talk": [USER, MODEL]}, {"talk": "plain"})
    assert read(file, field="talk", chat=chat) == ["[user] U\n[assistant] A\n", "plain"]


def test_columns_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": 1, "text": None, "instruction": "U", "input": "", "output": "A", "source": "web"}
    file = write(tmp_path / "a.jsonl", row, row, {"text": "T"})
    read(file)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 2)[2] for line in said] == [
        "texts from instruction, input, output; not used: id, source",
        "texts from text",
    ]
    read(file, quiet=True)
    assert capsys.readouterr().err == ""


BAD: dict[str, tuple[Any, str]] = {
    "null": ("null", "null"),
    "null text": ({"text": None}, "'text' is null"),
    "null answer": ({"instruction": "U", "output": None}, "'output' is null"),
    "null turn": ({"messages": [{"role": "user", "content": None}]}, "'messages' has a turn without content"),
    "number": ({"text": 3}, "'text' holds a int, not a string"),
    "another column": ({"texte": "x"}, "no field 'text'; its fields are 'texte'; did you mean 'texte'"),
    "broken JSON": ('{"text": "x', "not valid JSON"),
    "deep JSON": ("[" * 100_000, "JSON that cannot be read"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "'image_url'"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_is_skipped_counted_and_named(tmp_path: Path, bad: str) -> None:
    row, why = BAD[bad]
    file = write(tmp_path / "a.jsonl", *[{"text": f"t{i}"} for i in range(5)], row, {"text": "end"}, row)
    with pytest.warns(SkippedRows, match=r"a\.jsonl: 2 of 8 rows skipped; .*a\.jsonl, line 6: .*2 such rows") as caught:
        assert read(file) == [*(f"t{i}" for i in range(5)), "end"]
    assert why in str(caught[0].message)
    with pytest.raises(MonosemError, match="no text is left") as error:
        read(write(tmp_path / "a.jsonl", row))
    assert why in str(error.value)


def test_what_a_template_refuses_is_skipped(tmp_path: Path, chat: Any) -> None:
    chat.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}ok"
    file = write(tmp_path / "a.jsonl", {"messages": [SYSTEM, USER]}, {"messages": [USER]})
    with pytest.warns(SkippedRows, match="line 1: the chat template refuses it: no system"):
        assert read(file, chat=chat) == ["ok"]


def rows(good: int, bad: int) -> list[Any]:
    return [{"text": "t"}] * good + [{"text": None}] * bad


@pytest.mark.parametrize(
    ("good", "bad", "share", "stops"),
    [
        (2, 10, 0.1, False),
        (2, 11, 0.1, True),
        (180, 20, 0.1, False),
        (180, 21, 0.1, True),
        (180, 21, 0.2, False),
        (500, 1, 0, True),
        (0, 1, 1, True),
    ],
)
def test_reading_stops_above_the_share(tmp_path: Path, good: int, bad: int, share: float, stops: bool) -> None:
    file = write(tmp_path / "a.jsonl", *rows(good, bad))
    if not stops:
        with pytest.warns(SkippedRows, match=f"{bad} of {good + bad} rows"):
            assert len(read(file, most_skipped=share)) == good
        return
    words = rf"{bad} of {good + bad} rows skipped; .*'text' is null.*" + (
        "may be skipped" if good else "no text is left"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", SkippedRows)
        with pytest.raises(BadInput, match=words):
            read(file, most_skipped=share)


def test_reading_stops_long_before_the_end_of_a_useless_file(tmp_path: Path) -> None:
    reading = texts(write(tmp_path / "a.jsonl", *rows(1, 5000)), most_skipped=0.5)
    with pytest.raises(BadInput, match="999 of 1,000 rows skipped"):
        list(reading)
    with pytest.raises(BadInput, match="from 0 to 1"):
        texts(tmp_path / "a.jsonl", most_skipped=2)


def test_who_stops_reading_is_told_of_skipped_rows(tmp_path: Path) -> None:
    reading = shuffled(texts(write(tmp_path / "a.jsonl", "null", *rows(5000, 0))))
    next(reading)
    with pytest.warns(SkippedRows, match="line 1: null"):
        reading.close()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le with mark"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "jsonl.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, encoding: str, kind: str) -> None:
    written = {"txt": "é one", "jsonl": '{"text": "é one"}', "json": '[{"text": "é one"}]'}[kind.removesuffix(".gz")]
    if " " in encoding:
        written, encoding = "\ufeff" + written, encoding.split()[0]
    raw = written.encode(encoding)
    (tmp_path / f"a.{kind}").write_bytes(gzip.compress(raw) if kind.endswith("gz") else raw)
    assert read(tmp_path / f"a.{kind}") == ["é one"]


def test_marks_inside_joined_files_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes("".join(f'\ufeff{{"text": "\ufeff{word}"}}\n' for word in "ab").encode())
    assert read(tmp_path / "a.jsonl") == ["a", "b"]


def test_a_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8-sig")
    assert prompt_lines(tmp_path / "a.txt") == ["one", "two"]


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path, tiny_model: Any) -> None:
    cut = r'{"text": "the cat \ud83d", "id": "\udc00"}'
    whole = r'{"text": "\ud83d\ude00 \ude00the dog"}'
    file = write(tmp_path / "a.jsonl", cut, whole)
    assert read(file) == ["the cat \ufffd", "\U0001f600 \ufffdthe dog"]
    model = tiny_model()
    store = TokenStore.build(model, texts(file), 4, path=tmp_path / "store")
    assert store.packing.documents[0] == "a.jsonl#\ufffd"
    direct = TokenStore.build(model, ["the cat \ud83d", "\U0001f600 \ude00the dog"], 4)
    assert direct[:].tolist() == store[:].tolist()


@pytest.mark.parametrize(
    ("eos", "others", "expected"),
    [
        ("<|eot_id|>", ["<|end_of_text|>"], "<|end_of_text|>"),  # Llama 3
        ("<|im_end|>", ["<|end_of_text|>"], "<|end_of_text|>"),  # SmolLM3
        ("<|END_OF_TURN_TOKEN|>", ["<EOS_TOKEN>"], "<EOS_TOKEN>"),  # Command-R
        ("<|im_end|>", ["<|end_of_text|>", "<|endoftext|>"], "<|endoftext|>"),
        ("<|im_end|>", [], "</s>"),  # a Mistral with chat turns
        ("<eos>", ["<|end_of_text|>"], "<eos>"),
    ],
)
def test_an_end_of_turn_separates_no_documents(eos: str, others: list[str], expected: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([eos, *others], special_tokens=True)
    tokenizer.eos_token = eos
    assert document_separator(tokenizer) == tokenizer.convert_tokens_to_ids(expected)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_hf("llama").save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    write(tmp_path / "a.jsonl", *[{"body": "the cat sat on the mat and the dog ran"}] * 40, *[{"body": None}] * 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = (
    "train --model tiny --site resid_post.1 --width 16 -k 2 --tokens 64 --context 16 --batch-tokens 32 --text a.jsonl"
)


def test_the_command_line_takes_the_field_and_the_share(home: Path) -> None:
    def run(line: str) -> Any:
        return CliRunner().invoke(app, line.split())

    missing = run(f"{TRAIN} --out a")
    assert missing.exit_code == 2
    assert "no field 'text'; its fields are 'body'" in missing.stderr
    refused = run(f"{TRAIN} --out b --field body --most-skipped 0.1 --tokens 100000")
    assert refused.exit_code == 2
    assert "12 of 52 rows skipped" in refused.stderr
    options = "--text a.jsonl --field body --most-skipped 0.5"
    done = run(f"{TRAIN} --out c --field body --most-skipped 0.5")
    assert done.exit_code == 0, done.output
    assert "12 of 52 rows skipped" in done.stderr
    assert "texts from body" in done.stderr
    config = yaml.safe_load((home / "c/config.yaml").read_text())
    assert (config["field"], config["most_skipped"]) == ("body", 0.5)
    lens = "lens train --model tiny --out d --steps 1 --context 16 --batch-tokens 16 --rank 0 --set init_tokens=64"
    for line in (
        f"evaluate c/dictionary --tokens 64 --context 16 {options}",
        f"latents index c/dictionary --tokens 64 --context 16 {options}",
        f"{lens} {options}",
    ):
        done = run(line)
        assert done.exit_code == 0, done.output


def test_a_useless_file_names_its_kind(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="not valid JSON"):
        read(write(tmp_path / "a.jsonl", "{", "{"))
