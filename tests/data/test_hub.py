"""Data sets as `datasets` reads them: from a folder, which it streams as it streams the hub."""

import json

import pytest
from typer.testing import CliRunner

from monosem.cli import app
from monosem.data import texts
from monosem.errors import BadFile

datasets = pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "set"
    (home / "spanish").mkdir(parents=True)
    rows = {"train": ["one", "two"], "test": ["three"]}
    for split, some in rows.items():
        (home / f"{split}.jsonl").write_text(
            "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(some))
        )
    return home


def test_rows_of_a_split_are_documents(folder):
    read = list(texts(f"hf:{folder}", quiet=True))
    assert [one.text for one in read] == ["one", "two"]
    assert [one.text for one in texts(f"hf:{folder}@test", quiet=True)] == ["three"]
    assert next(texts([f"hf:{folder}"], field="text", quiet=True)).text == "one"


@pytest.mark.parametrize("name", ["{folder}@other", "{folder}:nothing", "/nowhere/at/all", ":@", "a:b:c"])
def test_what_is_not_there_is_one_line(folder, name):
    with pytest.raises(BadFile, match="data set") as caught:
        list(texts("hf:" + name.format(folder=folder), quiet=True))
    assert "\n" not in str(caught.value)


def test_a_broken_file_says_how_far_it_was_read(folder):
    (folder / "train.jsonl").write_text(json.dumps({"text": "whole"}) + "\n{broken")
    with pytest.raises(BadFile, match="data set"):
        list(texts(f"hf:{folder}", quiet=True))


@pytest.mark.smollm2
def test_the_command_line_takes_data_sets(folder):
    done = CliRunner().invoke(app, ["evaluate", "smollm2/resid_post.15", "--text", f"hf:{folder}@other"])
    assert done.exit_code == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: the data set hf:")]
