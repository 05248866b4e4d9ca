"""Files that others wrote: read whole as plain values, or refused in one line; writing leaves nothing half-written."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from monosem.errors import BadFile, BadInput, MonosemError
from monosem.files import check_writable, remove_leftovers, replacing, replacing_folder, result_path, write_text
from monosem.jobs import claim
from monosem.reading import (
    existing,
    parse_json,
    parse_yaml,
    read_json,
    read_object,
    read_safetensors,
    read_text,
    read_torch,
    read_yaml,
    regular_file,
)
from monosem.steering.sweep_result import SweepConfig

READERS = [read_text, read_json, read_object, read_yaml, read_safetensors, read_torch]


# ---------------------------------------------------------------------------------------------------------- which file
@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_refused_at_once(read: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer for ever
    for path, says in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "folder"),
        (tmp_path / "pipe", "a pipe or a device"),
        ("/dev/zero", "a pipe or a device"),
        (tmp_path / ("a" * 5000), "too long"),
        (f"{tmp_path}/a\0b", "null byte"),
    ):
        with pytest.raises(BadFile, match=says) as error:
            read(path)
        assert len(str(error.value)) < 400


def test_names_that_no_path_can_have(tmp_path: Path) -> None:
    assert existing(tmp_path) == tmp_path
    assert existing(tmp_path / "none") is None
    assert existing("~") == Path.home()
    for name in ("a" * 5000, "~nobody-of-this-name/sae"):
        with pytest.raises(BadInput, match="cannot be a path here"):
            existing(name)


# --------------------------------------------------------------------------------------------------------------- JSON
def test_json_is_what_python_reads() -> None:
    for value in (None, 1, "a", [1, [2]], {"a": {"b": [None, True, 0.5]}}):
        assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text", ["", "{", "nan", "9" * 5000, "[" * 10**5 + "]" * 10**5, '{"a":' * 200 + "1" + "}" * 200]
)
def test_json_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadFile, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[]", "null", '"a"', "3", "[{}]"])
def test_json_that_is_no_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadFile, match="expected an object"):
        read_object(tmp_path / "a.json")


# --------------------------------------------------------------------------------------------------------------- YAML
def test_yaml_is_what_the_package_reads() -> None:
    for value in (None, 1, -0.5, "a", [1, [2]], {"a": {"b": [None, True, "yes", "12:30", "2024-01-01"]}}):
        assert parse_yaml(yaml.safe_dump(value)) == value
    assert parse_yaml("base: &b {x: 1}\nmore:\n  <<: *b\n  y: 2") == {"base": {"x": 1}, "more": {"x": 1, "y": 2}}


def test_dates_are_texts() -> None:
    for text in ("2024-01-01", "2001-12-14t21:59:43.10-05:00", "2024-13-45"):
        assert parse_yaml(text) == text


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "\t- a", "a: b: c", "%bad", "\x00", "? [a]\n: b", "{[1]: 2}"),
        *('!!int "x"', '!!int ""', "!!float x", "!!bool x", "!!timestamp x", "!!timestamp 2024-01-01", "!!binary x"),
        *("!!set {a}", "!!omap [a: 1]", "!!python/object/apply:os.system [id]", "!mine 3", "!!python/name:os.system"),
        *("&a [*a]", "a: &a {b: *a}", LAUGHS, "[" * 5000 + "]" * 5000, "[" * 150 + "]" * 150, "- " * 5000),
        *("9" * 5000, "<<: 3", "*nobody", "a: 1\n---\nb: 2"),
    ],
)
def test_yaml_that_is_more_than_plain_values(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BadFile, match=r"a\.yaml is not valid YAML"):
        read_yaml(tmp_path / "a.yaml")


def test_names_inside_yaml_may_not_make_it_deep() -> None:
    chain = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 300))
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        parse_yaml(chain)


# ------------------------------------------------------------------------------------------------------------- tensors
class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/was-run"),))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\x03\x04", b"\x80\x02.", b"\xff" * 50, b"(lp0\n.", b"{}"])
def test_bytes_that_are_no_tensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    for read in (read_torch, read_safetensors):
        with pytest.raises(BadFile, match="a "):
            read(tmp_path / "a")


@pytest.mark.parametrize("value", [Hostile(), [torch.zeros(2)], torch.zeros(2), 3, None])
def test_torch_files_of_other_things(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(BadFile):
        read_torch(tmp_path / "a.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "b.pt")
    assert torch.equal(read_torch(tmp_path / "b.pt")["a"], torch.ones(2))


# ------------------------------------------------------------------------------------------------------------- writing
def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_places_that_cannot_be_written_to_are_found_without_making_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("file/a.csv", "a" * 300 + ".csv", "new/" + "a" * 300 + ".csv", "."):
        with pytest.raises(BadInput, match="cannot write"):
            check_writable(tmp_path / path)
    assert check_writable(tmp_path / "new" / "deep" / "a.csv") == tmp_path / "new" / "deep" / "a.csv"
    assert result_path(tmp_path / "new" / "a.csv").name == "a.csv"
    assert files(tmp_path) == {"file"}


def test_long_names_can_be_written(tmp_path: Path) -> None:
    for name in ("a" * 255, "é" * 127):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
    with pytest.raises(MonosemError, match="cannot write"):
        write_text(tmp_path / ("a" * 256), "x")
    assert len(files(tmp_path)) == 2


def test_half_of_a_pair_of_surrogates_is_no_reason_to_lose_a_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "a\ud800b")
    assert (tmp_path / "a").read_text() == "a?b"


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    names = [".a.txt.abcdefgh.tmp", ".a.txt.ABCDEFGH.tmp", ".b.txt.abcdefgh.tmp", ".a.txt.abcdefg_.old"]
    old, fresh, other, folder = (tmp_path / name for name in names)
    for path in (old, fresh, other):
        path.write_text("")
    folder.mkdir()
    for path in (old, other, folder):
        os.utime(path, (time.time() - 90000, time.time() - 90000))
    write_text(tmp_path / "a.txt", "x")  # another process may be writing the fresh one
    assert files(tmp_path) == {"a.txt", fresh.name, other.name}
    remove_leftovers(tmp_path)  # where nobody else writes
    assert files(tmp_path) == {"a.txt"}


def test_a_folder_is_replaced_only_by_its_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: str | Path) -> None:
        with replacing_folder(path) as folder:
            (folder / "a").write_text("new")

    write(tmp_path / "x")
    write(tmp_path / "x")
    assert (tmp_path / "x" / "a").read_text() == "new"
    (tmp_path / "x" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for path, says in ((tmp_path / "x", "holds other files"), (tmp_path / "file", "is a file")):
        with pytest.raises(BadInput, match=says):
            write(path)
    monkeypatch.chdir(tmp_path / "x")
    for path in (".", "..", tmp_path, "/"):
        with pytest.raises(BadInput, match="the current folder"):
            write(path)
    assert files(tmp_path) == {"x", "x/a", "x/thesis.tex", "file"}


WRITERS = {
    "text": "files.write_text('a', 'x' * 10**6)",
    "torch": """
