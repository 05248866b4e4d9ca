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
    at `site_out` by what it makes of `site`.

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
        return [] if self.owner.site == self.owner.site_out else [self.owner.site]

    @property
    def places(self) -> list[Inner]:
        """The places inside."""
        owner = self.owner
        return [owner.input, owner.latents, owner.reconstruction, *([owner.error] if self.error else [])]

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        """As every edit. Inner places are visited at all tokens, whichever of them the edit is narrowed to: where it
        puts nothing, the dictionary looks on."""
        here = (x if moment.before is None else moment.before, x)
        read_there = moment.notes.get(self.owner.site) if self.reads else here
        if read_there is None:
            raise BadInput(
                f"{self}: {self.owner.site}, which the transcoder reads, is not computed before this place: it lies "
                "after it, or before the start of the run"
            )
        came, read = read_there
        moment = replace(moment, before=came, notes=moment.notes | {self.owner.site: (came, read)})
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
        latents, rebuilt, error = owner.latents, owner.reconstruction, owner.error
        if inside is None or not any(map(inside.asked, (latents, rebuilt, error))):
            if self.error and not grad:
                return x, None
            made = self._rebuilt(owner.encode(read.flatten(2)), read, x)
            return (_with_gradient(x, made) if self.error else made), None
        if not self.error and inside.asked(error):
            raise BadInput(f"{self} loses the error, so there is no {error}: make it with error=True")
        written = any(map(inside.written, (latents, rebuilt, error)))
        codes = owner.encode(read.flatten(2))
        before = codes.dense()
        if self.observes and not written:
            before = before.detach()  # read by nothing else: gradients elsewhere stay the model's own
        after = inside.visit(latents, before, moment=moment)
        if self.error and not grad and not any(map(inside.asked, (rebuilt, error))):
            if after is before:
                return x, None
            change = (after - before) @ owner.W_dec.to(after)
            change = (change if codes.norm is None else change * codes.norm.scale).reshape(x.shape)
            return (x.float() + change).to(x.dtype), change.to(x.dtype)
        whole, clean = self._whole(x, read, (before, after), codes, moment)
        if self.error and not written:
            return (_with_gradient(x, whole) if grad else x), None
        return whole, (whole - (x if self.error else clean) if written else None)

    def _whole(
        self, x: Tensor, read: Tensor, latents: tuple[Tensor, Tensor], codes: Any, moment: Moment
    ) -> tuple[Tensor, Tensor]:
        """Reconstruction and error together, and the reconstruction without edits."""
        owner, inside = self.owner, moment.inside
        assert inside is not None
        before, after = latents
        rebuilt = inside.visit(owner.reconstruction, self._rebuilt(_codes(after, codes), read, x), moment=moment)
        clean = self._rebuilt(_codes(before, codes), read, x)
        if not self.error:
            return rebuilt, clean
        error = (x - clean) if self.observes else (x - clean).detach()
        return rebuilt + inside.visit(owner.error, error, moment=moment), clean

    def _rebuilt(self, codes: Any, read: Tensor, x: Tensor) -> Tensor:
        made: Tensor = self.owner.decode(codes, like=read.flatten(2))
        return made.reshape(x.shape).to(x.dtype)


def _with_gradient(x: Tensor, new: Tensor) -> Tensor:
    """x to the last bit, with the gradient of another tensor that is equal but for rounding."""
    return x.detach() + (new - new.detach())


def _codes(dense: Float[Tensor, "batch pos width"], like: Any) -> Any:
    """Every latent as a code, so that gradients reach silent ones, too."""
    indices = torch.arange(dense.shape[-1], device=dense.device).expand(dense.shape)
    return like._replace(values=dense, indices=indices)
