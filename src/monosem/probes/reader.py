"""Reading the states of texts from a model."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..activations import Skipper, SkipRule
from ..errors import BadInput, UnknownName
from ..models import Model, Run, Site, SiteLike, TokenBatch, identity
from ..models.running.run import refuse_rows
from ..progress import Meter
from .rows import Place, Position, Rows


def read_rows(
    model: Model,
    texts: Sequence[str],
    labels: Sequence[Any],
    sites: SiteLike | Sequence[SiteLike] = "resid_post",
    *,
    positions: Position | Sequence[Position] = "last",
    groups: Sequence[Any] | None = None,
    suffix: str = "",
    skip: SkipRule | None = None,
    batch_size: int = 32,
    quiet: bool = True,
) -> Rows:
    """States of texts at sites and positions: what is probed. Every pass reads all of them, and ends after the last.

    Args:
        labels: true for the positive class, one a text.
        sites: one, several, or a name without a layer ("resid_post") for every layer; a dictionary's `latents`, too.
        positions: "last" token, "mean" over the tokens that count, an index (-2 is the last but one), or "all" alone:
            every token, for probes of whole texts.
        groups: names or numbers of what must not be split: pairs, templates, topics.
        suffix: text put after each one, such as " Is this true? Answer:", so that the model itself judges (a prompted
            probe; it costs these tokens).
        skip: which tokens do not count; default: the first, special ones, and norm outliers.

    Raises:
        BadInput: no texts, another number of labels, positions that a text does not have.
        UnknownName: a site that the model does not have.
    """
    refuse_rows(model, "reading states")
    chosen = _sites(model, sites)
    at = [positions] if isinstance(positions, int | str) else list(positions)
    if not at or len(set(at)) != len(at) or ("all" in at and len(at) > 1):
        raise BadInput(f"positions are 'last', 'mean' and numbers, each once, or 'all' alone; got {positions!r}")
    if isinstance(texts, str) or not len(texts) or len(texts) != len(labels):
        raise BadInput(f"give a list of texts and one label a text; got {len(texts)} and {len(labels)}")
    tokens, skipper = model.tokens([text + suffix for text in texts]), Skipper.of(model, chosen, skip)
    places = [Place((site,), one) for one in at for site in chosen]
    x, mask = _states(model, tokens, chosen, at, skipper, batch_size, quiet)
    config = {"tokens": skipper.summary(), "suffix": suffix, "made_on": identity(model)}
    lengths = tokens.lengths.cpu()
    return Rows(
        x, torch.as_tensor(labels), tuple(places), groups, tuple(texts), lengths, mask, None, model.name, config
    )


def _states(
    model: Model,
    tokens: TokenBatch,
    sites: list[Site],
    at: list[Position],
    skipper: Skipper,
    batch_size: int,
    quiet: bool,
) -> tuple[Tensor, Tensor | None]:
    """States at each place, in the order of the texts; and for "all", which tokens count."""
    order = tokens.lengths.argsort(stable=True)  # little is padded
    parts: dict[Place, list[Tensor]] = {Place((site,), one): [] for one in at for site in sites}
    masks = []
    with Meter("states", total=len(tokens), unit="texts", quiet=quiet) as meter:
        for index in order.split(batch_size):
            run = model.run(tokens[index], capture=sites, logits=False)
            masks.append(_append(parts, run, model, sites, at, skipper))
            meter.advance(len(index))
    back = order.argsort()
    x = torch.stack([_stacked(part)[back] for part in parts.values()])
    return x, _stacked(masks)[back] if at == ["all"] else None


def _append(
    parts: dict[Place, list[Tensor]], run: Run, model: Model, sites: list[Site], at: list[Position], skipper: Skipper
) -> Tensor:
    """The states of one batch, to the lists of their places; and which tokens count."""
    seen = {str(site): run[site] for site in sites}
    counted = skipper.counted(run.tokens, seen)
    if ("mean" in at or "all" in at) and not bool(counted.any(1).all()):
        raise BadInput("a text has no token that counts: all are first, special or outliers in norm")
    if "last" in at:
        skipper.check_last(model, run.tokens, seen, ("not finite",))
    for position in at:
        for site in sites:
            value = run[site].flatten(2) if run[site].ndim > 3 else run[site]
            parts[Place((site,), position)].append(_at(value, position, run.tokens, counted).cpu())
    return counted.cpu()


def _at(value: Tensor, position: Position, tokens: TokenBatch, counted: Tensor) -> Tensor:
    if position == "all":
        return value.float()
    if position == "mean":
        return (value.double() * counted[..., None]).sum(1).div(counted.sum(1, keepdim=True)).float()
    lengths = tokens.lengths.to(value.device)
    offset = -1 if position == "last" else int(position)
    index = offset + lengths if offset < 0 else torch.full_like(lengths, offset)
    if bool(((index < 0) | (index >= lengths)).any()):
        raise BadInput(f"the shortest text has {int(lengths.min())} tokens, so that there is no position {position}")
    columns = index + tokens.last.to(value.device) + 1 - lengths  # padding on the left moves them
    return value[torch.arange(len(value), device=value.device), columns].float()


def _stacked(parts: list[Tensor]) -> Tensor:
    """Batches one after the other; where they have tokens, padded to the same number."""
    if parts[0].ndim == 2 and parts[0].dtype != torch.bool:
        return torch.cat(parts)
    size = max(one.shape[1] for one in parts)
    return torch.cat(
        [torch.nn.functional.pad(one, (*(0, 0) * (one.ndim - 2), 0, size - one.shape[1])) for one in parts]
    )


def _sites(model: Model, sites: SiteLike | Sequence[SiteLike]) -> list[Site]:
    given: Iterable[Any] = [sites] if isinstance(sites, str | Site) else sites
    if isinstance(sites, tuple) and len(sites) == 2 and isinstance(sites[1], int):
        given = [sites]
    chosen = []
    for one in given:
        name = str(one)
        layered = isinstance(one, str) and "." not in name and _is_layered(name)
        chosen += [model.site((name, layer)) for layer in model.layers_with(name)] if layered else [model.site(one)]
    if not chosen or len(set(chosen)) != len(chosen):
        raise BadInput(f"give at least one site, and each once; got {', '.join(map(str, chosen)) or 'none'}")
    return chosen


def _is_layered(name: str) -> bool:
    try:
        return Site.parse((name, 0)).layer is not None
    except UnknownName:
        return False
