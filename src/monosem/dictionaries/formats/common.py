"""What every format needs: the row that describes it, tensors by name, and sites as files name them."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile, BadInput, UnknownName
from ...models.places.sites import Site
from ...reading import read_torch
from ..parts import DictionaryParts, DictionaryTensors, check_shapes, check_values
from ..several_parts import SeveralParts

PYTORCH = (".pt", ".pth", ".bin")


class Place:
    """Where a checkpoint lies, and what its PyTorch file holds: read once, whichever formats look at it."""

    def __init__(self, path: Path):
        self.path = path

    def has(self, *names: str) -> bool:
        """Whether it is a folder with files of these names."""
        return all((self.path / name).is_file() for name in names)

    @property
    def is_pytorch(self) -> bool:
        return self.path.suffix in PYTORCH and self.path.is_file()

    @cached_property
    def state(self) -> dict[str, Any]:
        """What its PyTorch file holds; nothing where it is no such file. Raises `BadFile`."""
        return read_torch(self.path) if self.is_pytorch and not self.starts_with_text else {}

    @property
    def starts_with_text(self) -> bool:
        """Whether a JSON object stands before what PyTorch wrote."""
        with open(self.path, "rb") as file:
            return file.read(1) == b"{"

    def holds(self, *names: str) -> bool:
        """Whether it is a PyTorch file with these keys."""
        return self.state.keys() >= set(names)


@dataclass(frozen=True)
class Hints:
    """What the caller says of a checkpoint whose files do not.

    Attributes:
        published: entries of its config that the registry knows; the caller's word counts first, then theirs.
    """

    norm_scaling_factor: float | None = None
    kind: str | None = None
    k: int | None = None
    published: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> float | None:
        """The caller's factor of the input, or the registry's."""
        return self.norm_scaling_factor or self.published.get("norm_scaling_factor")

    def check(self, known: tuple[str, ...]) -> None:
        """Raise `BadInput` for what the caller says and files of a format never need."""
        for name in ("norm_scaling_factor", "kind", "k"):
            if getattr(self, name) is not None and name not in known:
                raise BadInput(f"{name} was given, but such a file says all that it needs; leave it out")

    def check_used(self, parts: DictionaryParts) -> None:
        """Raise `BadInput` for what the caller says and the file turned out to say otherwise."""
        for name in ("kind", "k"):
            told = getattr(self, name)
            if told not in (None, getattr(parts, name)):
                raise BadInput(f"{name}={told!r} was given, but this is a {parts.kind} dictionary; leave it out")


@dataclass(frozen=True)
class Format:
    """How to recognise a checkpoint at a place, and how to read it. `writers` has the other way.

    Attributes:
        read: Raises `BadFile` or `BadInput`.
        hints: names of the `Hints` that its files may need.
    """

    detect: Callable[[Place], bool]
    read: Callable[[Place, Hints], DictionaryParts | SeveralParts]
    hints: tuple[str, ...] = ()


def take(tensors: Mapping[str, Any], names: list[str], path: Path) -> list[Tensor]:
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


def canonical(
    tensors: Mapping[str, Any],
    names: Mapping[str, str],
    path: Path,
    *,
    folds: bool = True,
    default: Mapping[str, Callable[[int, int], Tensor]] | None = None,
    also: Collection[str] | None = None,
) -> DictionaryTensors:
    """The file's tensors by our names, checked.

    Args:
        names: ours -> the file's; "encoder.weight^T" is transposed, "W_skip?" may be missing.
        folds: keep float64, for exact folds; else float32.
        default: ours -> width and d_in to what it is where the file has none.
        also: further tensors that such a file may have; others are refused, as the tool itself does. None: any.
    """
    known = {theirs.rstrip("?").removesuffix("^T") for theirs in names.values()} | {*(also or ())}
    if also is not None and (unknown := sorted(str(name) for name in tensors if name not in known)):
        raise BadFile(f"{path} has tensors that no such file has, {', '.join(unknown):.200}: another function?")
    held: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        name = theirs.rstrip("?").removesuffix("^T")
        if name in tensors or not theirs.endswith("?"):
            (tensor,) = take(tensors, [name], path)
            tensor = tensor.T if "^T" in theirs and tensor.ndim == 2 else tensor
            held[ours] = tensor.to(torch.float64 if folds else torch.float32)
    if held["W_enc"].ndim != 2:
        name = names["W_enc"].removesuffix("^T")
        several = ": a crosscoder is read with its {name}_cfg.json beside it" if held["W_enc"].ndim == 3 else ""
        raise BadFile(f"{path}: {name} has shape {list(held['W_enc'].shape)}, expected a matrix{several}")
    d_in, width = held["W_enc"].shape
    for ours, make in (default or {}).items():
        held.setdefault(ours, make(width, d_in).to(held["W_enc"].dtype))
    weights = DictionaryTensors.of(held)
    weights.check()
    return weights


def keys_of(path: Path) -> set[str]:
    """Names of the tensors of a safetensors file; none where it is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as held:
            return set(held.keys())
    except (SafetensorError, OSError, ValueError):
        return set()


