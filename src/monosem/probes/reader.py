"""Reading the states of texts from a model."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..activations import Skipper, SkipRule
from ..directions.positions import Offset, Selector
from ..directions.reading import Reader
from ..errors import BadInput, UnknownName
from ..models import Model, Site, SiteLike, identity
from ..models.running.run import refuse_rows
from ..progress import Meter
from .rows import Place, Position, Rows


def read_rows(
    model: Model,
    texts: Sequence[str],
    labels: Sequence[Any],
    sites: SiteLike | Sequence[SiteLike] = "resid_post",
    *,
    positions: Position | Selector | Sequence[Position | Selector] = "last",
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
        positions: tokens as directions name them: "last", "mean" over the tokens that count, an index, "mean:ROLE",
            "template", "regex:...", a `Selector`; several of these; or "all" alone: every token, for probes of whole
            texts.
        groups: names or numbers of what must not be split: pairs, templates, topics.
        suffix: text put after each one, such as " Is this true? Answer:", so that the model itself judges (a prompted
            probe; it costs these tokens).
        skip: which tokens do not count; default: the first, special ones, and norm outliers. A token that is named is
            read also where it is an outlier.

    Raises:
        BadInput: no texts, another number of labels, positions that a text does not have.
        UnknownName: a site that the model does not have.
    """
    chosen = _sites(model, sites)
    at = list(positions) if isinstance(positions, list | tuple) else [positions]
    if not at or len(set(map(str, at))) != len(at) or ("all" in at and len(at) > 1):
        raise BadInput(f"positions are given once each, or 'all' alone; got {positions!r}")
    if isinstance(texts, str) or not len(texts) or len(texts) != len(labels):
        raise BadInput(f"give a list of texts and one label a text; got {len(texts)} and {len(labels)}")
    given = [text + suffix for text in texts]
    with Meter("states", total=len(given), unit="texts", quiet=quiet) as meter:
        if at == ["all"]:
            x, mask, tokens = _every_token(model, given, chosen, skip, batch_size, meter)
            places = [Place((site,), "all") for site in chosen]
        else:
            reader = Reader.anywhere(model, chosen, at, skip, batch_size)
            reader.not_read = ("not finite",)  # an outlier is a state, too
            places = [Place((one.site,), _position(one.at)) for one in reader.places]
            x, mask, tokens = reader.rows(given, meter, torch.float32), None, reader.summary()
            if reader.refused:
                raise BadInput(next(iter(reader.refused.values())))
    config = {"tokens": tokens, "suffix": suffix, "made_on": identity(model)}
    lengths = model.tokens(given).lengths.cpu()
    return Rows(
        x, torch.as_tensor(labels), tuple(places), groups, tuple(texts), lengths, mask, None, model.name, config
    )


def _position(at: Selector) -> Position:
    """As a place has it: a number, or the text of the selector."""
    return at.index if isinstance(at, Offset) and at.index != -1 else str(at)


def _every_token(
    model: Model, texts: list[str], sites: list[Site], skip: SkipRule | None, batch_size: int, meter: Meter
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """States of every token, `places n pos d`, and which of them count (at all of the sites)."""
    refuse_rows(model, "reading states")
    tokens, skipper = model.tokens(texts), Skipper.of(model, sites, skip)
    order = tokens.lengths.argsort(stable=True)  # little is padded
    states, masks = [list[Tensor]() for _ in sites], list[Tensor]()
    for index in order.split(batch_size):
        run = model.run(tokens[index], capture=sites, logits=False)
        counted = skipper.counted(run.tokens, {str(site): run[site] for site in sites})
        if not bool(counted.any(1).all()):
            raise BadInput("a text has no token that counts: all are first, special or outliers in norm")
        masks.append(counted.cpu())
        for held, site in zip(states, sites):
            held.append(run[site].flatten(2).float().cpu())
        meter.advance(len(index))
    back = order.argsort().cpu()
    return torch.stack([_padded(held)[back] for held in states]), _padded(masks)[back], skipper.summary()


def _padded(parts: list[Tensor]) -> Tensor:
    """Batches one after the other, with the same number of tokens."""
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
