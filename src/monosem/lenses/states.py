"""Reading states out into token distributions, without ever holding the vocabulary for more than a few cells.

Every lens is a map from a state to the basis of the last residual stream, followed by the model's own final norm,
unembedding and soft caps. What differs is the map; what is shared is here: `capture` collects the states of one run,
`stream` turns them into distributions a few cells at a time, and keeps only the numbers that were asked for.

A *cell* is one real token of the batch; padding has none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BadInput, UnknownName, did_you_mean
from ..models import Layers, Model, Positions, Site, TokenBatch
from ..models.running.moment import EditLike
from ..models.running.selection import at_positions
from ..progress import Meter

# a state at a site to a state in the basis of the last residual stream
Translate = Callable[[Site, Float[Tensor, "cell d_model"]], Float[Tensor, "cell d_model"]]
Logits = Callable[[slice], Float[Tensor, "part vocab"]]  # the logits of some of the cells

ELEMENTS = 1 << 22  # logits held at once, 16 MB in float32: as fast as more, and it stays in the processor's cache


class Distribution:
    """Token distributions of some cells, in float32; computed when they are first asked for."""

    def __init__(self, logits: Float[Tensor, "part vocab"]):
        self.logits = logits.float()

    @cached_property
    def log(self) -> Float[Tensor, "part vocab"]:
        return self.logits.log_softmax(-1)

    @cached_property
    def probability(self) -> Float[Tensor, "part vocab"]:
        return self.log.exp()

    @cached_property
    def entropy(self) -> Float[Tensor, "part"]:
        return -torch.linalg.vecdot(self.probability, self.log)


@dataclass
class Pair:
    """What a measure sees: the lens's distribution q of some cells, the reference p (the model's own), which cells."""

    lens: Distribution
    reference: Distribution
    part: slice


Measure = Callable[[Pair], Float[Tensor, "part"]]


def entropy(pair: Pair) -> Tensor:
    """H(q) = -Σ q log q, in nats."""
    return pair.lens.entropy


def cross_entropy(pair: Pair) -> Tensor:
    """H(p, q) = -Σ p log q, in nats: what it costs to code the model's prediction with the lens's."""
    return -torch.linalg.vecdot(pair.reference.probability, pair.lens.log)


def kl(pair: Pair) -> Tensor:
    """KL(p‖q) = Σ p (log p - log q), in nats: what the lens lacks of the model's prediction."""
    # the difference first, so that equal distributions give exactly 0
    return torch.linalg.vecdot(pair.reference.probability, pair.reference.log - pair.lens.log)


def js(pair: Pair) -> Tensor:
    """Jensen-Shannon divergence ½ KL(p‖m) + ½ KL(q‖m), m = ½(p + q), in nats: symmetric, between 0 and log 2."""
    # in place, for new arrays of this size cost more than the arithmetic
    mixture = (pair.lens.probability + pair.reference.probability).mul_(0.5)
    own = -torch.linalg.vecdot(mixture, mixture.clamp_min(torch.finfo(torch.float32).tiny).log_())
    return own - 0.5 * (pair.lens.entropy + pair.reference.entropy)


def tv(pair: Pair) -> Tensor:
    """Total variation ½ Σ |p - q|: the largest difference in probability that any set of tokens has; 0 to 1."""
    return 0.5 * (pair.lens.probability - pair.reference.probability).abs_().sum(-1)


def logsumexp(pair: Pair) -> Tensor:
    """log Σ exp(logit), in nats: what turns the lens's logits into log-probabilities."""
    return pair.lens.logits.amax(-1) - pair.lens.log.amax(-1)


def agreement(pair: Pair) -> Tensor:
    """1 where lens and model have the same likeliest token, else 0."""
    return (pair.lens.logits.argmax(-1) == pair.reference.logits.argmax(-1)).float()


MEASURES: dict[str, Measure] = {
    "entropy": entropy,
    "kl": kl,
    "cross_entropy": cross_entropy,
    "js": js,
    "tv": tv,
    "logsumexp": logsumexp,
}
UNITS = {"entropy": "nats", "kl": "nats", "cross_entropy": "nats", "js": "nats", "tv": "", "logsumexp": "nats"}


