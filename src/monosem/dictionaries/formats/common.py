"""What every format needs: the row that describes it, tensors by name, and sites as files name them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile, UnknownName
from ...models.places.sites import Site
from ..parts import DictionaryParts


@dataclass(frozen=True)
class Format:
    """How to recognise a checkpoint at a path, and how to read and write it.

    Attributes:
        looks_like: for messages: "a folder with cfg.json and sae_weights.safetensors".
        read: path and `norm_scaling_factor` (where the caller gave one) to parts. Raises `BadFile` or `BadInput`.
        write: parts, to a folder, in a dtype; None where monosem does not write the format.
    """

    looks_like: str
    detect: Callable[[Path], bool]
    read: Callable[[Path, float | None], DictionaryParts]
    write: Callable[[DictionaryParts, Path, torch.dtype], None] | None = None


def take(tensors: dict[str, Any], names: list[str], path: Path) -> list[Tensor]:
    """Tensors by name. Raises `BadFile` that names those that are missing, or hold no plain floating-point numbers."""
    missing = [name for name in names if not isinstance(tensors.get(name), Tensor)]
    if missing:
        raise BadFile(f"{path} lacks the tensors {', '.join(missing)}; it has {', '.join(map(str, tensors)) or 'none'}")
    for name in names:
        tensor = tensors[name]
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = " ".join(str(one).removeprefix("torch.") for one in (tensor.layout, tensor.dtype, tensor.device))
            raise BadFile(f"{path}: {name} is a {kind} tensor; weights are plain floating-point numbers")
    return [tensors[name] for name in names]


# what a module path of Hugging Face's Gemma 2 and 3 means, within its layer: exact where a hook's name is not. SAELens
# calls the input of Gemma Scope 2's transcoders hook_mlp_in, which is before the norm; they read what comes after it
_MODULES = {
    "output": "resid_post",
    "self_attn.o_proj.input": "z",
    "pre_feedforward_layernorm.output": "ln2_output",
    "post_feedforward_layernorm.output": "mlp_out",
}


def site_or_none(hook_name: Any, module: Any = None) -> Site | None:
    """The site that a file names; None when it is not one of ours (the names stay in the metadata).

    Args:
        hook_name: in TransformerLens's style. module: path of a module and its side, which counts where it is known.
    """
    found = re.fullmatch(r"(?:.+\.)?layers\.(\d+)\.(.+)", module) if isinstance(module, str) else None
    if found and found[2] in _MODULES:
        return Site(_MODULES[found[2]], int(found[1]))
    try:
        return Site.parse(hook_name) if hook_name and isinstance(hook_name, str) else None
    except UnknownName:
        return None
