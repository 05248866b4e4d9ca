"""A branch of a block: what it reads, what it computes, and what it adds to the stream."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import BadInput, UnknownName
from ..native import Native
from ..sizes import widths
from .blocks import Slot
from .norms import Norm
from .points import added_to, point, unwrap
from .sites import Site
from .weights import bias_of, weight_into


class Branch:
    """A branch of one layer.

    Attributes:
        layer: number of its block. name: prefix of its sites, such as "attn" or "mlp".
        kind: a row of `kinds.KINDS`: "attention", "mlp", "mixture", "linear_attention", ...
        reads: the stream that it reads. raw: its output before a norm after it and its scale.
        out: what it adds to the stream. scale: what its output is multiplied by before that.
        inner: the site that its output projection reads (z, mlp_post); None for mixers without such a projection.
        units: what the inner site is made of: "head", "neuron" or "channel"; None where there is no inner site.
        pointwise: it treats every token alone. crosses: its keys and values are made of what an encoder gives.
        side: "encoder" where it is reached through the sites of an encoder–decoder.
    """

    def __init__(self, model: Native, layer: int, slot: Slot, side: str = ""):
        self.model, self.layer, self.slot, self.side = model, layer, slot, side
        self.name, self.kind, self.scale = slot.name, slot.mixer.kind, slot.scale
        self.reads, self.raw, self.out = (
            Site(name, layer, side) for name in (slot.reads, f"{slot.name}_raw", f"{slot.name}_out")
        )
        row = slot.mixer.row
        self.units, self.pointwise, self.crosses = row.units, row.pointwise, self.kind == "cross_attention"
        self.inner = self.site(row.projected) if row.projected else None

    def __repr__(self) -> str:
        return f"Branch({self.name}.{self.layer}: {self.kind}, reads {self.reads})"

    @property
    def n_units(self) -> int:
        """How many heads or neurons; neurons may differ in number from layer to layer."""
        if self.inner is None:
            return 0
        if self.slot.heads is not None:
            return self.slot.heads.n
        if self.units == "head":
            return self.slot.sizes["mixer_head"]
        return widths(point(self.model, self.inner).module)[0]

    def site(self, name: str) -> Site:
        """A site inside its mixer, "q" or "_pre" as listed in `kinds.KINDS`."""
        return Site(self.slot.mixer.row.site(name, self.name), self.layer, self.side)

    # ------------------------------------------------------------------ the native modules
    def _native(self, path: str) -> nn.Module:
        return self.model.blocks[self.layer].get_submodule(path)

    @property
    def module(self) -> nn.Module:
        return self._native(self.slot.mixer.path)

    def part(self, name: str) -> nn.Module:
        """A part of its mixer, as the family's row calls it."""
        return self._native(self.slot.mixer.at(name))

    @property
    def norm_in(self) -> nn.Module | None:
        """The norm through which it reads the stream."""
        return self._native(self.slot.before) if self.slot.before else None

    @property
    def norm(self) -> str | None:
        """The name of that norm's sites, which branches may share; None without one."""
        if self.slot.before is None:
            return None
        slots = self.model.anatomy[self.layer].slots
        return next(slot.row.norm for slot in slots if slot.before == self.slot.before)

    @property
    def norm_out(self) -> nn.Module | None:
        """The norm between it and the stream (Gemma 2 and 3, OLMo 2 and 3, GLM 4)."""
        return self._native(self.slot.after) if self.slot.after else None

    @property
    def closing(self) -> nn.Module | None:
        """The norm that the stream goes through after the branch was added to it (post-LN blocks)."""
        return self._native(self.slot.closing) if self.slot.closing else None

    def read(self, stream: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos d_model"]:
        """What the mixer is given when the branch reads `stream`; the norm is computed anew."""
        with self.model.turn():
            if self.slot.row.streams:
                *_, stream = self._native(self.slot.row.streams)(stream)
            normed = stream if self.norm_in is None else self.norm_in(stream)
            return normed * self.slot.given if self.slot.given != 1 else normed  # type: ignore[no-any-return]

    def write(self, raw: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos d_model"]:
        """What is added to the stream for an output of the mixer; the norm is computed anew."""
        with self.model.turn():
            written = (raw if self.norm_out is None else self.norm_out(raw)) * self.scale
        return written if self.added is None else written + self.added  # type: ignore[no-any-return]

    @property
    def added(self) -> Tensor | None:
        """A bias that the block adds to what the branch's modules return (GPT-NeoX-Japanese, in its last block)."""
        return added_to(self.model, self.layer, self.slot)

    def projections(
        self, names: Iterable[str], stream: Float[Tensor, "batch pos d_model"]
    ) -> dict[str, Float[Tensor, "batch pos ..."]]:
        """Sites that parts of the mixer compute from what it is given ("q", "k", "v"), when the branch reads `stream`.

        A part that several of them share runs once.
        """
        places = {name: point(self.model, self.site(name)) for name in sorted(names)}
        normed, modules = self.read(stream), dict.fromkeys(place.module for place in places.values())
        with self.model.turn():
            outputs = {module: module(normed) for module in modules}
        return {name: place.split(outputs[place.module]) for name, place in places.items()}

    def answer(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What a pointwise branch adds to the stream when it reads `stream`."""
        value = self.read(stream)
        with self.model.turn():
            for path in self.slot.mixer.chain:
                value = unwrap(self._native(path)(value))
            return self.write(value)

    def write_change(
        self, inner: Tensor, change: Float[Tensor, "*sets batch pos d_model"]
    ) -> Float[Tensor, "*sets batch pos d_model"]:
        """By how much what is added to the stream changes when `change` is added to the raw output.

        Without a norm after the branch that is `change` times the scale; a norm is applied to the whole raw output
        (the projection of `inner`) with and without the change.
        """
        if self.norm_out is None:
            return change * self.scale
        raw = self.project(inner)
        return (self.write((raw + change).to(raw.dtype)) - self.write(raw)).to(change.dtype)

    # ------------------------------------------------------------------ the output projection
    def weight(self) -> Tensor:
        """From its units to its raw output: `head d_head d_model` or `unit d_model`, in the model's dtype.

        Raises:
            UnknownName: the branch has no inner site.
        """
        weight = weight_into(self.model, self._projected())
        return weight * self._factor if self._factor != 1 else weight

    def bias(self) -> Float[Tensor, "d_model"]:
        """The output projection's bias; zeros where it has none."""
        bias = bias_of(self.model, self._projected())
        return bias * self._factor if self._factor != 1 else bias

    @property
    def _factor(self) -> float:
        """What the mixer multiplies its output projection's output by."""
        row = self.slot.mixer.row
        return self.slot.scales.get(row.sites[row.projected].part, 1.0) if row.projected else 1.0

    def project(self, inner: Tensor) -> Float[Tensor, "... d_model"]:
        """Its raw output by the native projection, for any values of the inner site."""
        place = point(self.model, self._projected())
        with self.model.turn():
            raw = place.module(place.join(inner, inner))
            return raw * self._factor if self._factor != 1 else raw  # type: ignore[no-any-return]

    def parts(self, inner: Tensor, units: Any = slice(None)) -> Float[Tensor, "... unit d_model"]:
        """What each unit hands to the projection's sum (not yet written: see `share`).

        Args:
            inner: the inner site, of the chosen units alone. units: which units these are.
        """
        weight = self.weight()[units].to(inner.dtype)
        if self.units != "head":
            return inner[..., None] * weight
        return torch.einsum("...hd,hdm->...hm", inner, weight)

    def _projected(self) -> Site:
        if self.inner is None:
            raise UnknownName(
                f"layer {self.layer} of {self.model.name}: {self.name} is a {self.kind}, whose parts cannot be read"
            )
        return self.inner

    # ------------------------------------------------------------------ writing as a linear map, its norm's size frozen
    @cached_property
    def post(self) -> Norm:
        """The norm between the branch and the stream, read off; without one, a norm that changes nothing."""
        return self.model.norm(self.norm_out)

    @cached_property
    def pre(self) -> Norm:
        """The norm through which it reads, likewise."""
        return self.reading()

    def reading(self, dtype: torch.dtype = torch.float32) -> Norm:
        """`pre`, in another precision."""
        norm, given = self.model.norm(self.norm_in, dtype), self.slot.given
        return norm if given == 1 else norm.times(given)

    def size(self, inner: Tensor) -> Float[Tensor, "... 1"]:
        """What the norm after the branch divides by when the inner site has these values (all units); 1 without one."""
        flat = inner.flatten(-2) if self.units == "head" else inner
        if self.norm_out is None:
            return torch.ones_like(flat[..., :1], dtype=torch.float32)
        weight = self.weight().reshape(-1, self.model.cfg.d_model).float()
        if flat.shape[-1] != len(weight):
            raise BadInput(
                f"{self.model.name} has a norm after {self.name}, whose size needs all {self.units}s: "
                f"capture {self.inner} without heads="
            )
        return self.post.scale(flat.float() @ weight + self.bias().float())

    def share(self, parts: Float[Tensor, "... d_model"], size: Float[Tensor, "... 1"]) -> Float[Tensor, "... d_model"]:
        """What parts of the raw output add to the stream; the norm after the branch divides by `size` (frozen).

        Over all units, and the raw bias, the shares sum to the branch's output less `written_bias`.
        """
        return (parts if self.norm_out is None else self.post.frozen(parts, size)) * self.scale

    def pull(self, direction: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Where to read the raw output instead: share(parts, size) · direction = parts · pull(direction) / size."""
        return self.post.pull(direction) * self.scale

    @property
    def written_bias(self) -> Float[Tensor, "d_model"]:
        """What is added whatever the branch reads: by the norm after it, by the block; zeros in most models."""
        bias = self.post.bias * self.scale
        return bias if self.added is None else bias + self.added.float()
