"""A fitted lens on disk: a folder with `config.json` (what it is, how it was made) and `lens.safetensors`."""

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import BadFile
from ..files import read_json, replacing_folder, write_json

CONFIG, WEIGHTS = "config.json", "lens.safetensors"


def save_lens(path: str | os.PathLike[str], kind: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write the folder, whole or not at all."""
    with replacing_folder(path) as folder:
        write_json(folder / CONFIG, {"lens": kind} | config)
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors lets nobody else read what it writes
    return Path(path)


def load_lens(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config (without its kind) and the tensors.

    Raises:
        BadFile: no such folder, a lens of another kind, a broken file.
    """
    config = read_json(Path(path) / CONFIG)
    found = config.pop("lens", None) if isinstance(config, dict) else None
    if found != kind:
        raise BadFile(f"{path} holds {f'a {found!r} lens' if found else 'no lens'}, not a {kind!r} lens")
    try:
        return config, load_file(Path(path) / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BadFile(f"cannot read {Path(path) / WEIGHTS}: {error}; save the lens again") from error
