"""Where edits act in a pass: at their sites, or at places inside a dictionary that is spliced in or looks on."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor

from ...errors import BadInput
from ..places.sites import Inner, Site
from .moment import EditLike

Chain = dict[Site, list[EditLike]]


@dataclass
class Acting:
    """Edits by the sites where they act.

    Attributes:
        edits: what the user asked for. chains: these, and the dictionaries that look on, each where the first edit
            inside it stands.
        observed: the sites of those that look on.
        columns: places of latents of which some are visited alone -> which, in this order.
    """

    edits: Chain = field(default_factory=lambda: defaultdict(list))
    chains: Chain = field(default_factory=lambda: defaultdict(list))
    observed: set[Site] = field(default_factory=set)
    columns: dict[Site, Int[Tensor, "n"]] = field(default_factory=dict)

    @classmethod
    def of(cls, edits: Iterable[EditLike], wanted: Iterable[Site], grad: bool) -> Self:
        """Edits of latents act inside their dictionary where it is spliced in, a place inside it is captured or edited,
        there are several (they change the same codes), or it writes elsewhere than it reads. Of its latents, only those
        that they edit are computed, unless all are captured or edited.

        Raises:
            BadInput: a dictionary that is spliced in twice, so that there are two of a place.
        """
        given, acting = list(edits), cls()
        captured = [site for site in wanted if isinstance(site, Inner)]
        of_latents = [edit for edit in given if getattr(edit, "place", None) is not None]
        spliced = [id(owner) for edit in given if (owner := getattr(edit, "owner", None)) is not None]
        places = [site for edit in given if edit not in of_latents and isinstance(site := edit.site, Inner)]
        inner = [*captured, *places]
        for site in (*inner, *(edit.place for edit in of_latents)):  # type: ignore[attr-defined]
            if spliced.count(id(site.owner)) > 1:
                raise BadInput(
                    f"the dictionary of {site} is spliced in twice, so there are two of that place: splice it once"
                )
        within = _within(of_latents, {*spliced, *(id(site.owner) for site in inner)})
        for edit in within:
            if edit.place not in inner:
                acting._narrow(edit.place, edit.latents)
        present = set(spliced)
        for edit in given:
            at = edit.inside(acting.columns.get(edit.place)) if any(edit is other for other in within) else edit  # type: ignore[attr-defined]
            acting.edits[at.site].append(at)
            acting._look_on(at.site, present, further=True)
            acting.chains[at.site].append(at)
        for site in captured:
            acting._look_on(site, present, further=grad)
        return acting

    def _narrow(self, place: Site, latents: Tensor) -> None:
        known = self.columns.get(place)
        every = latents.reshape(-1).cpu() if known is None else torch.cat([known, latents.reshape(-1).cpu()])
        self.columns[place] = every.unique()

    def _look_on(self, site: Site, present: set[int], further: bool) -> None:
        """further: its later outputs change with it, or have a gradient to it."""
        for owner in (site.owner, *(site.also if further else ())) if isinstance(site, Inner) else ():
            if id(owner) not in present:
                present.add(id(owner))
                self.observed.add(owner.site_out)
                self.chains[owner.site_out].append(owner.observer())


def _within(of_latents: list[Any], asked: set[int]) -> list[Any]:
    """The edits of latents that act inside their dictionary."""
    groups = Counter((id(edit.place.owner), getattr(edit, "arm", None)) for edit in of_latents)
    several = {owner for (owner, _), count in groups.items() if count > 1}
    return [edit for edit in of_latents if id(edit.place.owner) in asked | several or isinstance(edit.site, Inner)]
