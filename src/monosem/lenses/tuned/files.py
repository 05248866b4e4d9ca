"""Tuned lenses on disk: the header, the layout of the tuned-lens package (config.json, params.pt), and the hash that
tells for which unembedding a lens was trained."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import BadFile
from ...files import replacing_folder, write_json
from ...models import Model
from ...reading import read_object, read_torch
from ..fitted import CONFIG, Header
from .translators import Translators

PARAMETERS, PUBLISHED = "params.pt", "linear_tuned_lens"
PRINTED = 1000  # numbers of the largest matrix that NumPy prints whole
NUMPY_PRINTS: Any = {"suppress": False, "floatmode": "maxprec", "sign": "-", "formatter": None}  # whatever the user set


@dataclass(frozen=True)
class TunedHeader(Header):
    """What a tuned lens is for; the names on disk are the names of the tuned-lens package.

    Attributes:
        unembed_hash: of the model's unembedding, by the rule of the tuned-lens package (`unembed_hash`).
        rank: None for full matrices, 0 for a bias alone, else the rank of every A.
        metadata: how it was made.
        weights_hash: of all of its weights (`weights_hash`). Both hashes are None where the file does not say.
    """

    n_layers: int
    unembed_hash: str | None = None
    rank: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    weights_hash: str | None = None

    def plain(self) -> dict[str, Any]:
        return self.shared() | {
            "weights_hash": self.weights_hash,
            "rank": self.rank,
            "metadata": self.metadata,
        }

    def shared(self) -> dict[str, Any]:
        """What the tuned-lens package writes, too."""
        return {
            "base_model_name_or_path": self.model_name,
            "d_model": self.d_model,
            "num_hidden_layers": self.n_layers,
            "unembed_hash": self.unembed_hash,
        }

    @classmethod
    def of(cls, model: Model, rank: int | None, metadata: dict[str, Any] | None = None) -> Self:
        """Of a lens that is made for this model."""
        shape = (model.name, model.cfg.d_model, model.cfg.n_layers)
        return cls(*shape, unembed_hash(model), rank, metadata or {}, weights_hash(model))

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
            config.get("weights_hash"),
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
    config = read_object(folder / CONFIG)
    kind = config.get("lens_type", PUBLISHED)
    if kind != PUBLISHED:
        raise BadFile(f"{folder}: lens_type {kind!r} is not {PUBLISHED!r}")
    numbers: dict[str, Tensor] = {}
    for name, value in read_torch(folder / PARAMETERS).items():
        if not isinstance(value, Tensor):
            raise BadFile(f"{folder / PARAMETERS}: {name!r} is a {type(value).__name__}, not a tensor")
        number, _, part = str(name).partition(".")
        numbers[f"{number}.A" if part == "weight" else name] = value.T if part == "weight" else value
    if not config.get("bias", True):
        numbers |= {
            f"{name[:-1]}bias": matrix.new_zeros(len(matrix))
            for name, matrix in numbers.items()
            if name.endswith(".A") and matrix.ndim
        }
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
        if header.rank is not None and not 0 <= header.rank <= header.d_model:
            raise ValueError(f"rank {header.rank} for width {header.d_model}")
        translators = Translators(header.n_layers, header.d_model, header.rank)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
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


def weights_hash(model: Model, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of all weights of the unembedding, `vocab d_model` as float32.

    Args:
        dtype: round the weights to it first, as loading the model in it does.
    """
    weight = model.W_U.T
    digest = hashlib.sha256()
    for part in weight.detach().split(max(1, (1 << 24) // weight.shape[1])):
        digest.update(part.to(dtype or part.dtype).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def unembed_hash(model: Model, dtype: torch.dtype | None = None) -> str:
    """The hash that the tuned-lens package (0.1.1, 0.2.0) takes of the unembedding; `dtype` as in `weights_hash`."""
    weight = model.W_U.T.detach()
    small = len(weight) <= 8 or weight.numel() <= PRINTED
    ends = weight if small else torch.cat([weight[:4], weight[-4:]])  # NumPy prints three rows of each
    return printed_hash(ends.to(dtype or ends.dtype).float().cpu().numpy(), weight.numel())


def printed_hash(matrix: Float[np.ndarray, "vocab d_model"], size: int | None = None) -> str:
    """SHA-256 of a matrix as NumPy prints it with one decimal: of a large one, three rows and columns from each end.

    Args:
        size: numbers of the matrix where the rows in its middle are left out.
    """
    whole = (size or matrix.size) <= PRINTED
    with np.printoptions(threshold=matrix.size if whole else 0, edgeitems=3, linewidth=75, **NUMPY_PRINTS):
        return hashlib.sha256(np.array_str(matrix, precision=1).encode()).hexdigest()


def made_for(model: Model, header: TunedHeader) -> bool:
    """Whether the lens was made for the model's unembedding; hashes may have been taken after rounding to a smaller
    dtype.

    A rounded model cannot be told from another one, and passes; so does a lens without a hash.
    """
    exact = header.weights_hash is not None
    hashed, rule = (header.weights_hash, weights_hash) if exact else (header.unembed_hash, unembed_hash)
    if not hashed or model.dtype != torch.float32:
        return True
    return any(rule(model, dtype) == hashed for dtype in (None, torch.bfloat16, torch.float16))
