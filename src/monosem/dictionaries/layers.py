"""A layer of a cross-layer transcoder inside a model: what is captured, edited and spliced there.

Its latents are read at its own site and write to its own output and to every later one. So an edit of them changes
all these outputs, each where it is computed in the same pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BadInput
from ..models import Model, Moment
from ..models.places.sites import Inner, Site
from .codes import Codes
from .places import InnerPlaces, Passing, sum_of
from .trained_on import TrainedOn


@dataclass(frozen=True, eq=False)
class TranscoderLayer(InnerPlaces):
    """One layer of a cross-layer transcoder: `clt.layers[3]`. Edits of latents and `edits.splice` take it, and its
    places are captured and edited as a `Dictionary` has them.

    Attributes:
        whole: the transcoder. number: which layer.
    """

    whole: Any
    number: int

    whole_texts = False  # codes of a token depend on no other

    @property
    def site(self) -> Site:
        site: Site = self.whole.sites[self.number]
        return site

    @property
    def site_out(self) -> Site:
        site: Site = self.whole.sites_out[self.number]
        return site

    @property
    def width(self) -> int:
        width: int = self.whole.width
        return width

    @property
    def reads(self) -> Sequence[Site]:
        return [site for site in self.whole.sites[: self.number + 1] if site != self.site_out]

    @property
    def latents(self) -> Inner:
        """Activations of all its latents, dense: `batch pos width`. An edit of them acts on this and every later
        output."""
        return replace(super().latents, also=self.whole.layers[self.number + 1 :])

    @property
    def earlier_latents(self) -> Sequence[Inner]:
        """The latents of the layers before, which write to its output as well."""
        return [layer.latents for layer in self.whole.layers[: self.number]]

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Codes:
        """The codes of this layer. Raises `Mismatch` for another width."""
        codes: Codes = self.whole.encode_layer(self.number, x)
        return codes

    def latent_activations(self, x: Float[Tensor, "*batch d_in"], latents: Any) -> Float[Tensor, "*batch n"]:
        """Activations of some latents."""
        acts: Tensor = self.whole.latent_activations(self.number, x, latents)
        return acts

    def prepare(self, model: Model) -> None:
        """Measure, before a pass, what `left_out` needs in it."""
        TrainedOn(self.site).prepare(model)

    def left_out(self, x: Float[Tensor, "batch pos d"], moment: Moment) -> dict[str, Bool[Tensor, "batch pos"]]:
        """For each reason, the tokens of a moment that it was not trained on; x is the activation at its site."""
        return TrainedOn(self.site).left_out(x, moment)

    def passing(self, read: Float[Tensor, "batch pos d_in"], moment: Moment) -> "LayerPassing":
        """What it makes of an activation in a pass of the model; later layers find it in the pass's memory."""
        made = moment.memory[self] = LayerPassing(self, read, moment)
        return made


class LayerPassing(Passing):
    """A layer at one moment of a pass, with what the layers before it were in this pass."""

    def __init__(self, owner: TranscoderLayer, read: Float[Tensor, "batch pos d_in"], moment: Moment):
        super().__init__(owner, read)
        self.moment = moment

    def clean(self) -> Float[Tensor, "batch pos d_out"]:
        """What it and the layers before write to its output, before edits of latents."""
        whole, number = self.owner.whole, self.owner.number
        codes = [self._at(layer).codes for layer in whole.layers[: number + 1]]
        made: Tensor = whole.write(number, codes, self.read)
        return made

    def change(self) -> Float[Tensor, "batch pos d_out"] | None:
        """What edits of latents, of this layer and of those before, change in its output."""
        whole, number, memory = self.owner.whole, self.owner.number, self.moment.memory
        here = [layer for layer in whole.layers[: number + 1] if layer in memory]
        parts = [
            delta @ self._written_here(layer, ids).to(delta)
            for layer in here
            for ids, delta in (_active(*change) for change in memory[layer].changes)
        ]
        return sum_of(parts) if parts else None

    def _at(self, layer: TranscoderLayer) -> Passing:
        """A layer as it was in this pass, also where no edit stands."""
        memory, notes = self.moment.memory, self.moment.notes
        if layer not in memory:
            if layer.site not in notes:
                raise BadInput(
                    f"{self.owner.whole.name!r} at {self.owner.site_out}: {layer.site}, which it reads, is not "
                    "computed before this place: it lies after it, or before the start of the run"
                )
            memory[layer] = LayerPassing(layer, notes[layer.site][1].flatten(2), self.moment)
        found: Passing = memory[layer]
        return found

    def _written_here(self, layer: TranscoderLayer, ids: Int[Tensor, "n"]) -> Float[Tensor, "n d_out"]:
        rows: Tensor = self.owner.whole.rows(layer.number, ids)[:, self.owner.number - layer.number]
        return rows


def _active(columns: Int[Tensor, "n"] | None, delta: Float[Tensor, "batch pos n"]) -> tuple[Tensor, Tensor]:
    """Which latents are changed, and by how much. With gradients these are all that were asked for, as a change of
    none has a gradient, too."""
    ids = torch.arange(delta.shape[-1], device=delta.device) if columns is None else columns
    if delta.requires_grad:
        return ids, delta
    active = delta.flatten(0, -2).any(0)
    return ids[active.to(ids.device)], delta[..., active]
