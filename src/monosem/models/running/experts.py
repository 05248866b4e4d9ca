"""Captures and edits of what single experts compute, which no module of the model returns."""

from functools import partial
from typing import Any

from torch import Tensor

from ..places import experts
from ..places.points import Point
from ..places.sites import Site


def plan_experts(session: Any, site: Site, place: Point, write: bool) -> None:
    """The neurons ("neurons") or outputs of the chosen experts are computed beside the native module.

    `session` is the `Session` that asks. A write adds to the output of the module what weighted experts change by.
    """
    given: dict[int, Tensor] = {}

    def remember(item: int, value: Tensor) -> Tensor:
        given[item] = value
        return value

    def action(out: Tensor) -> Tensor:
        x, indices, weights = (given.pop(item) for item in range(3))
        x, of_neurons = x.reshape(-1, x.shape[-1]), place.role == "neurons"
        value = (experts.neurons if of_neurons else experts.outputs)(place.module, x, indices)
        new = session.visit(site, value.unflatten(0, session.moment.mask.shape))
        if not write:
            return out
        change = new.flatten(0, 1) - value.detach()
        change = experts.written(place.module, change, indices) if of_neurons else change
        return out + (change * weights[..., None]).sum(1).to(out.dtype).reshape(out.shape)

    for item in range(3):
        session.actions[place.module, "in", item].append(partial(remember, item))
    session.actions[place.module, "out", 0].append(action)
