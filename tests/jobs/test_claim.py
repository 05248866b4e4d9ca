"""A job's folder: claimed by one process, for one set of settings."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pydantic import Field

from monosem.errors import BadFile, BadInput, Mismatch
from monosem.jobs import JobConfig, claim, claimed, differences, fingerprint, module_fingerprint
from monosem.jobs.config import Seed


class Config(JobConfig):
    job: ClassVar[str] = "pie"
    not_decisive: ClassVar[frozenset[str]] = frozenset({"log_every"})

    size: int = Field(gt=0)
    apples: tuple[str, ...] = ("Elstar",)
    log_every: int = 10


def begin(folder: Path, config: Config, **options) -> None:
    with claim(folder, config, work="parts/*.txt", **options) as home:
        (home / "parts").mkdir(exist_ok=True)
        (home / "parts" / "0.txt").write_text("done")


def test_the_same_job_goes_on(tmp_path: Path) -> None:
    begin(tmp_path, Config(size=1), made_with={"weights": "ab"})
    begin(tmp_path, Config(size=1, log_every=3), made_with={"weights": "ab"})
    assert claimed(tmp_path, Config) == Config(size=1, log_every=3)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    begin(tmp_path, Config(size=1), made_with={"weights": "ab"})
    with pytest.raises(Mismatch, match=r"holds a pie with other settings \(weights: 'ab', now 'cd'; size: 1, now 2\);"):
        begin(tmp_path, Config(size=2), made_with={"weights": "cd"})
    with pytest.raises(Mismatch, match="weights: 'ab', now None"):
        begin(tmp_path, Config(size=1))
    assert claimed(tmp_path, Config).size == 1


def test_a_folder_without_work_is_free(tmp_path: Path) -> None:
    with claim(tmp_path, Config(size=1), work="parts/*.txt"):
        pass
    begin(tmp_path, Config(size=2), resume=False)
    assert claimed(tmp_path, Config).size == 2


def test_refused_or_begun_afresh_on_request(tmp_path: Path) -> None:
    begin(tmp_path, Config(size=1))
    with pytest.raises(BadInput, match="already holds a pie; resume it or choose another folder"):
        begin(tmp_path, Config(size=1), resume=False)
    with claim(tmp_path, Config(size=2), work="parts/*.txt", fresh=True) as home:
        assert list((home / "parts").iterdir()) == []


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_claim import Config, claim
        with claim({str(tmp_path)!r}, Config(size=1), work="*.txt"):
            print("claimed", flush=True)
            sys.stdin.read()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"claimed\n"
    with pytest.raises(BadInput, match="another process works on the pie in .*; wait until it ends"):
        begin(tmp_path, Config(size=1))
    child.kill()
    child.wait()
    begin(tmp_path, Config(size=1))  # a killed process holds no lock


def test_damaged_or_other_records(tmp_path: Path) -> None:
    begin(tmp_path, Config(size=1))
    record = tmp_path / "job.json"
    whole = json.loads(record.read_text())
    for text, message in (
        ("{", "not valid JSON.*delete .* to start anew"),
        ("[]", "damaged; delete .* to start anew"),
        (json.dumps(whole | {"job": "cake"}), "holds a cake, not a pie"),
    ):
        record.write_text(text)
        with pytest.raises(BadFile, match=message):
            begin(tmp_path, Config(size=1))
    record.write_text(json.dumps(whole | {"config": {"size": 0}}))
    with pytest.raises(BadFile, match="made by another version: pie: size: "):
        claimed(tmp_path, Config)
    record.unlink()
    with pytest.raises(BadFile, match="cannot read"):
        begin(tmp_path, Config(size=1))


class Cake(JobConfig):
    job: ClassVar[str] = "cake"

    seed: Seed = 0
    low_fat: bool | None = None


@pytest.mark.parametrize("fresh", [False, True])
def test_the_work_of_another_kind_of_job_stays_its_own(tmp_path: Path, fresh: bool) -> None:
    begin(tmp_path, Config(size=1))
    before = (tmp_path / "job.json").read_text()
    refused = pytest.raises(BadFile, match="holds a pie, not a cake; choose another folder")
    with refused, claim(tmp_path, Cake(), work="layers/*.txt", fresh=fresh):
        pass
    assert (tmp_path / "job.json").read_text() == before
    begin(tmp_path, Config(size=1))  # goes on


def test_a_claim_in_which_nothing_was_made_is_anybodys(tmp_path: Path) -> None:
    with claim(tmp_path, Cake(), work="layers/*.txt"):
        (tmp_path / "layers").mkdir()
    begin(tmp_path, Config(size=1))


def test_bools_are_no_numbers_and_seeds_fit_every_generator() -> None:
    assert Cake.parse({"low_fat": True}).low_fat
    with pytest.raises(BadInput, match="pie: size: true is not a value of this field"):
        Config.parse({"size": True})
    for seed in (-1, 2**32):
        with pytest.raises(BadInput, match="cake: seed: "):
            Cake.parse({"seed": seed})


def test_numbers_that_no_tensor_holds_are_refused() -> None:
    assert Config.parse({"size": 10**18}).size == 10**18
    with pytest.raises(BadInput, match=r"pie: size: 1e\+30 is beyond all numbers here; give one of at most 4.61e\+18"):
        Config.parse({"size": 10**30})


def test_what_an_earlier_version_did_not_say_is_not_compared(tmp_path: Path) -> None:
    begin(tmp_path, Config(size=1), made_with={"weights": "ab"})
    with pytest.raises(Mismatch, match="weights: 'ab', now 'cd'"):
        begin(tmp_path, Config(size=1), made_with={"weights": "cd", "text": "x"})
    begin(tmp_path, Config(size=1), made_with={"weights": "ab", "text": "x"})
    with pytest.raises(Mismatch, match="text: 'x', now 'y'"):
        begin(tmp_path, Config(size=1), made_with={"weights": "ab", "text": "y"})


def test_long_values_are_cut_in_messages() -> None:
    (told,) = differences({"latents": list(range(1000))}, {"latents": [1]})
    assert told.startswith("latents: [0, 1, 2,")
    assert len(told) < 100


def test_fingerprints_notice_kind_and_values() -> None:
    x = torch.arange(10.0)
    assert fingerprint("relu", x) == fingerprint("relu", x.bfloat16())
    assert len({fingerprint("relu", x), fingerprint("topk", x), fingerprint("relu", x + 1)}) == 3
    module = torch.nn.Linear(3, 5)
    before = module_fingerprint(module)
    with torch.no_grad():
        module.bias[2] += 1
    assert module_fingerprint(module) != before


def test_a_job_that_fails_before_it_made_anything_leaves_no_folder(tmp_path: Path) -> None:
    def fail(folder: Path, made: str | None = None) -> None:
        with claim(folder, Config(size=1), work="parts/*.txt") as home:
            (home / "parts").mkdir(exist_ok=True)
            if made:
                (home / made).write_text("")
            raise BadInput("no luck")

    (tmp_path / "mine").mkdir()
    for folder, made in (("runs/a/b", None), ("runs/kept", "notes.txt"), ("mine", None)):
        with pytest.raises(BadInput, match="no luck"):
            fail(tmp_path / folder, made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "runs"]  # the caller's own folder stays
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["kept"]
    begin(tmp_path / "runs" / "a" / "b", Config(size=2))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    """Files and folders as kill -9 inside `replacing` and `replacing_folder` leaves them."""
    begin(tmp_path, Config(size=1))
    code = f"""
        import os, pathlib, signal
        from monosem.files import replacing, replacing_folder
        home = pathlib.Path({str(tmp_path)!r})
        with replacing(home / "parts" / "1.txt") as one, replacing_folder(home / "result") as other:
            one.write_text("half")
            (other / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    old = tmp_path / ".kept.abcd1234.old" / "kept"  # killed between the two renames of replacing_folder
    old.mkdir(parents=True)
    (old / "file").write_text("whole")
    (tmp_path / ".mine.tmp").write_text("not ours")
    assert len(list(tmp_path.glob(".result.*.tmp"))) == len(list((tmp_path / "parts").glob(".1.txt.*.tmp"))) == 1
    begin(tmp_path, Config(size=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".mine.tmp", "job.json", "kept", "parts"]
    assert (tmp_path / "kept" / "file").read_text() == "whole"
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["0.txt"]
