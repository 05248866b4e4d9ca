"""`monosem robustness` in bad hands: one line with the fix, nothing half-written, and it goes on where it stopped."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from monosem.cli import app
from tiny_behaviour import behaviour, planted_model

PROCESS = [sys.executable, "-m", "monosem", "robustness"]
FEW: dict[str, Any] = {"attacks": ["prefill"], "capabilities": [], "most_prompts": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and safe prompts."""
    path = tmp_path_factory.mktemp("home")
    model, _ = planted_model()
    model.hf.save_pretrained(path / "tiny")
    model.tokenizer.save_pretrained(path / "tiny")
    (path / "safe.txt").write_text("the cat sat on the mat\nshe was happy\n")
    return path


def written(home: Path, folder: Path, **change: Any) -> str:
    """A behaviour file; None leaves a field out."""
    values = behaviour(**(FEW | {"model": str(home / "tiny"), "over_refusal": str(home / "safe.txt")} | change))
    prompts = {role: some for role, some in values["prompts"].items() if some is not None}
    path = folder / "behaviour.yaml"
    path.write_text(yaml.safe_dump({**values, "prompts": prompts}, allow_unicode=True))
    return str(path)


def told(*words: str) -> Result:
    return CliRunner().invoke(app, ["robustness", *words])


def prompts(**change: Any) -> dict[str, Any]:
    return {"prompts": behaviour()["prompts"] | change}


LONG = [*behaviour()["prompts"]["behaviour_test"], "the cat " * 60]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one side": (prompts(unrelated_test=None, unrelated_train=None), "unrelated_train: 0 prompts, and 8 different"),
    "nothing to be seen": (prompts(behaviour_test=["a", "\u200b", "c", "d"]), "behaviour_test: prompt 2 is blank"),
    "both roles": (
        prompts(unrelated_test=behaviour()["prompts"]["behaviour_test"]),
        "is in behaviour_test and in unrelated_test; a prompt has one role",
    ),
    "too long": (
        prompts(behaviour_test=LONG),
        "behaviour_test: prompt 17 with prefill and 3 new tokens has 126 tokens",
    ),
    "no template": ({"chat": True}, "has no chat template; --set chat=false"),
    "no first words": ({"prefill": ""}, "prefill: String should have at least 1 character"),
    "no safe prompts": ({"over_refusal": "nowhere.txt"}, "cannot read nowhere.txt"),
    "no judge's address": ({"judge": "model"}, "judge 'model' needs the options url and model"),
    "a control that is none": ({"control": "./nowhere"}, "no folder ./nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_before_anything_is_made(case: str, home: Path, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    done = told(written(home, tmp_path, **change), "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    last = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(last) == 1
    assert message in last[0]
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_is_no_defence(home: Path, tmp_path: Path) -> None:
    import monosem as ms

    other = shutil.copytree(ms.organisms.Organism.load("planted-refusal").adapter, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": str(home / "tiny")}
    given = [written(home, tmp_path), "--out", str(tmp_path / "out"), "--defence", str(other)]
    # layers that the model does not have; layers of another width
    for layers, said in (
        (config["layers_to_transform"], "of another base model perhaps"),
        (None, "does not fit its base"),
    ):
        (other / "adapter_config.json").write_text(json.dumps({**config, "layers_to_transform": layers}))
        done = told(*given)
        assert done.exit_code == 2
        assert said in done.stderr.splitlines()[-1]
    whole = (other / "adapter_model.safetensors").read_bytes()
    (other / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert told(*given).exit_code == 2
    assert not (tmp_path / "out").exists()


def cut(text: str) -> str:
    return text[: len(text) // 2]


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut": cut,
    "empty": lambda text: "{}",
    "a number": lambda text: "3",
    "other names": lambda text: text.replace('"shown"', '"shwn"'),
    "another number": lambda text: text.replace('"count": 16', '"count": 15'),
}


def test_a_damaged_part_is_no_measurement(home: Path, tmp_path: Path) -> None:
    given = [written(home, tmp_path, most_prompts=16), "--out", str(tmp_path / "out"), "--quiet"]
    assert told(*given).exit_code == 0
    before = (tmp_path / "out" / "results.json").read_text()
    part = tmp_path / "out" / "parts" / "model" / "none.json"
    text = part.read_text()
    for damage, change in DAMAGE.items():
        assert change(text) != text, damage
        part.write_text(change(text))
        done = told(*given)
        assert done.exit_code == 2, damage
        assert "none.json" in done.stderr.splitlines()[-1]
        assert done.stderr.splitlines()[-1].endswith("delete it, and it is measured again"), damage
    part.unlink()
    assert told(*given).exit_code == 0
    assert counts(tmp_path / "out" / "results.json") == counts_of(json.loads(before))


def counts(path: Path) -> list[Any]:
    return counts_of(json.loads(path.read_text()))


def counts_of(results: dict[str, Any]) -> list[Any]:
    return [arm["rows"] for part in results["parts"]["model"].values() for arm in part.get("arms", ())]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_report_that_was_interrupted_goes_on(number: signal.Signals, home: Path, tmp_path: Path) -> None:
    """In the middle of a part: the parts before it are kept, and the same command ends it as if nothing had been."""
    slow = {"attacks": ["ablation", "prefill"], "amounts": [0.5, 1.0], "max_new_tokens": 40, "most_prompts": 16}
    given = [written(home, tmp_path, **slow), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*PROCESS, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("model: Ablation"):
            process.send_signal(number)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode in (130, 143, -signal.SIGTERM)
    assert "Traceback" not in err
    kept = {name for name in files(tmp_path / "out") if name.startswith("parts")}
    assert kept == {"parts/model/direction.json", "parts/model/none.json"}
    if number != signal.SIGINT:
        return
    assert f"what is done is kept in {tmp_path / 'out'}" in err
    for words in (given, [given[0], "--out", str(tmp_path / "whole")]):
        assert told(*words, "--quiet").exit_code == 0
    assert counts(tmp_path / "out" / "results.json") == counts(tmp_path / "whole" / "results.json")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_full_disk_leaves_nothing_half_written(home: Path, tmp_path: Path) -> None:
    """No file may be larger than 8 kB: the first parts fit, the page does not."""

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    given = [written(home, tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run([*PROCESS, *given], capture_output=True, text=True, preexec_fn=small, timeout=240)
    assert done.returncode == 2
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "free some space" in done.stderr.splitlines()[-1]
    assert not any(name.endswith(".tmp") for name in files(tmp_path / "out"))
    for name in files(tmp_path / "out"):
        if name.endswith(".json"):
            json.loads((tmp_path / "out" / name).read_text())
    assert told(*given, "--quiet").exit_code == 0


def test_tensors_of_the_tiny_model_that_are_not_finite_are_refused(home: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(home / "tiny", tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    done = told(written(home, tmp_path), "--model", str(broken), "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()
