"""Directions that a study steers with beside its latent: by a method of `directions.METHODS`, or from a file."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import METHODS, Direction, Directions
from ..directions.layers import same_stream
from ..errors import BadInput
from ..reading import existing
from .context import Context

ANY = "any"  # a random direction: what does any direction of this length do?


def named(context: Context, name: str) -> Float[Tensor, "d_model"]:
    """The direction at the study's site: what a method finds on the pairs of the search, or what a file holds.

    Raises:
        BadInput: a file that has no direction at the site, or several. BadFile, Mismatch: as `Directions.load`.
    """
    site, config = context.dictionary.site, context.config
    if ("direction", name) not in context.memory:
        if name == ANY:
            draw = torch.Generator().manual_seed(config.seed)
            found = torch.randn(context.model.cfg.d_model, generator=draw)
        elif name in METHODS and existing(name) is None:
            search = context.pairs[0]
            given: dict[str, Any] = {"method": name, "at": "mean", "paired": True, "seed": config.seed}
            found = Direction.fit(context.model, search.positive, search.negative, site, **given).vector
        else:
            found = _of_file(context, name)
        context.memory["direction", name] = found.float()
    direction: Float[Tensor, "d_model"] = context.memory["direction", name]
    return direction


def _of_file(context: Context, name: str) -> Float[Tensor, "d_model"]:
    site = context.dictionary.site
    every = Directions.load(name, context.model)
    found = [one for one in every if same_stream(one.site, site, context.model.cfg.n_layers)]
    if len(found) != 1:
        known = ", ".join(dict.fromkeys(str(one.site) for one in every))
        raise BadInput(f"{name} has {len(found)} directions at {site}, where this study steers; it has them at {known}")
    found[0].check(context.model)
    return found[0].vector
