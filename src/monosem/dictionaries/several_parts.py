"""Dictionaries of several sites as plain values: what a checkpoint holds in the canonical form, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ..errors import BadFile, BadInput
from ..models.places.sites import Site
from .encoders import ENCODERS
from .parts import check_shapes, check_values

Sites = Sequence[Site | None]


@dataclass(frozen=True)
class Facts:
    """What is known of a dictionary of several sites beside its tensors.

    Attributes:
        kind: a row of `ENCODERS` that needs no more than k or thresholds. k: places a token.
        sites, sites_out: where it reads and writes, in the order of its tensors; None where the file does not say.
    """

    kind: str
    sites: Sites
    sites_out: Sites
    k: int | None = None
    model_name: str = ""
    name: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def check(self, count: int, width: int, threshold: Tensor | None) -> None:
        """Raise `BadInput` for a kind that does not fit, or sites that are not one for each part."""
        encoder = ENCODERS.get(self.kind)
        if encoder is None or encoder.find is not None:
            raise BadInput(f"a dictionary of several sites cannot be of kind {self.kind!r}")
        for need, value in {"k": self.k, "threshold": threshold}.items():
            if (need in encoder.needs) != (value is not None):
                raise BadInput(f"a {self.kind} dictionary {'needs' if value is None else 'has no'} {need}")
        if self.k is not None and not 1 <= self.k <= width:
            raise BadInput(f"k must be from 1 to the width, {width}, not {self.k}")
        if not len(self.sites) == len(self.sites_out) == count:
            raise BadInput(f"{len(self.sites)} and {len(self.sites_out)} sites for tensors of {count}")


@dataclass(frozen=True)
class RowFiles:
    """Decoders that stay in their safetensors files, of which rows are read when they are needed.

    Attributes:
        files, names: of each layer's tensor, `width layer d_out`. first: its layers before this one are left out.
    """

    files: Sequence[Path]
    names: Sequence[str]
    first: Sequence[int]

    def rows(self, layer: int, latents: Int[Tensor, "n"]) -> Float[Tensor, "n later d_out"]:
        """Raises `BadFile` for a file that is gone, damaged, or holds values that cannot be computed with."""
        from safetensors import SafetensorError, safe_open

        path, name = self.files[layer], self.names[layer]
        try:
            with safe_open(path, "pt") as held:
                rows: Tensor = held.get_slice(name)[latents.cpu(), self.first[layer] :]
            check_values({name: rows})
        except (SafetensorError, OSError, BadInput) as error:
            raise BadFile(f"{path}: rows of {name} cannot be read ({error})") from error
        return rows


@dataclass(frozen=True, kw_only=True)
class SeveralParts:
    """What both kinds have; `what` it is called in messages."""

    what = "a dictionary of several sites"
    facts: Facts
    W_enc: Float[Tensor, "part d_in width"]
    b_enc: Tensor
    b_dec: Float[Tensor, "part d_out"]

    def present(self) -> dict[str, Tensor]:
        """name -> tensor, of those that are one tensor each."""
        return {name: tensor for name, tensor in vars(self).items() if isinstance(tensor, Tensor)}

    def _check(self, expected: Mapping[str, tuple[int, ...]], threshold: Tensor | None) -> None:
        if self.W_enc.ndim != 3 or 0 in self.W_enc.shape or self.b_dec.ndim != 2:
            shapes = f"{list(self.W_enc.shape)} and {list(self.b_dec.shape)}"
            raise BadInput(f"W_enc must be [site, d_in, width] and b_dec [site, d_out], not {shapes}")
        check_shapes(self.present(), expected)
        check_values(self.present())
        self.facts.check(self.W_enc.shape[0], self.W_enc.shape[2], threshold)


@dataclass(frozen=True, kw_only=True)
class CrossLayerParts(SeveralParts):
    """Of a `CrossLayer`; shapes as there."""

    what = "a cross-layer transcoder"
    W_dec: Sequence[Float[Tensor, "width later d_out"]] | RowFiles
    threshold: Float[Tensor, "layer width"] | None = None
    W_skip: Float[Tensor, "layer d_out d_in"] | None = None

    def check(self) -> None:
        """Raise `BadInput` for a tensor of the wrong shape or with values that cannot be used; it is named."""
        (layers, d_in, width), d_out = (*self.W_enc.shape, 0, 0, 0)[:3], self.b_dec.shape[-1]
        shapes = {"b_enc": (layers, width), "b_dec": (layers, d_out), "threshold": (layers, width)}
        self._check(shapes | {"W_skip": (layers, d_out, d_in)}, self.threshold)
        if not isinstance(self.W_dec, RowFiles):
            decoders = {f"W_dec[{s}]": tensor for s, tensor in enumerate(self.W_dec)}
            if len(decoders) != layers:
                raise BadInput(f"{len(decoders)} decoders for {layers} layers")
            check_shapes(decoders, {f"W_dec[{s}]": (width, layers - s, d_out) for s in range(layers)})
            check_values(decoders)


@dataclass(frozen=True, kw_only=True)
class CrosscoderParts(SeveralParts):
    """Of a `Crosscoder`; shapes as there."""

    what = "a crosscoder"
    W_dec: Float[Tensor, "width site d"]
    threshold: Float[Tensor, "width"] | None = None

    def check(self) -> None:
        """Raise `BadInput` for a tensor of the wrong shape or with values that cannot be used; it is named."""
        sites, d, width = (*self.W_enc.shape, 0, 0, 0)[:3]
        shapes = {"b_enc": (width,), "W_dec": (width, sites, d), "b_dec": (sites, d), "threshold": (width,)}
        self._check(shapes, self.threshold)
