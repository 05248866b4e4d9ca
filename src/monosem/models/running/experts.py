"""Captures and edits of what single experts compute, which no module of the model returns."""

from functools import partial
from typing import Any

from torch import Tensor

from ...errors import BadInput
from ..places import experts
from ..places.points import Point
from ..places.sites import Site


def plan_experts(session: Any, site: Site, place: Point, write: bool) -> None:
    """The neurons ("neurons") or outputs of the chosen experts are computed beside the native module.

    `session` is the `Session` that asks. A write adds to the output of the module what weighted experts change by.
    """
    if place.role == "scaled":
        return _plan_scaled(session, site, place, write)
    native: Any = place.module if place.role != "neurons" else experts.batched(place.module)
    if place.role == "neurons" and native.down_proj.element_size() < 2:  # fp8, MXFP4: numbers without their scales
        raise BadInput(
            f"{site}: the experts of {session.model.name} stay quantised, and their neurons are computed inside; read "
            "expert_out, or load the model unpacked (dequantize=True in its quantization config)"
        )
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
        change = new.flatten(0, 1) - value  # on the graph as well: the output holds what came before already
        change = experts.written(place.module, change, indices) if of_neurons else change
        return out + (change * weights[..., None]).sum(1).to(out.dtype).reshape(out.shape)

    for item in range(3):
        session.actions[place.module, "in", item].append(partial(remember, item))
    session.actions[place.module, "out", 0].append(action)


def _plan_scaled(session: Any, site: Site, place: Point, write: bool) -> None:
    """Of experts that are all given each token times its weight, the outputs of those with the largest weights.

    The module sees, and returns, the rows of one expert after another's; what is given to the others is 0.
    """
    chosen: list[Tensor] = []

    def remember(rows: Tensor) -> Tensor:
        sizes = rows.unflatten(0, (place.module.num_experts, -1)).float().norm(dim=-1)
        chosen[:] = [sizes.T.topk(session.model.config.num_experts_per_tok).indices]
        return rows

    def action(out: Tensor) -> Tensor:
        by_token = out.unflatten(0, (place.module.num_experts, -1)).transpose(0, 1)
        index = chosen[0][..., None].expand(-1, -1, out.shape[-1])
        value = by_token.gather(1, index)
        new = session.visit(site, value.unflatten(0, session.moment.mask.shape))
        if not write:
            return out
        return by_token.scatter(1, index, new.flatten(0, 1)).transpose(0, 1).flatten(0, 1)

    session.actions[place.module, "in", 0].append(remember)
    session.actions[place.module, "out", 0].append(action)
