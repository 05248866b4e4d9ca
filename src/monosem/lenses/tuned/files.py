"""Tuned lenses on disk: our folders (safetensors), and those of the tuned-lens package (config.json, params.pt)."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile, UnknownName, did_you_mean
from ...files import ASSETS, read_json, read_torch, replacing_folder, write_json
from ..fitted import load_lens, save_lens
from .lens import TunedLens

FOLDER, PARAMETERS, PUBLISHED = "tuned_lens", "params.pt", "linear_tuned_lens"


def shipped_tuned() -> list[str]:
    """Names of the models whose tuned lens is inside the package."""
    return sorted(config.parents[1].name for config in ASSETS.glob(f"*/{FOLDER}/config.json"))


def load_tuned(name: str | os.PathLike[str]) -> TunedLens:
    """A tuned lens: the one shipped for a model ("smollm2"), or a folder, ours or of the tuned-lens package.

    Raises:
        UnknownName: neither a shipped name nor a folder.
        BadFile: the folder holds no tuned lens, or a broken or hostile one.
    """
    given = os.fspath(name)
    folder = ASSETS / given / FOLDER if given in shipped_tuned() else Path(given).expanduser()
    if not folder.is_dir():
        near = did_you_mean(given, shipped_tuned())
        raise UnknownName(
            f"no tuned lens {given!r}{near}; shipped for: {', '.join(shipped_tuned()) or 'none'}; else give a folder, "
            "or train one: monosem lens train"
        )
    lens = _published(folder) if (folder / PARAMETERS).exists() else _own(folder)
    return lens.eval().requires_grad_(False)


def write(lens: TunedLens, folder: Path, dtype: torch.dtype | None, published: bool) -> Path:
    """See `TunedLens.save`."""
    about = {
        "base_model_name_or_path": lens.model_name,
        "d_model": lens.d_model,
        "num_hidden_layers": len(lens),
        "unembed_hash": lens.unembed_hash,
    }
    if not published:
        tensors = {name: value.to(dtype or value.dtype) for name, value in lens.translators.state_dict().items()}
        return save_lens(folder, "tuned", about | {"rank": lens.rank, "metadata": lens.metadata}, tensors)
    state: dict[str, Tensor] = {}
    for number, translator in enumerate(lens):
        state[f"{number}.weight"] = translator.matrix.detach().T.to(dtype or torch.float32).cpu().contiguous()
        state[f"{number}.bias"] = translator.bias.detach().to(dtype or torch.float32).cpu()
    extra = {"bias": True, "base_model_revision": None, "lens_type": PUBLISHED}
    with replacing_folder(folder) as temporary:
        torch.save(state, temporary / PARAMETERS)
        write_json(temporary / "config.json", about | extra)
    return folder


def _own(folder: Path) -> TunedLens:
    config, tensors = load_lens(folder, "tuned")
    lens = _empty(folder, config, config.get("rank"))
    lens.metadata = dict(config.get("metadata") or {})
    return _filled(lens, tensors, folder)


def _published(folder: Path) -> TunedLens:
    config = read_json(folder / "config.json")
    kind = config.get("lens_type", PUBLISHED)
    if kind != PUBLISHED:
        raise BadFile(f"{folder}: lens_type {kind!r} is not {PUBLISHED!r}")
    lens = _empty(folder, config, None)
    tensors: dict[str, Tensor] = {}
    for name, value in read_torch(folder / PARAMETERS).items():
        number, _, part = str(name).partition(".")
        # a Linear stores [out, in]; ours multiply from the right
        tensors[f"{number}.A" if part == "weight" else name] = value.T if part == "weight" else value
    if not config.get("bias", True):
        tensors |= {f"{number}.bias": torch.zeros(lens.d_model) for number in range(len(lens))}
    return _filled(lens, tensors, folder)


def _empty(folder: Path, config: dict[str, Any], rank: int | None) -> TunedLens:
    try:
        name, hashed = str(config["base_model_name_or_path"]), config.get("unembed_hash")
        return TunedLens(int(config["num_hidden_layers"]), int(config["d_model"]), rank, name, hashed)
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{folder}/config.json does not describe a tuned lens ({error!r})") from error


def _filled(lens: TunedLens, tensors: dict[str, Tensor], folder: Path) -> TunedLens:
    wanted = lens.translators.state_dict()
    for name, value in wanted.items():
        found = tensors.get(name)
        if found is None or found.shape != value.shape:
            shape = "missing" if found is None else f"of shape {list(found.shape)}"
            raise BadFile(f"{folder}: tensor {name!r} is {shape}, expected {list(value.shape)}")
        if not bool(found.isfinite().all()):
            raise BadFile(f"{folder}: tensor {name!r} holds NaN or infinity")
    if extra := sorted(set(tensors) - set(wanted)):
        raise BadFile(f"{folder}: tensors that belong to no translator: {', '.join(extra[:5])}")
    lens.translators.load_state_dict({name: tensors[name].float() for name in wanted})
    return lens
