"""Hostile command lines, drawn by hypothesis: any word in any place ends in one line of ours, and leaves nothing."""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner, Result

from monosem.cli import app

QUICK = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
COMMANDS: Any = get_command(app).commands  # type: ignore[attr-defined]
WORDS = [
    *("", " ", "\n", ",", ":", "[", "{}", "x", "é" * 300, "a/" * 3000, "\ud800", "a\udcffb", "a\x00b", "None", "true"),
    *("nan", "inf", "-inf", "-1", "0", "1", "1.5", "1e308", "1e30", str(10**30), "0x10", "-5:3", "0:0", "-99"),
    *(".", "..", "/dev/null", "/proc/x/y", "~nobody", "missing/x.html", "x.html", "x.json", "text.jsonl/x.html"),
    *("pipe", "pipe.yaml", "pipe.jsonl", "empty.txt", "empty.yaml", "bin.txt", "bin.yaml", "cut.jsonl", "sae", "tiny"),
    *("k=v", "lr=nan", "seed=!!python/object:x", f"x={'[' * 3000}", "model=2024-01-01", "windows=0", "layers=9"),
    *("z.0.99", "resid_post.99", "logits", "spans", "end,x", "q.0", "mlp_in.99"),
]
PAIRS = [{"clean": "the cat is a", "corrupted": "the dog is a", "right": " cat", "wrong": " dog"}] * 2
TRAIN = "train --model tiny --site resid_post.1 --text text.jsonl --width 48 -k 4 --context 32 --batch-tokens 256"
LENS = "lens train --model tiny --text text.jsonl --out OUT -q"
OTHER = f"{LENS} --set windows=2 --set length=24"
LINES = {
    "trace": ["patch", "trace", "tiny", "the cat sat on the mat", *["--subject", "cat", "--samples", "1", "-q"]],
    "paths": ["patch", "paths", "tiny", "--pairs", "pairs.json", "-q"],
    "localise": ["patch", "localise", "tiny", "--pairs", "pairs.json", "-q", "--out", "OUT"],
    "sweep": ["patch", "sweep", "tiny", "--pairs", "pairs.json", "-q"],
    "train": f"{TRAIN} --buffer-tokens 1024 --tokens 512 --out OUT --quiet".split(),
    "lens": f"{LENS} --rank 2 --steps 1 --batch-tokens 64 --context 16".split(),
    "jacobian": f"{OTHER} --kind jacobian --set layers=[1] --set probes=2 --set skip_first=2".split(),
    "future": f"{OTHER} --kind future --set layers=[1] --set offsets=[0,1]".split(),
    "head": f"{OTHER} --kind head --set prompts=2 --set heads=3".split(),
    "soft-prompt": f"{OTHER} --kind soft-prompt --set layer=1 --set steps=1".split(),
    "study": [
        "study",
        "study.yaml",
        "--out",
        "OUT",
        "-q",
    ],  # whose model is not there, so that it is quick
}


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, with files that are none."""
    shutil.copytree(home, tmp_path / "home")
    here = tmp_path / "home"
    monkeypatch.chdir(here)
    for name in ("pipe", "pipe.yaml", "pipe.jsonl"):
        os.mkfifo(name)
    for name in ("empty.txt", "empty.yaml"):
        Path(name).touch()
    for name in ("bin.txt", "bin.yaml"):
        Path(name).write_bytes(bytes(range(256)))
    Path("cut.jsonl").write_bytes(Path("text.jsonl").read_bytes()[:700])
    Path("pairs.json").write_text(json.dumps(PAIRS))
    Path("study.yaml").write_text(Path("concept.yaml").read_text().replace(f"{home}/tiny", "./none"))
    return here


def places(line: list[str]) -> list[Callable[[str], list[str]]]:
    """Each way to put a word into a line: instead of an argument or of an option's value, and as a further option."""
    command = COMMANDS[line[0]]
    start = 1
    while hasattr(command, "commands"):
        command, start = command.commands[line[start]], start + 1
    options = [one for one in command.params if one.param_type_name == "option" and not one.is_flag]
    valued = [name for one in options for name in one.opts]

    def at(number: int) -> Callable[[str], list[str]]:
        return lambda word: [*line[:number], word, *line[number + 1 :]]

    def more(name: str) -> Callable[[str], list[str]]:
        return lambda word: [*line, name, word]

    inside = [at(number) for number in range(start, len(line)) if not line[number].startswith("-")]
    others = [name for name in valued if name not in line or name == "--set"]
    return inside + [more(name) for name in others]


def lying(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def judged(line: list[str], done: Result, new: set[Path]) -> None:
    """The rule: an answer, or one line and nothing left, but for a training that diverged and says so."""
    assert done.exit_code in (0, 2), (line, done.stderr)
    assert "Traceback" not in done.output, line
    if done.exit_code == 2:
        told = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
        assert len(told) == 1, (line, done.stderr)
        assert done.stderr.splitlines()[-1] == told[0], (line, done.stderr)
        assert not new or told[0].startswith("error: training "), (line, told, new)


@pytest.mark.parametrize("name", LINES)
def test_any_word_in_any_place(name: str, folder: Path) -> None:
    line = LINES[name]
    before = lying(folder)

    @QUICK
    @given(st.sampled_from(places(line)), st.sampled_from(WORDS))
    def check(put: Callable[[str], list[str]], word: str) -> None:
        words = put(word)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = CliRunner().invoke(app, words, prog_name="monosem")
        new = lying(folder) - before
        for path in sorted(new, reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        judged(words, done, new)

    check()


def test_held_out_text_is_read_before_the_training(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    (tmp_path / "bin.txt").write_bytes(bytes(range(256)))
    for held_out in ("./nothing.txt", str(tmp_path / "bin.txt"), str(home / "sae")):
        done = run(f"{' '.join(LINES['lens']).replace('OUT', str(tmp_path / 'x'))} --held-out {held_out}")
        assert done.exit_code == 2, done.output
        assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_looked_through(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(folder: Path, pattern: str) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "rglob", closed)
    done = run("evaluate sae --text .")
    assert (done.exit_code, "cannot look through the folder .: Permission denied" in done.stderr) == (2, True)


def test_a_report_where_no_head_is_left_that_could_stand_in(folder: Path) -> None:
    """All attention branches are in what was found, so that no head is measured."""
    done = CliRunner().invoke(app, [*LINES["localise"], "--head-threshold", "1"], prog_name="monosem")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "backup heads: none" in done.stdout
    assert (folder / "OUT" / "report.html").exists()


def test_a_folder_whose_name_is_somebodys_home(folder: Path) -> None:
    """pandas takes `~root/x` for the home of root; here it is a folder of that name, as it was given."""
    line = ["sweep", "sae", "--latents", "0:2", "--max-new-tokens", "2", "--out", "~root", "-q"]
    for _ in range(2):
        done = CliRunner().invoke(app, line, prog_name="monosem")
        assert (done.exit_code, done.stderr) == (0, "")
    assert (folder / "~root" / "sweep.parquet").stat().st_size > 1000
