"""The places inside a dictionary that is put into a model: what `model.run` captures and edits there."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import edits
from ..models import Moment
from ..models.places.sites import Inner, Site
from .codes import Codes


class InnerPlaces(ABC):
    """`model.run(x, capture=[sae.latents], edits=[edits.scale(sae.latents, 2.0)])`.

    A capture alone changes nothing. Edits keep the error term: the activation changes by what the edited latents write.
    `edits.splice` puts the reconstruction itself there.
    """

    @property
    @abstractmethod
    def site(self) -> Site:
        """Where it reads."""

    @property
    @abstractmethod
    def site_out(self) -> Site:
        """Where its output belongs."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of latents."""

    @property
    def reads(self) -> Sequence[Site]:
        """The sites that its output is made of, beside `site_out` itself."""
        return [] if self.site == self.site_out else [self.site]

    @property
    def input(self) -> Inner:
        """What the dictionary reads, in the shape of `site`; edits there change what it sees and nothing else."""
        return self._place("input", self.site.shape[1:], (), "hook_sae_input")

    @property
    def latents(self) -> Inner:
        """Activations of all latents, dense: `batch pos width`."""
        return self._place("latents", ("latent",), (self.width,), "hook_sae_acts_post")

    @property
    def reconstruction(self) -> Inner:
        """What is decoded of them, in the shape of `site_out`."""
        return self._place("reconstruction", self.site_out.shape[1:], (), "hook_sae_recons")

    @property
    def error(self) -> Inner:
        """The activation at `site_out` less the reconstruction, before edits, in the shape of `site_out`."""
        return self._place("error", self.site_out.shape[1:], (), "hook_sae_error")

    def observer(self) -> edits.Edit:
        """What a session puts at `site_out` where no edit splices the dictionary."""
        return edits.observer(self)

    def spliced(self, *, error: bool = False, gate: edits.Gate | None = None) -> edits.Edit:
        """As SAELens puts it into a model: at every token, also those that it was not trained on."""
        edit = edits.splice(self, error=error, everywhere=True)
        return edit if gate is None else edit.when(gate)

    def passing(self, read: Float[Tensor, "batch pos d_in"], moment: Moment) -> "Passing":
        """What it makes of an activation in a pass of the model."""
        return Passing(self, read)

    def _place(self, name: str, axes: tuple[str, ...], sizes: tuple[int, ...], hook: str) -> Inner:
        owner: Any = self
        host = self.site_out
        return Inner(name, host.layer, host=host, owner=owner, inside=axes, sizes=sizes, hook=hook)


class Passing:
    """A dictionary at one moment of a pass: its codes, and what edits of its latents change.

    Attributes:
        owner: the dictionary. read: what it reads.
        changes: by how much latents are changed, `batch pos n`, and which (None: all).
    """

    def __init__(self, owner: Any, read: Float[Tensor, "batch pos d_in"]):
        self.owner, self.read = owner, read
        self.changes: list[tuple[Int[Tensor, "n"] | None, Float[Tensor, "batch pos n"]]] = []

    @cached_property
    def codes(self) -> Codes:
        found: Codes = self.owner.encode(self.read)
        return found

    def latents(self, columns: Int[Tensor, "n"] | None) -> Float[Tensor, "batch pos n"]:
        """Their activations before edits: of some, or of all."""
        if columns is None:
            return self.codes.dense()
        known = "codes" in vars(self)
        some: Tensor = self.codes.of(columns) if known else self.owner.latent_activations(self.read, columns)
        return some

    def clean(self) -> Float[Tensor, "batch pos d_out"]:
        """The reconstruction before edits of latents, at least in float32."""
        like = self.read.to(torch.promote_types(self.read.dtype, torch.float32))
        made: Tensor = self.owner.decode(self.codes, like=like)
        return made

    def change(self) -> Float[Tensor, "batch pos d_out"] | None:
        """What edits of latents change in the reconstruction; None where there are none."""
        if not self.changes:
            return None
        scale = self.owner.token_scale(self.read)
        written = sum_of(delta @ self._rows(columns).to(delta) for columns, delta in self.changes)
        return written if scale is None else written * scale

    def _rows(self, columns: Int[Tensor, "n"] | None) -> Float[Tensor, "n d_out"]:
        rows: Tensor = self.owner.W_dec if columns is None else self.owner.decoder_rows(columns)
        return rows


def sum_of(parts: Any) -> Tensor:
    """Of one tensor or more."""
    first, *others = parts
    return sum(others, first)
