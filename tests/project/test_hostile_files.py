"""Damaged and hostile files, drawn by hypothesis: no loader and no command ends in anything but one line of ours."""

import contextlib
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from monosem.cli import app
from monosem.data import TokenStore, texts
from monosem.dictionaries import TrainConfig, load_dictionary
from monosem.directions import Direction
from monosem.errors import MonosemError
from monosem.latents import Index
from monosem.lenses import TunedLens
from monosem.models import load_model
from monosem.steering import LatentSweep
from monosem.studies import StudyConfig
from tiny_home import make_home

EXAMPLES = 40
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

odd_texts = st.sampled_from(["", "\x1b[2J", "\ud800", "a" * 300, "../..", "nan", "\x00", "none", "é"])
odd_numbers = st.sampled_from([0, -1, 3, 10**12, 10**30, 1.5, -0.0, 1e300, math.inf, math.nan])
leaves = st.one_of(st.none(), st.booleans(), odd_numbers, odd_texts)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3), max_leaves=5
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_home(tmp_path_factory.mktemp("home"))
    model = load_model(folder / "tiny", quiet=True)
    run("latents", "index", folder / "sae", "--text", folder / "text.jsonl", "--tokens", 500, "--context", 32, "-q")
    run("sweep", folder / "sae", "--latents", "0:2", "--max-new-tokens", 2, "--out", folder / "swept", "-q")
    line = ["lens", "train", "--model", folder / "tiny", "--text", folder / "text.jsonl", "--rank", 2, "--steps", 1]
    run(*line, "--batch-tokens", 32, "--context", 16, "-q", "--out", folder / "lens")
    TokenStore.build(model, texts(folder / "text.jsonl"), 16, tokens=64, path=folder / "store", quiet=True)
    Direction.fit(model, ["the cat", "a dog"], ["she is", "he was"], "resid_post.1").save(folder / "direction")
    return folder


