"""A dictionary as plain values: what a checkpoint holds once it is in the canonical form, and what is known about it.

pre = x W_enc + b_enc        codes = phi(pre)        y = codes W_dec + b_dec (+ x W_skip^T)

With W_glu: pre = (x W_enc + b_enc) sigmoid(x W_glu + b_glu).
"""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput, did_you_mean
from ..models.numbers import LARGEST
from ..models.places.sites import Site, SiteLike
from .encoders import ENCODERS
from .token_norms import TOKEN_NORMS


@dataclass(frozen=True)
class DictionaryTensors:
    """A dictionary's tensors in row-vector convention. `extra`: what its kind alone has (`Encoder.extra`)."""

    W_enc: Float[Tensor, "d_in width"]
    b_enc: Float[Tensor, "width"]
    W_dec: Float[Tensor, "width d_out"]
    b_dec: Float[Tensor, "d_out"]
    threshold: Float[Tensor, "width"] | None = None
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    W_glu: Float[Tensor, "d_in width"] | None = None
    b_glu: Float[Tensor, "width"] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def present(self) -> dict[str, Tensor]:
        """name -> tensor, without the tensors that are None; with `extra`."""
        own = {name: tensor for name, tensor in vars(self).items() if name != "extra" and tensor is not None}
        return own | dict(self.extra)

    def map(self, change: Callable[[Tensor], Tensor]) -> "DictionaryTensors":
        """Every tensor changed."""
        return self.of({name: change(tensor) for name, tensor in self.present().items()})

    def to(self, dtype: torch.dtype) -> "DictionaryTensors":
        return self.map(lambda tensor: tensor.to(dtype))

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "DictionaryTensors":
        """Of tensors by name; names that are none of the fields are `extra`."""
        own = DictionaryTensors.__dataclass_fields__
        extra = {name: tensor for name, tensor in tensors.items() if name not in own}
        return DictionaryTensors(**{name: t for name, t in tensors.items() if name in own}, extra=extra)

    def check(self) -> None:
        """Raise `BadInput` for a tensor of the wrong shape or with values that cannot be computed with; it is named."""
        if self.W_enc.ndim != 2 or self.W_dec.ndim != 2 or 0 in self.W_enc.shape:
            shapes = f"{tuple(self.W_enc.shape)} and {tuple(self.W_dec.shape)}"
            raise BadInput(f"W_enc must be [d_in, width] and W_dec [width, d_out], not {shapes}")
        (d_in, width), d_out = self.W_enc.shape, self.W_dec.shape[1]
        expected = {"W_enc": (d_in, width), "b_enc": (width,), "W_dec": (width, d_out), "b_dec": (d_out,)}
        expected |= {"threshold": (width,), "W_skip": (d_out, d_in), "W_glu": (d_in, width), "b_glu": (width,)}
        check_shapes(self.present(), expected)
        if (self.W_glu is None) != (self.b_glu is None):
            raise BadInput("W_glu and b_glu belong together; one of them is missing")
        check_values(self.present())


@dataclass(frozen=True)
class DictionaryParts:
    """All that makes a `Dictionary`; formats read and write this.

    Attributes:
        tensors: already folded into the canonical form.
        kind: a row of `ENCODERS`, or "batchtopk" (needs a threshold; at inference it is a jumprelu).
        k: places a token, for kinds whose latents compete.
        options: what else its kind is told (`Encoder.options`).
        token_norm: a row of `TOKEN_NORMS`: normalisation that no fold can take away. It is undone on the output, except
            by transcoders, whose output is another activation.
        site, site_out: where it reads and where its output belongs (None: at `site`; of a transcoder: unknown).
        transcoder: said to be one; `is_transcoder` also sees the tensors and the sites.
        per_head: activations may come as `[..., head, d_head]` and are flattened.
        model_name: the model that it was made for; "" where the file does not say.
        card: what is published with it.
    """

    tensors: DictionaryTensors
    kind: str = "relu"
    _: KW_ONLY
    k: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    token_norm: str = "none"
    site: SiteLike | None = None
    site_out: SiteLike | None = None
    transcoder: bool = False
    per_head: bool = False
    model_name: str = ""
    name: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_transcoder(self) -> bool:
        """Whether it is said to be one, writes elsewhere than it reads, or has a skip connection."""
        elsewhere = self.site_out is not None and Site.parse(self.site_out) != (self.site and Site.parse(self.site))
        tensors = self.tensors
        return (
            self.transcoder
            or elsewhere
            or tensors.W_skip is not None
            or tensors.W_enc.shape[0] != tensors.W_dec.shape[1]
        )

    def check(self) -> None:
        """Raise `BadInput` for an unknown kind, options that do not fit it, or tensors that cannot be used."""
        self.tensors.check()
        _check_options(self)


