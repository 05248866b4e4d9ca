"""What each latent does, measured: a run for each, everything behind it computed anew."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...data import TokenPairs
from ...dictionaries import Dictionary
from ...errors import BadInput
from ...models import Model
from ...models.numbers import whole_numbers
from ...patching.scoring import MetricLike, one_metric
from ...progress import Meter
from ...results import analysis
from .scores import By, LatentScores, Sums
from .states import Other, States, states


@analysis
def exact_latents(
    model: Model,
    pairs: TokenPairs,
    dictionary: Dictionary,
    latents: list[int] | Int[Tensor, "nodes"] | None = None,
    *,
    metric: MetricLike | None = None,
    other: Other = "zero",
    by: By = "latent",
    batch_size: int = 16,
    quiet: bool = False,
) -> LatentScores:
    """By how much the metric falls where a latent alone has its other value: one run a latent and pair, from the layer
    of the dictionary on. The error term, and the other latents, keep theirs.

    Args:
        latents: of which to measure (-1: the dictionary's error); None: all that are active. With by="token", at all
            tokens; a tensor has flat indices of `LatentScores.values` instead.
        other, by: as in `latent_scores`. batch_size: runs at once.

    Raises:
        UnknownName: no such latent. Others as `latent_scores`.
    """
    name, function = one_metric(metric, pairs)
    sums = Sums.of(model, pairs, by)
    width = dictionary.width + 1
    places = len(sums.tokens) or 1
    wanted = None if latents is None else _wanted(latents, width, places)
    with Meter("ablate latents", len(pairs), "pairs", quiet=quiet) as meter:
        for one in states(model, pairs, dictionary, function, other, 1):
            sums.add(one, _measured(one, wanted, by, batch_size))
            meter.advance(1)
    found = sums.scores(len(pairs), "exact", name, dictionary)
    if wanted is not None:
        flat = torch.zeros(places * width, dtype=torch.bool)
        flat[wanted] = True
        found.present.view(-1)[~flat] = False
    return found


def _wanted(latents: list[int] | Tensor, width: int, places: int) -> Int[Tensor, "nodes"]:
    if isinstance(latents, Tensor):
        flat = latents.long().flatten()
    else:
        ids = whole_numbers(latents, "latents")
        at = torch.as_tensor(ids).long().flatten() % width
        if any(not -1 <= one < width - 1 for one in torch.as_tensor(ids).flatten().tolist()):
            raise BadInput(f"latents are 0 to {width - 2}, and -1 for the error")
        flat = (torch.arange(places)[:, None] * width + at).flatten()
    if not len(flat):
        raise BadInput("no latent given; name one at least")
    return flat


def _measured(one: States, wanted: Tensor | None, by: By, batch_size: int) -> Float[Tensor, "1 pos node"]:
    """Of one pair; a sum over tokens stands at the first one."""
    change, error = one.change[0], one.error_change[0]
    length, width = len(change), change.shape[1] + 1
    differs = torch.cat([change != 0, (error != 0).any(-1, keepdim=True)], -1)
    differs = differs if by == "token" else differs.any(0, keepdim=True)
    index = differs.flatten().nonzero()[:, 0].cpu()
    if wanted is not None:
        index = index[torch.isin(index, wanted.cpu())]
    found = torch.zeros(length, width, dtype=torch.float64)
    for some in index.split(batch_size) if len(index) else ():  # a latent that does not change here does nothing
        changes = torch.stack(
            [_change(one, int(at) // width if by == "token" else None, int(at) % width) for at in some]
        )
        found.view(-1)[some] = one.fallen(0, changes).cpu()
    return found[None]


def _change(one: States, position: int | None, node: int) -> Float[Tensor, "pos d_out"]:
    """What one node changes at `site_out`: at a token, or at all."""
    latents = one.change.shape[2]
    whole = one.error_change[0] if node == latents else one.change[0, :, node, None] * one.rows[node]
    if position is None:
        return whole
    alone = torch.zeros_like(whole)
    alone[position] = whole[position]
    return alone
