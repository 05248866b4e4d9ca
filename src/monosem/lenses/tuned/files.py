"""Tuned lenses on disk: the header, the layout of the tuned-lens package (config.json, params.pt), and the hash that
tells for which unembedding a lens was trained."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ...errors import BadFile
from ...files import read_json, read_torch, replacing_folder, write_json
from ...models import Model
from ..fitted import CONFIG, Header
from .translators import Translators

PARAMETERS, PUBLISHED = "params.pt", "linear_tuned_lens"


@dataclass(frozen=True)
class TunedHeader(Header):
    """What a tuned lens is for; the names on disk are the names of the tuned-lens package.

    Attributes:
        unembed_hash: of the model's unembedding (`unembed_hash`); None where the file does not say.
        rank: None for full matrices, 0 for a bias alone, else the rank of every A.
        metadata: how it was made.
    """

    n_layers: int
    unembed_hash: str | None = None
    rank: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return self.shared() | {"rank": self.rank, "metadata": self.metadata}

    def shared(self) -> dict[str, Any]:
        """What the tuned-lens package writes, too."""
        return {
            "base_model_name_or_path": self.model_name,
            "d_model": self.d_model,
            "num_hidden_layers": self.n_layers,
            "unembed_hash": self.unembed_hash,
        }

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Self:
        """Raises `KeyError`, `TypeError` or `ValueError` for a config that does not describe a tuned lens."""
        return cls(
            str(config["base_model_name_or_path"]),
            int(config["d_model"]),
            int(config["num_hidden_layers"]),
            config.get("unembed_hash"),
            config.get("rank"),
            dict(config.get("metadata") or {}),
        )


def write_published(folder: Path, header: TunedHeader, translators: Translators, dtype: torch.dtype) -> Path:
    """config.json and params.pt with full matrices, as AlignmentResearch/tuned-lens reads them."""
    state: dict[str, Tensor] = {}
    for number, translator in enumerate(translators):
        # a Linear stores [out, in]; a translator multiplies from the right
        state[f"{number}.weight"] = translator.matrix.detach().T.to(dtype).cpu().contiguous()
        state[f"{number}.bias"] = translator.bias.detach().to(dtype).cpu()
    extra = {"bias": True, "base_model_revision": None, "lens_type": PUBLISHED}
    with replacing_folder(folder) as temporary:
        torch.save(state, temporary / PARAMETERS)
        write_json(temporary / CONFIG, header.shared() | extra)
    return folder


def read_published(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of the tuned-lens package, and the tensors by the names of `Translators`.

    Raises:
        BadFile: another kind of lens, a broken or hostile file.
    """
    config = read_json(folder / CONFIG)
    kind = config.get("lens_type", PUBLISHED)
    if kind != PUBLISHED:
        raise BadFile(f"{folder}: lens_type {kind!r} is not {PUBLISHED!r}")
    numbers: dict[str, Tensor] = {}
    for name, value in read_torch(folder / PARAMETERS).items():
        number, _, part = str(name).partition(".")
        numbers[f"{number}.A" if part == "weight" else name] = value.T if part == "weight" else value
    if not config.get("bias", True) and "d_model" in config:
        biases = range(int(config.get("num_hidden_layers", 0)))
        numbers |= {f"{number}.bias": torch.zeros(int(config["d_model"])) for number in biases}
    return config, numbers


def filled(folder: Path, config: Mapping[str, Any], numbers: dict[str, Tensor]) -> tuple[TunedHeader, Translators]:
    """The header and the translators of a file, checked tensor by tensor.

    Raises:
        BadFile: a config that does not describe a tuned lens, a tensor that is missing, of another shape, not finite,
            or that belongs to no translator.
    """
    try:
        header = TunedHeader.parse(config)
        sizes = {size for tensor in numbers.values() for size in tensor.shape}
        if not 0 < header.n_layers <= len(numbers) or header.d_model not in sizes:
            raise ValueError(f"the tensors are not of {header.n_layers} layers of width {header.d_model}")
        translators = Translators(header.n_layers, header.d_model, header.rank)
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{folder}/{CONFIG} does not describe a tuned lens ({error!r})") from error
    wanted = translators.state_dict()
    for name, value in wanted.items():
        tensor = numbers.get(name)
        if tensor is None or tensor.shape != value.shape:
            shape = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise BadFile(f"{folder}: tensor {name!r} is {shape}, expected {list(value.shape)}")
        if not bool(tensor.isfinite().all()):
            raise BadFile(f"{folder}: tensor {name!r} holds NaN or infinity")
    if extra := sorted(set(numbers) - set(wanted)):
        raise BadFile(f"{folder}: tensors that belong to no translator: {', '.join(extra[:5])}")
    translators.load_state_dict({name: numbers[name].float() for name in wanted})
    return header, translators.eval().requires_grad_(False)


def unembed_hash(model: Model, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of the unembedding `vocab d_model` as float32, as the tuned-lens package computes it.

    Args:
        dtype: round the weights to it first, as loading the model in it does.
    """
    weight = model.W_U.T
    digest = hashlib.sha256()
    for part in weight.detach().split(max(1, (1 << 24) // weight.shape[1])):
        digest.update(part.to(dtype or part.dtype).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def made_for(model: Model, hashed: str) -> bool:
    """Whether the hash belongs to the model's unembedding; it may have been taken after rounding to a smaller dtype.

    A rounded model cannot be told from another one, and passes.
    """
    if model.dtype != torch.float32:
        return True
    return any(unembed_hash(model, dtype) == hashed for dtype in (None, torch.bfloat16, torch.float16))