def log_probability(ids: Int[Tensor, "cell"]) -> Measure:
    """log q of one token a cell, in nats; NaN where the id is negative (there is no such token)."""

    def measure(pair: Pair) -> Tensor:
        mine = ids[pair.part].to(pair.lens.log.device)
        found = pair.lens.log.gather(-1, mine.clamp_min(0)[:, None])[:, 0]
        return found.masked_fill(mine < 0, float("nan"))

    return measure


def rank(ids: Int[Tensor, "cell"]) -> Measure:
    """Place of one token a cell among all tokens: 1 is the likeliest, ties share the better place; NaN as above."""
    of_token = log_probability(ids)

    def measure(pair: Pair) -> Tensor:
        value = of_token(pair)
        return (
            (pair.lens.log > value[:, None])
            .sum(-1, dtype=torch.int32)
            .add(1)
            .float()
            .masked_fill(value.isnan(), float("nan"))
        )

    return measure


def log_mass(ids: Int[Tensor, "token"] | Int[Tensor, "cell token"]) -> Measure:
    """log of the probability that a set of tokens has together, in nats: one set for all cells, or one for each, filled
    up with -1; -inf for an empty set."""

    def measure(pair: Pair) -> Tensor:
        mine = (ids if ids.ndim == 1 else ids[pair.part]).to(pair.lens.log.device)
        if mine.ndim == 1:
            return pair.lens.log[:, mine].logsumexp(-1)
        found = pair.lens.log.gather(-1, mine.clamp_min(0))
        return found.masked_fill(mine < 0, -torch.inf).logsumexp(-1)

    return measure


def renyi(order: float) -> Measure:
    """Rényi entropy log Σ qᵃ / (1 - a) of order a, in nats: 1 is Shannon's, inf is -log max q, 0 is log vocabulary."""
    if order == 1:
        return entropy
    if order == float("inf"):
        return lambda pair: -pair.lens.log.amax(-1)
    return lambda pair: (order * pair.lens.log).logsumexp(-1) / (1 - order)


@dataclass(frozen=True, eq=False)
class Cells:
    """What `stream` kept, on the CPU.

    Shapes: `measures[name]` is `layer cell`; `top_ids` and `top_probabilities` are `layer cell k`, likeliest first.
    """

    measures: dict[Any, Float[Tensor, "layer cell"]]
    top_ids: Int[Tensor, "layer cell k"]
    top_probabilities: Float[Tensor, "layer cell k"]


@torch.no_grad()
def stream(
    lens: Sequence[Logits],
    reference: Logits | Sequence[Logits],
    cells: int,
    vocab: int,
    measures: Mapping[Any, Measure],
    top: int = 0,
    quiet: bool = True,
) -> Cells:
    """Distributions of every layer and cell, in chunks of cells; only the measures and the top tokens are kept.

    Args:
        lens: for each layer, the logits of some cells.
        reference: what they are compared with: one for all layers (the model's prediction), or one for each.
        measures: what to keep, under any names.
        top: how many of the likeliest tokens to keep.
    """
    layers, top = len(lens), min(top, vocab)
    kept = {name: torch.empty(layers, cells) for name in measures}
    ids = torch.empty(layers, cells, top, dtype=torch.long)
    probabilities = torch.empty(layers, cells, top)
    with Meter("read out", layers * cells, "cell", quiet) as meter:
        for part in chunks(cells, vocab):
            shared = None if isinstance(reference, Sequence) else Distribution(reference(part))
            for layer, logits in enumerate(lens):
                other = shared or Distribution(reference[layer](part))  # type: ignore[index]
                pair = Pair(Distribution(logits(part)), other, part)
                for name, measure in measures.items():
                    kept[name][layer, part] = measure(pair).cpu()
                if top:
                    best = pair.lens.log.topk(top)
                    ids[layer, part], probabilities[layer, part] = best.indices.cpu(), best.values.exp().cpu()
                meter.advance(part.stop - part.start)
    return Cells(kept, ids, probabilities)