with files.replacing('a') as path:
    torch.save({'a': torch.ones(10**6)}, path)""",
    "open torch": """
with files.replacing('a') as path, open(path, 'wb') as file:
    torch.save({'a': torch.ones(10**6)}, file)""",
    "safetensors": """
with files.replacing('a') as path:
    save_file({'a': torch.ones(10**6)}, path)""",
    "parquet": """
with files.replacing('a') as path:
    pd.DataFrame({'a': list(map(str, range(10**6)))}).to_parquet(path)""",
    "sqlite": """
with files.replacing('a') as path, sqlite3.connect(path) as db:
    db.execute('create table t (x)'); db.executemany('insert into t values (?)', [('x' * 1000,)] * 1000)""",
}


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The system lets this process write 100 kB a file, which each library meets as it meets a full disk."""
    code = f"""
import resource, sqlite3, torch, pandas as pd
from safetensors.torch import save_file
from monosem import files
from monosem.errors import BadFile
pd.DataFrame({{'a': ['x']}}).to_parquet('b'); import os; os.unlink('b')
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for name, code in {WRITERS!r}.items():
    try:
        exec(code)
    except BadFile as error:
        print(name, 'cannot write a: ' in str(error), 'free some space' in str(error), os.listdir())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} True True []" for name in WRITERS]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    with replacing(tmp_path / "a") as path:
        path.write_text("x")
    assert regular_file(tmp_path / "a").read_text() == "x"


@pytest.mark.parametrize("name", ["a" * 5000, "\udcff"])
def test_folders_that_cannot_be_are_refused(name: str, tmp_path: Path) -> None:
    config = SweepConfig(model="m", dtype="float32", dictionary="d", latents=[1], values=[1.0])
    with pytest.raises(BadInput, match="cannot write into"), claim(tmp_path / name, config, work="*.txt"):
        pass
    assert files(tmp_path) == set()
