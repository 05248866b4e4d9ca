"""The places inside a dictionary that is put into a model: what `model.run` captures and edits there."""

from typing import Any

from .. import edits
from ..models.places.sites import Inner, Site


class InnerPlaces:
    """`model.run(x, capture=[sae.latents], edits=[edits.scale(sae.latents, 2.0)])`.

    A capture alone changes nothing. Edits keep the error term: the activation changes by what the edited latents write.
    `edits.splice` puts the reconstruction itself there.
    """

    @property
    def site(self) -> Site:
        raise NotImplementedError

    @property
    def site_out(self) -> Site:
        raise NotImplementedError

    @property
    def width(self) -> int:
        raise NotImplementedError

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

    def _place(self, name: str, axes: tuple[str, ...], sizes: tuple[int, ...], hook: str) -> Inner:
        owner: Any = self
        host = self.site_out
        return Inner(name, host.layer, host=host, owner=owner, inside=axes, sizes=sizes, hook=hook)
