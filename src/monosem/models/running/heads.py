"""Captures and edits of what each head hands to its output projection's sum, which no module of the model returns."""

from typing import Any

import torch
from torch import Tensor

from ..places.points import Point
from ..places.sites import Site


def plan_result(session: Any, site: Site, place: Point, write: bool) -> None:
    """What each head adds to its projection's output, for the kept heads and positions alone unless it is written.

    `session` is the `Session` that asks. A write goes through the output projection: the sum of what the heads'
    outputs change by is added to it.
    """
    branch = session.model.branch_of(site)
    weight, z_site = branch.weight(), branch.inner

    def remember(whole: Tensor) -> Tensor:
        session.remembered[site] = place.split(whole)
        return whole

    def action(out: Tensor) -> Tensor:
        z, W_O = session.remembered[site], weight
        if session.keep and not write:
            heads = session.keep.heads
            z, W_O = session.keep(z_site, z, session.moment.rows), W_O if heads is None else W_O[list(heads)]
        value = torch.einsum("bthd,hdm->bthm", z, W_O)
        new = session.visit(site, value, cut=not write)
        # through `new` alone, so that gradients reach it
        return new.sum(2) + (out - value.sum(2)).detach() if write else out

    session._add(place, remember, "in")
    session._add(place, action, "out")
