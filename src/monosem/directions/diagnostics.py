"""How far a direction is to be trusted: what resampled, relabelled and held-out prompts say, and where it lies."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..statistics import EXACT, PERCENTILES, auroc, auroc_bounds

MASSIVE = 8  # dimensions whose share of a vector's square is reported
DRAWS = 1000  # resampled or relabelled sets of prompts


@dataclass(frozen=True, eq=False)
class Blocks:
    """Sums of the rows of small sets of prompts (a pair, a prompt, a whole group): what is drawn again or relabelled.

    Attributes:
        sums: `side block place d`, positive side first. counts: `side block`, rows in each.
        paired: block i of one side belongs to block i of the other. first: how many blocks are of the first half.
    """

    sums: Float[Tensor, "2 block place d"]
    counts: Int[Tensor, "2 block"]
    paired: bool
    first: int = 0

    def __add__(self, other: "Blocks") -> "Blocks":
        sums, counts = (torch.cat(pair, 1) for pair in ((self.sums, other.sums), (self.counts, other.counts)))
        return Blocks(sums, counts, self.paired, self.counts.shape[1])

    def tests(self, seed: int = 0) -> dict[str, Float[Tensor, "places"]]:
        """Of the difference of means at each place.

        - `bootstrap`, `bootstrap_low`: cosine with itself when blocks are drawn again with replacement: mean, and what
          97.5 % of the draws exceed.
        - `p`: share of label exchanges whose difference is at least as long; `p_family`: corrected for all places that
          are looked at (maximum over places of the squared length in standard deviations of its own null; Westfall &
          Young). Never 0: with few pairs all exchanges are gone through, and p is at least 2 / 2^pairs.
        - `chance_stability`: the cosine of two halves that 95 % of draws stay below where the classes have one mean
          (each side less its mean, signs drawn): what `stability` has to exceed.
        """
        generator = torch.Generator().manual_seed(seed)
        gram = self._gram()
        own = self._weights(torch.ones(1, 2, self.counts.shape[1], dtype=torch.float64))
        drawn = self._weights(self._drawn(generator))
        cosines = _cosines(gram, own, drawn)
        low = cosines.quantile(torch.tensor(PERCENTILES[0], dtype=cosines.dtype), dim=1)
        exchanged, exact = self._exchanged(generator)
        squares, observed = _squares(gram, exchanged), _squares(gram, own)
        edge = 1e-9 * observed.abs()
        beside = 0 if exact else 1  # what was observed is among all exchanges, but not among drawn ones
        total = squares.shape[1] + beside
        spread = squares.std(1, keepdim=True).clamp_min(1e-300)
        centre = squares.mean(1, keepdim=True)
        highest = ((squares - centre) / spread).amax(0)
        z = (observed - edge - centre) / spread
        chance = self._chance(generator)
        return {
            "bootstrap": cosines.mean(1),
            "bootstrap_low": low,
            "p": (beside + (squares >= observed - edge).sum(1)) / total,
            "p_family": (beside + (highest[None] >= z).sum(1)) / total,
            "chance_stability": chance.quantile(torch.tensor(0.95, dtype=chance.dtype), dim=1),
        }

    def p_floor(self) -> float:
        """The least p that these blocks can give."""
        blocks = self.counts.shape[1]
        return 2.0 ** (1 - blocks) if self.paired and blocks <= EXACT else 1 / (1 + DRAWS)

    def _chance(self, generator: torch.Generator) -> Float[Tensor, "place draw"]:
        """Cosines of the halves' differences of means where there is none but by chance."""
        means = self.sums.sum(1) / self.counts.sum(1)[:, None, None]
        flat = (self.sums - self.counts[..., None, None] * means[:, None]).flatten(0, 1).permute(1, 0, 2)
        gram, blocks = flat @ flat.transpose(1, 2), self.counts.shape[1]
        signs = torch.randint(0, 2, (DRAWS, 1 if self.paired else 2, blocks), generator=generator).double() * 2 - 1
        sides = signs * torch.tensor([[1.0], [-1.0]]).double()
        halves = [torch.arange(blocks) < self.first, torch.arange(blocks) >= self.first]
        one, other = ((sides * half / self.counts[:, half].sum(1).clamp(min=1)[:, None]).flatten(1) for half in halves)
        inner = torch.einsum("db,pbc,dc->pd", one, gram, other)
        return inner / (_squares(gram, one) * _squares(gram, other)).sqrt().clamp_min(1e-300)

    def _gram(self) -> Float[Tensor, "place 2block 2block"]:
        """Inner products of the blocks' sums, less the mean of all rows, whose size would drown the differences."""
        mean = self.sums.sum((0, 1)) / self.counts.sum()
        flat = (self.sums - self.counts[..., None, None] * mean).flatten(0, 1).permute(1, 0, 2)
        return flat @ flat.transpose(1, 2)

    def _weights(self, times: Float[Tensor, "draw 2 block"]) -> Float[Tensor, "draw 2block"]:
        """What each block's sum is multiplied by in a difference of means, where it is taken so many times."""
        sizes = (times * self.counts).sum(-1, keepdim=True).clamp(min=1e-300)
        return (times / sizes * torch.tensor([[1.0], [-1.0]]).double()).flatten(1)

    def _drawn(self, generator: torch.Generator) -> Float[Tensor, "draw 2 block"]:
        real = [(side > 0).nonzero()[:, 0] for side in self.counts]
        times = torch.zeros(DRAWS, 2, self.counts.shape[1], dtype=torch.float64)
        for side, places in enumerate(real):
            if side == 1 and self.paired:
                times[:, 1] = times[:, 0]
                break
            chosen = places[torch.randint(len(places), (DRAWS, len(places)), generator=generator)]
            times[:, side].scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
        return times

    def _exchanged(self, generator: torch.Generator) -> tuple[Float[Tensor, "draw 2block"], bool]:
        """Weights of differences of means after exchanges of labels, and whether these are all exchanges."""
        blocks = self.counts.shape[1]
        if self.paired:
            exact = blocks <= EXACT
            swapped = (
                torch.cartesian_prod(*[torch.arange(2)] * blocks).reshape(-1, blocks)
                if exact
                else torch.randint(0, 2, (DRAWS, blocks), generator=generator)
            ).double()
            sign = (1 - 2 * swapped)[:, None, :]
            sides = torch.tensor([[1.0], [-1.0]]).double() / self.counts[0].sum()
            return (sign * sides).flatten(1), exact
        flat, weights = self.counts.flatten(), []
        real = (flat > 0).nonzero()[:, 0]
        ups = int((self.counts[0] > 0).sum())
        for _ in range(DRAWS):
            order = real[torch.randperm(len(real), generator=generator)]
            one = torch.zeros(len(flat), dtype=torch.float64)
            one[order[:ups]] = 1 / flat[order[:ups]].sum().double()
            one[order[ups:]] = -1 / flat[order[ups:]].sum().double()
            weights.append(one)
        return torch.stack(weights), False