def _check_options(parts: DictionaryParts) -> None:
    kind = "jumprelu" if parts.kind == "batchtopk" else parts.kind
    if kind not in ENCODERS:
        raise BadInput(
            f"unknown encoder {kind!r}{did_you_mean(kind, ENCODERS)}; known: {', '.join([*ENCODERS, 'batchtopk'])}"
        )
    if parts.token_norm not in TOKEN_NORMS:
        raise BadInput(f"unknown token_norm {parts.token_norm!r}; known: {', '.join(TOKEN_NORMS)}")
    encoder, width = ENCODERS[kind], parts.tensors.W_enc.shape[1]
    for need, value in {"k": parts.k, "threshold": parts.tensors.threshold}.items():
        if (need in encoder.needs) != (value is not None):
            raise BadInput(f"a {kind} dictionary {'needs' if value is None else 'has no'} {need}")
    if parts.k is not None and not 1 <= parts.k <= width:
        raise BadInput(f"k must be from 1 to the width, {width}, not {parts.k}")
    if kind == "groupmax" and width % (parts.k or 1):
        raise BadInput(f"the k groups of a groupmax dictionary have one size; a width of {width} has no {parts.k} such")
    wrong = [name for name, type_ in encoder.options.items() if type(parts.options.get(name)) is not type_]
    if wrong or parts.options.keys() - encoder.options.keys():
        listed = ", ".join(f"{name} ({type_.__name__})" for name, type_ in encoder.options.items()) or "none"
        raise BadInput(f"a {kind} dictionary has these options: {listed}; not {dict(parts.options)}")
    _check_extra(parts, encoder.extra(*parts.tensors.W_enc.shape))


def _check_extra(parts: DictionaryParts, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The tensors that a kind alone has: all there, and of their shapes (-1: any size, one for all of that name)."""
    extra = parts.tensors.extra
    if extra.keys() != shapes.keys():
        raise BadInput(f"a {parts.kind} dictionary has these further tensors: {', '.join(shapes) or 'none'}")
    fits = {
        name: tuple(own if size == -1 else size for own, size in zip(extra[name].shape, shape))
        if extra[name].ndim == len(shape)
        else shape
        for name, shape in shapes.items()
    }
    check_shapes(extra, fits)


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Raise `BadInput` that names the first tensor with values that cannot be computed with."""
    for name, tensor in tensors.items():
        # no number is larger than the norm, which takes one pass; float32's norm is the fastest
        if tensor.dtype == torch.float32 and float(torch.linalg.vector_norm(tensor)) <= LARGEST:
            continue
        if tensor.numel() and not all(-LARGEST <= end <= LARGEST for end in tensor.aminmax()):
            bad = tensor[~(tensor.abs() <= LARGEST)]
            kind = f"beyond {LARGEST:g}" if bad.isfinite().all() else "that are not finite (NaN or infinity)"
            raise BadInput(f"{name} has {len(bad)} values {kind}, such as {bad[0]:g}; the dictionary is unusable")


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `BadInput` that names the first tensor of the wrong shape and the shape that it should have."""
    for name, tensor in tensors.items():
        if name in expected and tuple(tensor.shape) != expected[name]:
            hint = "; it looks transposed" if tuple(tensor.shape[::-1]) == expected[name] else ""
            raise BadInput(f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}{hint}")
