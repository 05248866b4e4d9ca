"""A dictionary put into the model: its reconstruction instead of the activation, with or without the error term.

    latents = encode(x)    reconstruction = decode(latents)    error = x - reconstruction    y = reconstruction + error

Inside, `dictionary.latents`, `dictionary.reconstruction` and `dictionary.error` are places of their own, which are
captured and edited as sites are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..models import Moment, Site
from ..models.places.sites import Inner
from .edit import Edit, spread
from .latents import check_whole


def splice(dictionary: Any, *, error: bool = False, everywhere: bool = False) -> "Splice":
    """Put a dictionary where it belongs: the activation becomes its reconstruction. A transcoder's replaces the output
    at `site_out` by what it makes of `site`, a layer of a cross-layer transcoder (`clt.layers[3]`) by what it makes of
    this layer and of those before.

    Args:
        error: keep the error term, a constant of the prompt through which no gradient flows (as `use_error_term` in
            SAELens): nothing changes but by edits of `dictionary.latents`, and gradients go through the latents.
        everywhere: also tokens that the dictionary was not trained on (its `skip` rule; by default the first of a text,
            special tokens and norm outliers), where codes mean nothing.

    Raises:
        BadInput: it is not known where a dictionary reads or writes.
    """
    dictionary = getattr(dictionary, "dictionary", dictionary)  # of an SAE with SAELens's methods
    label = "splice with its error" if error else "splice"
    return Splice(
        dictionary.site_out,
        lambda x, _: x,
        label,
        by_row=True,
        dictionary=None if everywhere else dictionary,
        owner=dictionary,
        error=error,
    )


def splice_layers(clt: Any, *, error: bool = False, everywhere: bool = False) -> list[Edit]:
    """Put a whole cross-layer transcoder (`dictionaries.CrossLayer`) into the model: `splice` for each of its layers.

    Raises:
        BadInput: it is no cross-layer transcoder, or it is not known where it reads or writes.
    """
    layers = getattr(clt, "layers", None)
    if not isinstance(layers, tuple):
        raise BadInput(f"splice_layers takes a cross-layer transcoder, not a {type(clt).__name__}; splice takes others")
    return [splice(layer, error=error, everywhere=everywhere) for layer in layers]


def observer(dictionary: Any) -> Edit:
    """What a session puts at a dictionary's site for captures and edits of its inner places: it changes nothing but by
    these edits, and no gradient at another site."""
    return replace(splice(dictionary, error=True, everywhere=True), label="look on", observes=True)


@dataclass(frozen=True, eq=False)
class Splice(Edit):
    """The edit of `splice`.

    Attributes:
        owner: the dictionary.
        error: whether the error term is kept.
        observes: whether it stands there for its inner places alone.
    """

    owner: Any = None
    error: bool = False
    observes: bool = False

    @property
    def reads(self) -> Sequence[Site]:
        """Other sites that it reads."""
        return [*self.owner.reads, *super().reads]

    @property
    def places(self) -> list[Inner]:
        """The places inside."""
        owner = self.owner
        return [owner.input, owner.latents, owner.reconstruction, *([owner.error] if self.error else [])]

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        """As every edit. Inner places are visited at all tokens, whichever of them the edit is narrowed to: where it
        puts nothing, the dictionary looks on."""
        here, site = (x if moment.before is None else moment.before, x), self.owner.site
        read_there = here if site == self.site else moment.notes.get(site)
        if read_there is None:
            raise BadInput(
                f"{self}: {site}, which the transcoder reads, is not computed before this place: it lies "
                "after it, or before the start of the run"
            )
        came, read = read_there
        moment = replace(moment, before=came, notes=moment.notes | {site: (came, read)})
        if moment.inside is not None:
            read = moment.inside.visit(self.owner.input, read, moment=moment)
        new, change = self._put(x, read, moment)
        if change is not None:
            x = torch.where(spread(self._reached(x, moment), x, 1), x, x + change)
        return super(Splice, replace(self, fn=lambda *_: new)).apply(x, moment)

    def _put(self, x: Float[Tensor, "batch pos *d"], read: Tensor, moment: Moment) -> tuple[Tensor, Tensor | None]:
        """What is put there, and by how much edits inside change it (None: by nothing)."""
        owner, inside, grad = self.owner, moment.inside, torch.is_grad_enabled()
        check_whole(owner, moment, str(self))
        rebuilt, error = owner.reconstruction, owner.error
        if inside is not None and not self.error and inside.asked(error):
            raise BadInput(f"{self} loses the error, so there is no {error}: make it with error=True")
        seen = inside is not None and (inside.asked(rebuilt) or inside.asked(error))
        passing = owner.passing(read.flatten(2), moment)
        self._visit_latents(passing, moment)
        change = passing.change()
        if change is not None:
            change = change.reshape(x.shape)
        if self.error and not seen and (self.observes or not grad):
            return (x, None) if change is None else ((x.float() + change).to(x.dtype), change.to(x.dtype))
        clean = passing.clean().reshape(x.shape)
        made = (clean if change is None else clean + change).to(x.dtype)
        clean = clean.to(x.dtype)
        whole = made if inside is None else inside.visit(rebuilt, made, moment=moment)
        if self.error:
            left = (x - clean) if self.observes else (x - clean).detach()
            whole = whole + (left if inside is None else inside.visit(error, left, moment=moment))
        if self._written(moment):
            return whole, whole - (x if self.error else clean)
        if self.error:
            whole = _with_gradient(x, whole) if grad else x
        return whole, None if change is None else change.to(x.dtype)

    def _visit_latents(self, passing: Any, moment: Moment) -> None:
        """Let edits act on the latents."""
        place, inside = self.owner.latents, moment.inside
        if inside is None or not inside.asked(place):
            return
        columns = inside.columns(place)
        before = passing.latents(columns)
        if self.observes and not self._written(moment):
            before = before.detach()  # read by nothing else: gradients elsewhere stay the model's own
        # what is captured is a tensor of its own, so that its gradient is that of what is written alone
        seen = before.view_as(before) if before.requires_grad else before
        after = inside.visit(place, seen, moment=moment)
        if after is not before:
            passing.changes.append((columns, after - before))

    def _written(self, moment: Moment) -> bool:
        """Whether a place inside is edited, or one of an earlier layer that writes here as well."""
        inside, owner = moment.inside, self.owner
        places = (owner.latents, owner.reconstruction, owner.error, *getattr(owner, "earlier_latents", ()))
        return inside is not None and any(map(inside.written, places))


def _with_gradient(x: Tensor, new: Tensor) -> Tensor:
    """x to the last bit, with the gradient of another tensor that is equal but for rounding."""
    return x.detach() + (new - new.detach())