def chunks(cells: int, vocab: int) -> Iterator[slice]:
    """Slices of cells whose logits are about `ELEMENTS` numbers."""
    size = max(1, ELEMENTS // vocab)
    for start in range(0, cells, size):
        yield slice(start, min(start + size, cells))


def measures_of(names: Iterable[str]) -> dict[str, Measure]:
    """Raises `UnknownName` for one that is not in `MEASURES`."""
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in MEASURES:
            near = did_you_mean(name, MEASURES)
            raise UnknownName(f"unknown measure {name!r}{near or '; known: ' + ', '.join(MEASURES)}")
    return {name: MEASURES[name] for name in names}


# ---------------------------------------------------------------------- states of a run


@dataclass(frozen=True, eq=False)
class States:
    """The states of one run at some sites, of the chosen cells only.

    Attributes:
        tokens: the batch; `chosen`: which of its tokens are cells, `batch pos`.
        by_site: `cell d_model` for each site, in order.
        final: what the unembedding read, after the final norm, `cell d_model`.
    """

    model: Model
    tokens: TokenBatch
    chosen: Bool[Tensor, "batch pos"]
    by_site: dict[Site, Float[Tensor, "cell d_model"]]
    final: Float[Tensor, "cell d_model"]

    def __len__(self) -> int:
        return len(self.final)

    def check_rows(self) -> None:
        """Raises `BadInput` when a prompt has no cell: its mean would be that of nothing."""
        if bool((empty := ~self.chosen.any(1)).any()):
            row = int(empty.nonzero()[0])
            raise BadInput(f"prompt {row} has {int(self.tokens.lengths[row])} tokens and none at these positions")

    def prediction(self, part: slice) -> Float[Tensor, "part vocab"]:
        """The model's own logits."""
        return self.model.unembed(self.final[part], norm=False)

    def lens(self, translate: Translate | None = None) -> list[Logits]:
        """For each site, the logits of some cells, seen through `translate` (None: the logit lens)."""

        def at(site: Site, states: Tensor) -> Logits:
            if translate is None:
                return lambda part: self.model.unembed(states[part])
            return lambda part: self.model.unembed(translate(site, states[part].float()))

        return [at(site, states) for site, states in self.by_site.items()]

    def next_ids(self) -> Int[Tensor, "cell"]:
        """The token that really follows each cell; -1 after the last one of a row."""
        following = torch.full_like(self.tokens.ids, -1)
        both = self.tokens.mask[:, :-1] & self.tokens.mask[:, 1:]
        following[:, :-1] = torch.where(both, self.tokens.ids[:, 1:], -1)
        return following[self.chosen]

    def spread(self, values: Float[Tensor, "layer cell *more"]) -> Float[Tensor, "layer batch pos *more"]:
        """Cells back to their places; NaN (for whole numbers -1) where there is no cell."""
        empty = float("nan") if values.is_floating_point() else -1
        shape = (values.shape[0], *self.chosen.shape, *values.shape[2:])
        out = torch.full(shape, empty, dtype=values.dtype)
        out[:, self.chosen.cpu()] = values
        return out


def capture(
    model: Model,
    x: Any,
    sites: Sequence[Site],
    positions: Positions | None = None,
    edits: EditLike | Iterable[EditLike] = (),
) -> States:
    """One run, stopped before the unembedding.

    Args:
        positions: as in `Edit.at`: token indices in a row (negative from its end), a slice, "last", None for all.

    Raises:
        UnknownName: a site that the model does not have. BadInput: no position was met.
    """
    run = model.run(x, capture=[*sites, "final_norm"], edits=edits, logits=False)
    tokens = run.tokens
    chosen = tokens.mask
    if positions is not None:
        chosen = chosen & at_positions(positions, tokens.positions, tokens.lengths[:, None])
    if not bool(chosen.any()):
        raise BadInput(f"no token at positions {positions!r}; the longest prompt has {int(tokens.lengths.max())}")
    by_site = {site: run[site][chosen.to(run[site].device)] for site in sites}
    return States(model, tokens, chosen, by_site, run["final_norm"][chosen.to(run["final_norm"].device)])


STREAMS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


def sites_at(model: Model, site: str, layers: Layers = None) -> list[Site]:
    """One place in the stream at some layers (see `Model.layers`).

    Raises:
        UnknownName: not a place whose state has the model's width, a layer that is not there, `resid_mid` of parallel
            blocks.
    """
    if site not in STREAMS:
        near = did_you_mean(site, STREAMS) or f"; known: {', '.join(STREAMS)}"
        raise UnknownName(
            f"a lens reads a place of the residual stream by its name without a layer, not {site!r}{near}"
        )
    return [model.site((site, layer)) for layer in model.layers(layers)]
