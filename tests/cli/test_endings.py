"""How commands end: one line for whatever went wrong, quiet pipes, plain warnings, nothing that steers a terminal."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors.torch import load_file, save_file
from typer.main import get_command
from typer.testing import CliRunner, Result

from monosem.cli import app
from monosem.cli.application import NEGATIVE, UsageError, leaves, resumable, taken
from monosem.cli.studying import activation
from monosem.progress import Meter
from monosem.terminal import printable

PROCESS = [sys.executable, "-c", "from monosem.cli import main; main()"]
ESCAPES = "\x1b[31m\x9b1m\x07\r\u202eevil\u2066\x7f"  # colours, bell, return, text turned round


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    return fail


# ---------------------------------------------------------------------------------------------------------- one line
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ZeroDivisionError("a\nbug"), 1, "error: ZeroDivisionError: a bug (a fault in monosem; --debug shows where"),
        (KeyError("name"), 1, "error: KeyError: 'name' (a fault"),
        (AssertionError(), 1, "error: AssertionError (a fault"),
        (RecursionError("too deep"), 1, "error: RecursionError: too deep"),
        (MemoryError(), 2, "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "error: out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 2, "No space left on device: '/x'; free some space"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_whatever_is_raised_is_one_line(
    error: BaseException, code: int, says: str, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monosem.models.load_model", failing(error))
    done = run("verify tiny")
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1)
    assert says in done.stderr
    for line in ("--debug verify tiny", "verify tiny --debug"):
        again = run(line)
        assert again.exit_code == code
        assert again.stderr.startswith("Traceback")
        assert again.stderr.splitlines()[-1] == done.stderr.rstrip()
    assert "--debug" in run("--help").stdout


def test_debug_shows_where_an_error_of_ours_comes_from(run: Callable[..., Result]) -> None:
    plain, traced = run("verify ./nothing"), run("verify ./nothing --debug")
    assert (plain.exit_code, traced.exit_code) == (2, 2)
    assert "load.py" in traced.stderr
    assert traced.stderr.endswith(plain.stderr)


def test_a_flag_after_two_dashes_is_a_text() -> None:
    words = ["steer", "--debug", "--", "--debug"]
    assert taken(words, "--debug")
    assert words == ["steer", "--", "--debug"]
    assert not taken(words, "--debug")


# ----------------------------------------------------------------------------------------------------------- pipes
@pytest.mark.parametrize(
    ("line", "both", "code"),
    [("list concepts", True, 141), ("--help", False, 141), ("steer nothing 1 2 x", True, 141), ("--wrong", False, 2)],
)
def test_readers_that_go_away_are_no_error(line: str, both: bool, code: int) -> None:
    """Of standard output, or of errors too: then a message of a mistake has no reader either."""
    reading, writing = os.pipe()
    os.close(reading)
    errors = writing if both else subprocess.PIPE
    done = subprocess.run([*PROCESS, *line.split()], text=True, stdout=writing, stderr=errors)
    os.close(writing)
    assert done.returncode == code
    assert "Traceback" not in (done.stderr or "")
    assert "Exception ignored" not in (done.stderr or "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_does_not_fit_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROCESS, "list", "concepts"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_terminal_without_the_letters(home: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    line = [*PROCESS, "latents", "top", "sae", "the cat \u2500 \U0001f600", "-q"]
    done = subprocess.run(line, env=environment, cwd=home, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"the cat \u2500 \U0001f600" in done.stdout


# ---------------------------------------------------------------------------------------------------------- warnings
def test_warnings_are_plain_lines(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    rows = [*(home / "text.jsonl").read_text().splitlines(), '{"text": null}']
    (tmp_path / "holes.jsonl").write_text("\n".join(rows))
    done = run(f"evaluate sae --text {tmp_path}/holes.jsonl --tokens 999999 --context 32 --quiet")
    assert done.exit_code == 0, done.output
    where = f"{tmp_path}/holes.jsonl, line 101"
    assert done.stderr == f"warning: {tmp_path}/holes.jsonl: 1 of 101 rows skipped; {where}: 'text' is null\n"
    with warnings.catch_warnings(record=True) as caught:  # the library's own way stays
        warnings.simplefilter("always")
        warnings.warn("still caught", stacklevel=1)
    assert [str(one.message) for one in caught] == ["still caught"]


# -------------------------------------------------------------------------------------------------- negative numbers
def test_negative_values_need_no_dashes_before(run: Callable[..., Result]) -> None:
    found = [
        json.loads(run(line, *more).stdout)["prompts"]
        for line, more in (
            ("steer sae 3 -20 --json --max-new-tokens 2", ["the cat"]),
            ("steer --json --max-new-tokens 2 sae 3 -2e1", ["the cat"]),
            ("steer --json --max-new-tokens 2 -- sae 3 -20", ["the cat"]),
        )
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][0]["kl"] > 0
    assert "sae 3 -inf" not in (done := run("steer sae 3 -inf", "the cat")).stderr
    assert "finite" in done.stderr
    assert "-x" in run("steer sae 3 -x", "the cat").stderr


@pytest.mark.parametrize("word", ["-5", "-0.5", "-.5", "-5.", "-1e3", "-1E-3", "-inf", "-NaN"])
def test_words_that_are_negative_numbers(word: str) -> None:
    assert NEGATIVE.fullmatch(word)
    assert float(word) <= 0 or "n" in word.lower()


@pytest.mark.parametrize("word", ["5", "-k", "-", "--5", "-q", "-5k", "-e3", "-1:2"])
def test_words_that_are_not(word: str) -> None:
    assert not NEGATIVE.fullmatch(word)


# ------------------------------------------------------------------------------------------------------ the terminal
def steers(text: str) -> list[str]:
    """Characters that a terminal obeys instead of showing, found by another rule: Unicode's own categories."""
    import unicodedata

    kinds = {"RLE", "LRE", "RLO", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"}
    return [
        one
        for one in text
        if (unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t") or unicodedata.bidirectional(one) in kinds
    ]


def test_every_character_that_steers_is_shown_by_one_that_does_not() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(everything)
    assert len(shown) == len(everything)
    assert steers(shown) == []
    changed = {one for one, other in zip(everything, shown, strict=True) if one != other}
    assert changed == set(steers(everything))
    assert printable("a\x1b[31m b\n") == "a␛[31m b\n"


def test_prompts_and_files_do_not_steer_the_terminal(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    evil = f"the {ESCAPES} cat"
    (tmp_path / "happy.txt").write_text("\n".join([f"the {ESCAPES} is happy"] * 4))
    (tmp_path / "broken.yaml").write_text(f"{ESCAPES}: [")
    pairs = [{"clean": evil, "corrupted": evil, "right": ESCAPES, "wrong": "x"}]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    config = json.loads((home / "sae" / "cfg.json").read_text())
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config | {"architecture": ESCAPES}))
    (tmp_path / "sae" / "sae_weights.safetensors").write_bytes(b"")
    lines: list[tuple[str, list[str]]] = [
        ("steer sae 3 20 --max-new-tokens 2", [evil]),
        ("steer sae 3 20 --max-new-tokens 2 --json", [evil]),
        ("latents top sae -k 2", [evil]),
        ("latents top sae -k 2 --json", [evil]),
        ("lens logit tiny", [evil]),
        ("lens logit tiny --json", [evil]),
        ("components direct tiny --token", [ESCAPES, evil]),
        (f"latents search sae --positive {tmp_path}/happy.txt --negative sad.txt", []),
        (f"study {tmp_path}/broken.yaml", []),
        (f"steer {tmp_path}/sae 3 20 x", []),
        (f"patch sweep tiny --pairs {tmp_path}/pairs.json", []),
        ("steer", [ESCAPES, "3", "20", "x"]),
        ("verify", [ESCAPES]),
        ("verify", [f"--{ESCAPES}"]),
        (ESCAPES, []),
        ("train --model tiny --set", [f"{ESCAPES}=1", "--out", "x"]),
    ]
    for line, more in lines:
        done = CliRunner().invoke(app, [*line.split(" "), *more], prog_name="monosem", color=True)
        assert steers(done.stdout) == [], line
        assert steers(done.stderr.replace("\r", "")) == [], line  # bars of other packages begin lines anew
        assert done.exit_code in (0, 2), (line, done.stderr)


def test_json_says_the_same_text(run: Callable[..., Result]) -> None:
    evil = f"the {ESCAPES} cat"
    assert json.loads(run("steer sae 3 20 --max-new-tokens 2 --json", evil).stdout)["prompts"][0]["prompt"] == evil


def test_names_in_progress_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    with Meter("sweep a[/b]\x1b[2J", total=2) as meter:
        meter.advance(1, note="[/x]")
    shown = capsys.readouterr().err
    assert "a[/b]␛[2J" in shown
    assert "\x1b[2J" not in shown


# --------------------------------------------------------------------------------------------------- texts and numbers
def test_half_a_character_is_refused_wherever_a_word_is_read(run: Callable[..., Result]) -> None:
    half = "\udcff"  # what Python makes of a byte that is not UTF-8, on a command line
    for line, more in (
        ("steer sae 3 20", [half]),
        ("lens logit tiny --target", [half, "the cat"]),
        ("lens languages tiny --words", [f"English={half}", "--words", "French=le", "the cat"]),
        ("components direct tiny --token", [half, "the cat"]),
        ("patch trace tiny --subject cat --answer", [half, "the cat sat"]),
    ):
        done = run(line, *more)
        assert (done.exit_code, "half a character" in done.stderr) == (2, True), done.stderr


def test_numbers_that_nothing_can_count_are_refused(run: Callable[..., Result]) -> None:
    huge = str(10**30)
    for line in (
        f"components heads tiny --rows {huge}",
        f"latents show sae 3 --examples {huge}",
        f"steer sae {huge} 1",
    ):
        done = run(line, "the cat") if line.startswith("steer") else run(line)
        assert (done.exit_code, "no count here is above" in done.stderr) == (2, True), done.stderr


def test_no_active_latent_is_an_answer(run: Callable[..., Result], home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "sae", tmp_path / "silent")
    file = tmp_path / "silent" / "sae_weights.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"b_enc": tensors["b_enc"] - 1e6}, file)
    shown, listed = (run(f"latents top {tmp_path}/silent -q {how}", "the cat") for how in ("", "--json"))
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "last token" in shown.stdout
    assert json.loads(listed.stdout) == []


def test_pipes_are_refused_instead_of_waited_for(run: Callable[..., Result], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    for line in (
        f"latents search sae --positive {pipe} --negative sad.txt",
        f"evaluate sae --text {pipe}",
        f"study {pipe}",
        f"train {pipe} --out {tmp_path}/x",
    ):
        done = run(line)
        assert (done.exit_code, "a pipe or a device" in done.stderr) == (2, True), (line, done.stderr)


# ---------------------------------------------------------------------------------------------------------- empty words
PROGRAM: Any = get_command(app)


def command_at(path: Sequence[str]) -> Any:
    command = PROGRAM
    for name in path:
        command = command.commands[name]
    return command


def options_with_a_value() -> list[tuple[str, str]]:
    """(command, option) of every option that takes a value."""
    found = []
    for path in leaves(PROGRAM):
        options = [one for one in command_at(path).params if one.param_type_name == "option" and not one.is_flag]
        found += [(" ".join(path), name) for one in options for name in one.opts]
    return found


def test_an_empty_word_is_refused_for_every_option(run: Callable[..., Result]) -> None:
    every = options_with_a_value()
    assert {("train", "--out"), ("train", "--start"), ("study", "--out"), ("latents search", "--index")} <= set(every)
    for line, name in every:
        for words in ([name, ""], [f"{name}="] if name.startswith("--") else [name, ""]):
            with pytest.raises(UsageError, match="is empty: give a value"):
                command_at(line.split()).make_context(line, list(words))
    assert "or leave it out" in run("train --start", "").stderr
    done = run("train --out", "")
    assert (done.exit_code, done.stderr) == (
        2,
        "error: --out is empty: give a value (see monosem train --help)\n",
    )


def test_an_empty_argument_is_refused_and_the_current_folder_is_a_name(run: Callable[..., Result]) -> None:
    for line, name in (("train", "CONFIG"), ("study", "CONCEPT"), ("latents top", "DICTIONARY"), ("verify", "MODEL")):
        done = run(line, "")
        assert (done.exit_code, f"{name}" in done.stderr, "is empty" in done.stderr) == (2, True, True), done.stderr
    assert "is empty" not in run("study concept.yaml --model ./nothing --out .").stderr


# --------------------------------------------------------------------------------------------------------------- Ctrl-C
@pytest.mark.parametrize("delay", [0.0, 0.2, 0.5, 0.9, 1.4])
def test_ctrl_c_while_the_program_starts(delay: float, home: Path, tmp_path: Path) -> None:
    """The delays lie in the imports of typer, numpy, torch and transformers, or after them, as the machine is fast."""
    begin = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    begin += "from monosem.__main__ import answer_interrupts, main; answer_interrupts()\n"
    begin += "try: print(flush=True); main()\n"
    begin += "except KeyboardInterrupt as early:\n"  # on a busy machine, between the two
    begin += "    import sys, traceback; inside = '__main__.py' in str(traceback.extract_tb(early.__traceback__))\n"
    begin += "    sys.exit('in main' if inside else 99)"
    line = "train --model tiny --site resid_post.1 --text text.jsonl --width 48 -k 4 --context 32 --batch-tokens 256"
    words = [sys.executable, "-c", begin, *line.split(), "--tokens", "9999999", "--quiet", "--out", str(tmp_path / "x")]
    for wait in (delay, delay + 0.1, delay + 0.3, delay + 1.0):  # until the signal comes in the program
        process = subprocess.Popen(words, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
        if process.returncode != 99:
            break
    assert process.returncode == 130, told
    assert told == "interrupted\n" or "\nto go on where it stopped: monosem " in told
    assert "Traceback" not in told


NATIVE = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass
except BaseException:
    os.abort()  # what C++ that calls Python does with an exception
"""


def test_nothing_is_raised_into_what_is_imported(tmp_path: Path) -> None:
    (tmp_path / "native.py").write_text(NATIVE)
    (tmp_path / "outer.py").write_text("import native")
    begin = "import os, signal; signal.signal(signal.SIGINT, signal.{}); from monosem.terminal import answer_interrupts"
    for handler, code, rest, says in (
        ("default_int_handler", 130, "import outer", "interrupted\n"),
        ("SIG_IGN", 0, "import outer", ""),
        ("default_int_handler", 7, INTERRUPT, ""),
    ):
        words = [sys.executable, "-c", f"{begin.format(handler)}; answer_interrupts()\n{rest}"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, says)


INTERRUPT = """
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass
except KeyboardInterrupt:
    raise SystemExit(7)
"""


def test_ctrl_c_while_a_line_is_parsed_is_said(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monosem.cli.application.Application.parse_args", failing(KeyboardInterrupt()))
    done = run("list")
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupted_job_says_what_is_kept(begun: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "run"
    if begun:
        target.mkdir()
    with pytest.raises(typer.Exit) as ended, resumable(target):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    told = f"what is done is kept in {target}" if begun else "nothing had been done yet"
    assert capsys.readouterr().err.startswith(f"interrupted; {told}\n")


def test_the_demo_says_how_the_shell_finds_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make demo` leaves the command in `.venv`, which no shell looks into by itself."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert activation() == f"\n  source {tmp_path / 'bin' / 'activate'}"
    (tmp_path / "bin" / "monosem").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert activation() == ""