def _squares(gram: Float[Tensor, "place b b"], weights: Float[Tensor, "draw b"]) -> Float[Tensor, "place draw"]:
    return torch.einsum("db,pbc,dc->pd", weights, gram, weights).clamp_min(0)


def _cosines(
    gram: Float[Tensor, "place b b"], own: Float[Tensor, "1 b"], weights: Float[Tensor, "draw b"]
) -> Float[Tensor, "place draw"]:
    """Cosine of each weighted sum of blocks with the observed one."""
    inner = torch.einsum("db,pbc,c->pd", weights, gram, own[0])
    return inner / (_squares(gram, weights) * _squares(gram, own)).sqrt().clamp_min(1e-300)


# ---------------------------------------------------------------------- one place
def geometry(
    vector: Float[Tensor, "d"], positive: Float[Tensor, "d"], negative: Float[Tensor, "d"]
) -> dict[str, float]:
    """Where a direction lies, of two class means (llm-abliteration's numbers, and massive dimensions).

    `snr` = |δ| / max(|μ₁|, |μ₀|); `purity` = share of δ's length that is not along μ₀; `quality` = snr · (1 - cos(μ₁,
    μ₀)) · purity; `massive` = share of the vector's square in its 8 largest dimensions (8 / d if it were even).
    """
    delta, sizes = positive - negative, (float(positive.norm()), float(negative.norm()))
    across = delta - (delta @ negative) / max(sizes[1], 1e-300) ** 2 * negative
    snr = float(delta.norm()) / max(*sizes, 1e-300)
    purity = float(across.norm()) / max(float(delta.norm()), 1e-300)
    cosine = float(positive @ negative) / max(sizes[0] * sizes[1], 1e-300)
    squares = vector.square()
    return {
        "norm": float(vector.norm()),
        "snr": snr,
        "purity": purity,
        "quality": snr * (1 - cosine) * purity,
        "massive": float(squares.topk(min(MASSIVE, len(squares))).values.sum() / squares.sum()),
    }


def silhouette(up: Float[Tensor, "n"], down: Float[Tensor, "m"]) -> float:
    """Mean over scores of (b - a) / max(a, b), where a is the mean distance to the other scores of the own class and
    b to the scores of the other class (Rousseeuw 1987): 1 for two clumps, 0 for one. Of a class of one score: 0."""
    made = []
    for own, other in ((up.double(), down.double()), (down.double(), up.double())):
        b = (own[:, None] - other[None]).abs().mean(1)
        a = (own[:, None] - own[None]).abs().sum(1) / max(len(own) - 1, 1)
        largest = torch.maximum(a, b)
        alone = len(own) < 2
        made.append(torch.where((largest > 0) & (not alone), (b - a) / largest.clamp(min=1e-300), 0.0))
    return float(torch.cat(made).mean())


def apart(
    up: Float[Tensor, "place n"], down: Float[Tensor, "place m"], groups: Sequence[Hashable] | None
) -> list[dict[str, float | str]]:
    """How well scores of prompts that the direction has not seen tell the classes apart at each place, and in which
    group worst."""
    whole = _areas(up, down)
    found: list[dict[str, float | str]] = []
    for (value, low, high), *both in zip(whole, up, down):
        found.append({"held_out_auroc": value, "held_out_low": low, "held_out_high": high})
        found[-1]["silhouette"] = silhouette(*both)
    if groups is not None:
        names = list(dict.fromkeys(groups))
        of = torch.tensor([names.index(group) for group in groups])
        areas = [_areas(*(side[:, of == number] for side in (up, down))) for number in range(len(names))]
        for number, one in enumerate(found):
            worst = min(range(len(names)), key=lambda group: areas[group][number][0])
            value, low, _ = areas[worst][number]
            one |= {"worst_group": str(names[worst]), "worst_auroc": value, "worst_low": low}
    return found


def _areas(up: Float[Tensor, "place n"], down: Float[Tensor, "place m"]) -> list[tuple[float, float, float]]:
    """AUROC of each place with its interval."""
    area = auroc(up.T, down.T)
    return list(zip(*(one.tolist() for one in (area, *auroc_bounds(area, up.shape[1], down.shape[1])))))
