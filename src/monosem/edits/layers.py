"""A cross-layer transcoder put into the model: at every output what it makes of this layer and of those before."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..errors import BadInput
from ..models import Moment, Site
from .edit import Edit


def splice_layers(clt: Any, *, everywhere: bool = False) -> list[Edit]:
    """Put a cross-layer transcoder (`dictionaries.CrossLayer`) where it belongs: the activation at each of its
    `sites_out` becomes what it writes there, from what its layers read in this very run. One edit a layer.

    Args:
        everywhere: also the first token of a text, special tokens and norm outliers, where codes usually mean nothing.

    Raises:
        BadInput: it is no cross-layer transcoder, or it is not known where it reads or writes.
    """
    if not hasattr(clt, "n_layers") or not hasattr(clt, "write"):
        raise BadInput(f"splice_layers takes a cross-layer transcoder, not a {type(clt).__name__}; splice takes others")
    known: dict[int, tuple[Tensor, Any]] = {}
    edits: list[Edit] = []
    for layer, (_, out) in enumerate(zip(clt.sites, clt.sites_out)):
        trained = None if everywhere else clt.trained(layer)
        label = f"splice layer {layer}"
        edits.append(
            LayerSplice(
                out, lambda x, _: x, label, by_row=True, dictionary=trained, owner=clt, layer=layer, known=known
            )
        )
    return edits


@dataclass(frozen=True, eq=False)
class LayerSplice(Edit):
    """One of the edits of `splice_layers`.

    Attributes:
        owner: the cross-layer transcoder. layer: which of its outputs.
        known: layer -> what it read and its codes, of this pass; shared by the edits of all layers.
    """

    owner: Any = None
    layer: int = 0
    known: dict[int, tuple[Tensor, Any]] = field(default_factory=dict)

    @property
    def reads(self) -> Sequence[Site]:
        """Other sites that it reads."""
        return [site for site in self.owner.sites[: self.layer + 1] if site != self.site]

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        """As every edit."""
        codes = []
        for layer, site in enumerate(self.owner.sites[: self.layer + 1]):
            if site != self.site:
                if site not in moment.notes:
                    raise BadInput(f"{self}: {site}, which the transcoder reads, does not lie before this place")
                came, read = moment.notes[site]  # before and after edits there
            else:
                came, read = x if moment.before is None else moment.before, x
            if layer not in self.known or self.known[layer][0] is not read:
                self.known[layer] = read, self.owner.encode_layer(layer, read.flatten(2))
            codes.append(self.known[layer][1])
        new = self.owner.write(self.layer, codes, read.flatten(2)).reshape(x.shape).to(x.dtype)
        if self.layer == self.owner.n_layers - 1:
            self.known.clear()
        narrowed = replace(self, fn=lambda *_: new)
        return super(LayerSplice, narrowed).apply(x, replace(moment, before=came))