def run(*words: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, words)], prog_name="monosem")
    assert done.exit_code in (0, 2), (words, done.stderr)
    return done


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A fresh copy of a file or folder, for each example."""

    def copied(name: str) -> Path:
        target = tmp_path / name
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(home / name, target) if (home / name).is_dir() else shutil.copy(home / name, target)
        return target

    return copied


def refused_or_read(load: Callable[[], Any]) -> None:
    """What is read may be used; what is not is an error of ours."""
    with warnings.catch_warnings(), contextlib.suppress(MonosemError):
        warnings.simplefilter("ignore")
        load()


def spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything inside a JSON value, itself included."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from spots(one, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


Command = Callable[[Path, Path], list[Any]]
NOTHING: Command = lambda p, home: ["list", "dictionaries"]  # noqa: E731
SWEEP = ["--latents", "0:2", "--max-new-tokens", 2, "-q"]
# a JSON file in a folder -> how the folder is read, and the command that reads it
OBJECTS: dict[tuple[str, str], tuple[Callable[[Path], Any], Command]] = {
    ("sae", "cfg.json"): (
        load_dictionary,
        lambda p, home: ["latents", "top", p, "the cat", "-q", "--model", home / "tiny"],
    ),
    ("lens/lens", "config.json"): (
        TunedLens.load,
        lambda p, home: ["lens", "tuned", home / "tiny", "the cat", "-q", "--lens", p],
    ),
    ("swept", "job.json"): (LatentSweep.load, lambda p, home: ["sweep", home / "sae", *SWEEP, "--out", p]),
    ("swept", "baseline.json"): (LatentSweep.load, NOTHING),
    ("store", "manifest.json"): (TokenStore.open, NOTHING),
    ("tiny", "config.json"): (lambda p: load_model(p, quiet=True), NOTHING),
}


@pytest.mark.parametrize(("folder", "file"), OBJECTS)
def test_values_of_any_kind_in_a_config(folder: str, file: str, place: Any, home: Path) -> None:
    load, command = OBJECTS[folder, file]
    whole = json.loads((home / folder / file).read_text())
    paths = list(spots(whole))
    slow = folder == "tiny"

    @settings(QUICK, max_examples=12 if slow else EXAMPLES)
    @given(st.sampled_from(paths), values, st.booleans())
    def check(path: tuple[Any, ...], new: Any, by_command: bool) -> None:
        target = place(folder)
        (target / file).write_text(json.dumps(changed(whole, path, new)))
        refused_or_read(lambda: load(target))
        if by_command and not slow:
            run(*command(target, home))

    check()


@pytest.mark.parametrize("file", ["concept.yaml", "train.yaml"])
def test_yaml_of_any_kind(file: str, place: Any, home: Path, tmp_path: Path) -> None:
    train = {"model": str(home / "tiny"), "site": "resid_post.1", "texts": ["x.txt"], "width": 8, "k": 2, "tokens": 64}
    (home / "train.yaml").write_text(yaml.safe_dump(train))
    whole = yaml.safe_load((home / file).read_text())
    read = StudyConfig.load if file == "concept.yaml" else TrainConfig.read
    odd = st.sampled_from(
        ['!!int "x"', "2024-01-01", "!!set {a}", "&a [*a]", "[" * 3000, "!!binary x", "? [a]\n: b", "\t- x"]
    )

    @QUICK
    @given(st.sampled_from(list(spots(whole))), values, st.none() | odd)
    def check(path: tuple[Any, ...], new: Any, raw: str | None) -> None:
        text = yaml.safe_dump(changed(whole, path, new))
        (tmp_path / file).write_text(f"{text}\nmore: {raw}" if raw else text)
        refused_or_read(lambda: read(tmp_path / file))
        words = (
            ["study", tmp_path / file, "--dictionary", "none"] if file == "concept.yaml" else ["train", tmp_path / file]
        )
        run(*words, "-q", "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    check()


BYTES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "sae/sae_weights.safetensors": ("sae", load_dictionary),
    "sae/index.sqlite": ("sae", lambda p: [Index(p / "index.sqlite").evidence(latent).as_text() for latent in (0, 3)]),
    "lens/lens/lens.safetensors": ("lens/lens", TunedLens.load),
    "swept/parts/part-000000.parquet": ("swept", lambda p: LatentSweep.load(p).table),
    "store/windows.bin": ("store", TokenStore.open),
    "direction": ("direction", Direction.load),
    "text.jsonl": ("text.jsonl", lambda p: list(texts(p))),
    "a.pt": ("a.pt", load_dictionary),
}


@pytest.mark.parametrize("file", BYTES)
def test_bytes_of_any_kind(file: str, place: Any, home: Path, tmp_path: Path) -> None:
    torch.save({"pre_bias": torch.zeros(3), "latent_bias": torch.zeros(4), "activation": "ReLU"}, home / "a.pt")
    name, load = BYTES[file]
    (tmp_path / "lens").mkdir(exist_ok=True)
    whole = (home / file).read_bytes()

    @QUICK
    @given(st.integers(0, len(whole)), st.binary(max_size=12), st.integers(0, 40))
    def check(at: int, new: bytes, cut: int) -> None:
        target = place(name)
        damaged = target if target.is_file() else target / Path(file).relative_to(name)
        damaged.write_bytes(whole[:at] + new + whole[at + cut :])
        refused_or_read(lambda: load(target))

    check()


def test_tensors_of_any_kind(place: Any, home: Path) -> None:
    whole = load_file(home / "sae" / "sae_weights.safetensors")
    kinds = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8]
    shapes = st.sampled_from([(), (0,), (1,), (64,), (32, 64), (64, 32), (1, 64, 32)])
    sizes = st.sampled_from([0.0, 1.0, -1.0, 1e38, math.inf, math.nan])

    @QUICK
    @given(st.sampled_from([*whole, "threshold", "scaling_factor"]), st.sampled_from(kinds), shapes, sizes)
    def check(name: str, kind: torch.dtype, shape: tuple[int, ...], size: float) -> None:
        target = place("sae")
        new = torch.full(shape, size).nan_to_num(0.0) if not kind.is_floating_point else torch.full(shape, size)
        save_file(whole | {name: new.to(kind)}, target / "sae_weights.safetensors")
        refused_or_read(lambda: load_dictionary(target))

    check()


def test_the_check_can_fail() -> None:
    with pytest.raises(TypeError):
        refused_or_read(lambda: [] + 3)  # type: ignore[operator]