def checked(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path) -> list[Tensor]:
    """Tensors by name, in the order of `shapes`. Raises `BadFile` that names the file and what is wrong."""
    kept = (torch.float32, torch.bfloat16, torch.float16)  # what is large stays as small as its file is
    taken = [one if one.dtype in kept else one.to(torch.float32) for one in take(tensors, list(shapes), path)]
    found = dict(zip(shapes, taken))
    try:
        check_shapes(found, shapes)
        check_values(found)
    except BadInput as error:
        raise BadFile(f"{path}: {error}") from error
    return taken


def scalar(tensors: Mapping[str, Any], name: str, path: Path) -> float:
    """A number that is stored as a tensor. Raises `BadFile` for anything else."""
    (tensor,) = take(tensors, [name], path)
    if tensor.numel() != 1 or not bool(tensor.isfinite().all()):
        raise BadFile(f"{path}: {name} has shape {list(tensor.shape)}, expected one finite number")
    return tensor.item()


def number(cfg: Mapping[str, Any], name: str, path: Path, kind: type = float) -> Any:
    """A number of a config. Raises `BadFile` for a missing one, or one that is not above 0."""
    value: Any = cfg.get(name)
    plain = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not plain or not 0 < value < float("inf"):
        what = "a whole number" if kind is int else "a number"
        raise BadFile(f"{path}: {name!r} must be {what} above 0, not {value!r:.80}")
    return kind(value)


def check_sizes(cfg: Mapping[str, Any], sizes: Mapping[str, int], path: Path) -> None:
    """Raise `BadFile` where a config has another size than the tensors; it may leave out what they say."""
    for name, size in sizes.items():
        if name in cfg and number(cfg, name, path, int) != size:
            raise BadFile(f"{path}: {name!r} is {cfg[name]}, and the tensors have {size}; is it another's config?")


def choice(cfg: Mapping[str, Any], name: str, known: Mapping[str, Any] | list[str], path: Path) -> str:
    """A text of a config that must be one of those known. Raises `BadFile`."""
    value = cfg.get(name)
    if not isinstance(value, str) or value not in known:
        raise BadFile(f"{path}: unknown {name} {value!r:.80}; known: {', '.join(known)}")
    return value


def flag(cfg: Mapping[str, Any], name: str, default: bool, path: Path) -> bool:
    """True or false of a config. Raises `BadFile` for anything else."""
    value = cfg.get(name, default)
    if not isinstance(value, bool):
        raise BadFile(f"{path}: {name!r} must be true or false, not {value!r:.80}")
    return value


# what a module path of Hugging Face means, within its layer: exact where a hook's name is not. SAELens calls the input
# of Gemma Scope 2's transcoders hook_mlp_in, which is before the norm; they read what comes after it
_MODULES = {
    "output": "resid_post",
    "input": "resid_pre",
    "self_attn.o_proj.input": "z",
    "pre_feedforward_layernorm.output": "ln2_output",
    "post_feedforward_layernorm.output": "mlp_out",
    **{f"mlp.{side}": site for side, site in (("input", "mlp_input"), ("output", "mlp_raw"))},
    **{f"{name}.output": "attn_raw" for name in ("self_attn", "attn", "attention", "self_attention")},
}
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")


def module_site(path: Any, side: str = "output") -> Site | None:
    """The site at a module's path (`model.layers.3.mlp`); where the path names no side, at this one."""
    if not isinstance(path, str):
        return None
    path = path if path.endswith((".input", ".output")) else f"{path}.{side}"
    if path.removesuffix(".output").rpartition(".")[2] in _EMBEDDINGS:
        return Site("embed")
    found = re.fullmatch(r"(?:.+\.)?(?:layers|h|blocks)\.(\d{1,9})\.(.+)", path)
    return Site(_MODULES[found[2]], int(found[1])) if found and found[2] in _MODULES else None


def site_or_none(hook_name: Any, module: Any = None) -> Site | None:
    """The site that a file names; None when it is not one of ours (the names stay in the metadata).

    Args:
        hook_name: in TransformerLens's style, or the path of a module. module: such a path, which counts first.
    """
    if site := module_site(module):
        return site
    try:
        return Site.parse(hook_name) if hook_name and isinstance(hook_name, str) else None
    except (UnknownName, ValueError):
        return module_site(hook_name)
