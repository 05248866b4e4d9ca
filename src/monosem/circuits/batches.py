"""Some pairs made ready: what every node writes in the clean run, and what is written in its place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput
from ..models import Model
from ..patching.corruptions import PROMPT, Corruption, Side
from ..patching.scoring import Metric
from .graph import EVERYWHERE, Graph, Part
from .slopes import Measure, Slopes, slopes
from .wiring import Wiring, Wrote


@dataclass(frozen=True, eq=False)
class Batch:
    """Some pairs with both sides.

    Attributes:
        clean: what every node writes in the clean run. other: what is written instead: of the corrupted run, or values.
        other_logits: of the run in which nothing is kept, the lower end of every scale.
        at: the place (of the graph's) that each token belongs to; -1 for none.
        is_run: whether `other` is a run.
    """

    wiring: Wiring
    pairs: TokenPairs
    metric: Metric
    clean: Wrote
    other: Wrote
    clean_logits: Float[Tensor, "pairs vocab"]
    other_logits: Float[Tensor, "pairs vocab"]
    at: Int[Tensor, "pairs pos"]
    is_run: bool

    def measure(self, times: int = 1) -> Measure:
        """The metric of so many runs of each pair, `times*pairs`."""
        rows = [*range(len(self.pairs))] * times
        pairs, clean = (self.pairs, self.clean_logits) if times == 1 else (self.pairs[rows], self.clean_logits[rows])

        def number(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows"]:
            return self.metric(logits, pairs, clean)

        return number

    def ends(self) -> Float[Tensor, "2"]:
        """The metric of the clean run and of the one in which nothing is kept, summed over pairs, on the CPU."""
        both = (self.clean_logits, self.other_logits)
        return torch.stack([self.metric(one, self.pairs, self.clean_logits).double().sum().cpu() for one in both])

    def embeds(self, shares: list[float]) -> Float[Tensor, "steps pairs pos d_model"]:
        """What enters the first block, that share of the way from clean (0) to the other side (1)."""
        clean, other = (side.inner[self.wiring.graph.writes[0]] for side in (self.clean, self.other))
        return torch.stack([clean + share * (other - clean) for share in shares])

    def slopes(self, shares: list[float], **options: Any) -> Slopes:
        """Gradients of the metric in runs that enter the first block between the two sides."""
        return slopes(self.wiring, self.pairs.clean, self.embeds(shares), self.measure(len(shares)), **options)

    @cached_property
    def keep(self) -> Bool[Tensor, "pairs pos"]:
        """The tokens at which anything may differ: real ones with a place, where some node writes something else."""
        real = self.pairs.clean.mask & (self.at >= 0)
        if not self.is_run or self.wiring.model.looks_ahead:
            return real
        reached = torch.zeros_like(real)
        for part, clean in self.clean.inner.items():
            reached |= (clean != self.other.inner[part]).flatten(2).any(-1)
        return real & reached

    @cached_property
    def token_places(self) -> Int[Tensor, "token"]:
        """The place of each kept token."""
        return self.at[self.keep]

    def differences(self, *, tangent: bool) -> Float[Tensor, "source token d_model"]:
        """What every node would write less what it writes in the clean run, at the kept tokens."""
        wiring, keep = self.wiring, self.keep
        parts = [wiring.difference(part, self.clean, self.other, keep, tangent=tangent) for part in wiring.graph.writes]
        return torch.cat(parts)

    def contract(
        self,
        differences: Float[Tensor, "source token d_model"],
        slope_of: Callable[[Part], Float[Tensor, "slot token d_model"]],
    ) -> Float[Tensor, "place source slot"]:
        """Σ over tokens of difference · slope for every edge, on the CPU in float64."""
        graph = self.wiring.graph
        scores = torch.zeros(graph.shape, dtype=torch.float64)
        chosen = [self.token_places == place for place in range(graph.shape[0])]
        for part in graph.reads:
            slope, count = slope_of(part), self.wiring.visible(part)
            for place, where in enumerate(chosen):
                of, by = (differences[:count], slope) if graph.places == EVERYWHERE else (
                    differences[:count, where], slope[:, where]
                )  # fmt: skip
                scores[place, :count, part.range] = (of.flatten(1) @ by.flatten(1).T).double().cpu()
        return scores


class Batches:
    """All pairs, some at a time.

    Args:
        at_once: pairs of one batch. spans: places of the graph: a list of position names of the pairs, "positions" for
            one place a token position, or None.
    """

    def __init__(
        self,
        model: Model,
        pairs: TokenPairs,
        graph: Graph,
        metric: Metric,
        corruption: Corruption | None = None,
        at_once: int = 8,
    ):
        if at_once < 1:
            raise BadInput(f"batch_size counts pairs, at least 1, not {at_once}")
        self.wiring, self.pairs, self.metric = Wiring(model, graph), pairs, metric
        self.corruption, self.at_once = corruption or PROMPT, at_once
        self.places = places_of(pairs, graph)
        sites = [self.wiring.sent(part) for part in graph.writes]
        self.sides = None if corruption is None else self.corruption.sides(model, pairs, sites)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.pairs), self.at_once):
            yield self.batch(slice(first, min(first + self.at_once, len(self.pairs))))

    def batch(self, rows: slice) -> Batch:
        wiring, model = self.wiring, self.wiring.model
        pairs, at = self.pairs[rows].to(model.device), self.places[rows].to(model.device)
        at = at[:, : pairs.clean.ids.shape[1]]  # taking rows trims padding
        clean, clean_logits = wiring.run(pairs.clean)
        if self.sides is None:
            other, other_logits = wiring.run(pairs.corrupted, given=True)
            return Batch(wiring, pairs, self.metric, clean, other, clean_logits, other_logits, at, True)
        held: dict[Part, list[Tensor]] = {part: [] for part in wiring.graph.writes}
        for row in range(len(pairs)):
            for part, value in self._row(self._side(rows.start + row), clean, pairs, row).items():
                held[part].append(value)
        built = wiring.built({part: torch.stack(values) for part, values in held.items()})
        ends = torch.arange(len(pairs), device=model.device), pairs.clean.last
        other_logits = model.unembed(built.streams[wiring.end][ends])
        return Batch(
            wiring, pairs, self.metric, clean, built, clean_logits, other_logits, at, self.corruption.is_run
        )  # fmt: skip

    def _side(self, row: int) -> Side:
        assert self.sides is not None
        sides = self.sides(row)
        if len(sides) != 1:
            raise BadInput(
                f"a circuit has one other side a pair, and {self.corruption.label} draws {len(sides)}: use samples=1"
            )
        return sides[0]

    def _row(self, side: Side, clean: Wrote, pairs: TokenPairs, row: int) -> dict[Part, Tensor]:
        """What is written instead of one pair's clean values; on padding, the clean values."""
        real, wiring = pairs.clean.mask[row], self.wiring
        instead = None if side.values is not None else wiring.run(side.tokens, side.edits)[0]
        if instead is None:
            assert side.values is not None
            whole = [part for part in wiring.graph.writes if part.kind != "unit"]
            before = {wiring.sent(part): wiring.total(part, clean.inner) for part in whole}
            before |= {units.site: clean.given[units.site] for units in wiring.graph.units}
            held = {site: side.values(site, value[row][real]).to(value)[None] for site, value in before.items()}
            put = wiring.inner(held.__getitem__)
        else:
            put = {part: value[:, side.tokens.mask[0]] for part, value in instead.inner.items()}
        written = {}
        for part in wiring.graph.writes:
            written[part] = clean.inner[part][row].clone()
            written[part][real] = put[part][0]
        return written


def places_of(pairs: TokenPairs, graph: Graph) -> Int[Tensor, "pairs pos"]:
    """The place of the graph that each token belongs to; -1 for tokens of none.

    Raises:
        BadInput: a graph with one place a position and prompts of different lengths, or a place that no span names.
    """
    mask = pairs.clean.mask
    if graph.places == EVERYWHERE:
        return torch.where(mask, 0, -1)
    if all(place.isdecimal() for place in graph.places):
        if pairs.clean.padded or mask.shape[1] != len(graph.places):
            lengths = sorted(set(pairs.clean.lengths.tolist()))
            raise BadInput(
                f"the graph has {len(graph.places)} positions, and the prompts {lengths} "
                "tokens: one place a position needs prompts of one length; name spans of the pairs instead"
            )
        return torch.arange(mask.shape[1]).expand(mask.shape).to(mask.device)
    held = torch.full_like(mask, len(graph.places) - 1 if graph.places[-1] == "other" else -1, dtype=torch.long)
    for number, name in enumerate(graph.places):
        if name in pairs.spans:
            rows = torch.arange(len(pairs), device=mask.device)
            columns = mask.long().argmax(-1) + pairs.spans[name].to(mask.device) % pairs.clean.lengths.to(mask.device)
            held[rows, columns] = number
        elif name != "other":
            raise BadInput(f"the pairs have no span {name!r}; they have {', '.join(pairs.spans) or 'none'}")
    return torch.where(mask, held, -1)


def check_apart(metric: str, clean: float, corrupted: float) -> None:
    """Raises `BadInput` where the metric does not tell clean and corrupted runs apart, so that there is no scale."""
    if not abs(clean - corrupted) > 1e-6 * max(1.0, abs(clean), abs(corrupted)):
        raise BadInput(
            f"{metric} is {clean:.4g} on clean and {corrupted:.4g} on corrupted prompts: nothing to explain; take "
            "another metric, or corrupted prompts that change the answer"
        )
