"""Whether the topics of a set of prompts (its groups) give one direction: cosines and detection from topic to topic."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data import PromptPairs
from ..statistics import auroc, auroc_bounds, rank_p
from .diagnostics import DRAWS

FEWEST, MOST = 4, 16  # pairs that a topic needs, and topics that are compared (the largest ones)
LEVEL = 0.05  # of the test of one direction; a doubt also wants topics that share less than half of its squared length:
SHARED = 0.5**0.5  # `transfer_shared`, 45 degrees
PARTS = 8  # sets of pairs of each topic whose signs are drawn, and which make up its halves


def topics_of(pairs: PromptPairs) -> list[Hashable]:
    """The groups that are compared; none where there are fewer than two that are large enough."""
    sizes = Counter(pairs.groups or ())
    names = [name for name, size in sizes.most_common(MOST) if size >= FEWEST]
    return [name for name in sizes if name in names] if len(names) > 1 else []


@dataclass(frozen=True, eq=False)
class Topics:
    """Sums of positive - negative over sets of the pairs of each topic.

    Attributes:
        sums: `topic part place d`. counts: `topic part`, pairs in each.
    """

    names: Sequence[Hashable]
    sums: Float[Tensor, "topic part place d"]
    counts: Int[Tensor, "topic part"]

    @classmethod
    def of(cls, names: Sequence[Hashable], places: int, width: int) -> "Topics":
        """Of no pairs yet."""
        counts = torch.zeros(len(names), PARTS, dtype=torch.long)
        return cls(names, torch.zeros(*counts.shape, places, width, dtype=torch.float64), counts)

    def take(self, groups: Sequence[Hashable], differences: Float[Tensor, "place pair d"]) -> None:
        """Pairs of these groups, as many as differences; other groups are passed over."""
        for group, difference in zip(groups, differences.unbind(1), strict=True):
            if group in self.names:
                topic = list(self.names).index(group)
                part = int(self.counts[topic].sum()) % PARTS
                self.sums[topic, part] += difference
                self.counts[topic, part] += 1

    @property
    def directions(self) -> Float[Tensor, "topic place d"]:
        """The difference of means of each topic."""
        return self.sums.sum(1) / self.counts.sum(1)[:, None, None]

    def cosines(self, seed: int = 0) -> list[dict[str, Any]]:
        """Of the topics' differences of means, place by place.

        - `transfer`, `transfer_least`, `transfer_between`: mean over all pairs of topics, the least, and of which.
        - `transfer_rest`: mean over topics of the cosine with all other topics together.
        - `transfer_halves`, `topic_halves`: of half of one topic with half of another, and of two halves of one topic,
          which is as high as the first could be with so few prompts.
        - `transfer_shared`: `transfer_halves` by the mean over two topics of the root of their `topic_halves`' product,
          NaN where that is 0: the cosine of two topics' directions without the noise of few prompts (Spearman 1904).
        - `p_one_direction`: how often the difference of these two is as large where topics have one direction, as long
          in each as here, and each its own differences from its mean, signs drawn.
        - `chance_transfer`: what 95 % of draws of `transfer` stay below where the labels say nothing: each topic's
          differences less their mean, signs drawn.
        - `topics`: their names and the cosines of every two.
        """
        sums = self.sums.permute(2, 0, 1, 3)
        n = self.counts.sum(1).double()
        whole = sums.sum(2) / n[:, None]
        rest = (sums.sum((1, 2))[:, None] - sums.sum(2)) / (n.sum() - n)[:, None]
        halves = _unit(torch.stack([sums[:, :, half::2].sum(2) for half in (0, 1)], 2))
        of_halves = _inner(halves.flatten(1, 2))
        between, within = (part.mean(1) for part in _parted(of_halves))
        shared, p = self._one_direction(seed)
        cosine = _inner(_unit(whole))
        with_rest = (_unit(whole) * _unit(rest)).sum(-1).mean(1)
        chance = self._chance(seed)
        found = []
        for place, table in enumerate(cosine):
            least = min(combinations(range(len(self.names)), 2), key=lambda pair: float(table[pair]))
            found.append(
                {
                    "transfer": float(_off_diagonal(table).mean()),
                    "transfer_least": float(table[least]),
                    "transfer_between": ", ".join(str(self.names[topic]) for topic in least),
                    "transfer_rest": float(with_rest[place]),
                    "transfer_halves": float(between[place]),
                    "topic_halves": float(within[place]),
                    "transfer_shared": shared[place],
                    "p_one_direction": p[place],
                    "chance_transfer": float(chance[place]),
                    "topics": {"names": [str(name) for name in self.names], "cosine": _rounded(table)},
                }
            )
        return found

    def _one_direction(self, seed: int) -> tuple[list[float], list[float]]:
        """(`transfer_shared`, `p_one_direction`) of each place."""
        held = self.counts.flatten().nonzero()[:, 0]
        gram = _inner(self.sums.flatten(0, 1)[held].transpose(0, 1))
        n, topic, half = self.counts.flatten()[held].double(), held // PARTS, held % PARTS % 2
        first = torch.stack([(topic == t) & (half == h) for t in range(len(self.names)) for h in (0, 1)]).double()
        same = (topic[:, None] == topic).double()
        mean = same / (same @ n)[:, None]  # of each part's topic, from all parts
        own = (torch.eye(len(held)) - n[:, None] * mean) * (same.sum(1) / (same.sum(1) - 1)).sqrt()[:, None]
        signs = torch.randint(0, 2, (DRAWS, len(held)), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
        noise = (first * signs[:, None]) @ own
        shared, p = [], []
        for one in gram:
            along = (mean @ one).sum(1) / one.sum()  # of each topic's mean, by the length of all pairs' sum
            common = (first @ (n * along)[:, None]).expand(-1, len(held))
            weights = torch.cat([first[None], common + noise])
            inner = weights @ one @ weights.transpose(1, 2)
            size = inner.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
            between, within = _parted(inner / size[..., None] / size[..., None, :])
            roots = within.clamp_min(0).sqrt()
            possible = _off_diagonal(roots[:, :, None] * roots[:, None]).mean(-1)
            lacking = (possible - between.mean(-1)).tolist()
            shared.append(float(between[0].mean() / possible[0]) if possible[0] > 0 else float("nan"))
            p.append(rank_p(lacking[0], lacking[1:]))
        return shared, p

    def _chance(self, seed: int) -> Float[Tensor, "place"]:
        means = self.sums.sum(1) / self.counts.sum(1)[:, None, None]
        centred = (self.sums - self.counts[..., None, None] * means[:, None]).permute(2, 0, 1, 3).flatten(1, 2)
        gram = centred @ centred.transpose(1, 2)
        topics, parts = self.counts.shape
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (DRAWS, topics, parts), generator=generator).double() * 2 - 1
        weights = torch.zeros(DRAWS, topics, topics, parts, dtype=torch.float64)
        weights[:, range(topics), range(topics)] = signs
        flat = weights.flatten(2)
        inner = torch.einsum("rtb,pbc,ruc->prtu", flat, gram, flat)
        size = inner.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
        drawn = _off_diagonal(inner / size[..., None] / size[..., None, :]).mean(-1)
        return drawn.quantile(torch.tensor(0.95, dtype=drawn.dtype), dim=1)


def detected(
    names: Sequence[Hashable],
    groups: Sequence[Hashable],
    up: Float[Tensor, "topic place n"],
    down: Float[Tensor, "topic place n"],
) -> list[dict[str, Any]]:
    """How well each topic's difference of means tells the classes of every other topic apart, place by place:
    `transfer_auroc` and `transfer_auroc_least`, with its 95 % interval (`_low`, `_high`; as if it were not the least)
    and `transfer_auroc_of`, from which topic to which that is ("" where all are the same).

    Args:
        up, down: scores of all pairs' prompts along the direction of each topic. groups: of the pairs.
    """
    of = torch.tensor([list(names).index(group) if group in names else -1 for group in groups])
    areas = {
        (one, other): auroc(up[one][:, of == other].T, down[one][:, of == other].T)
        for one, other in permutations(range(len(names)), 2)
    }
    found = []
    for place in range(up.shape[1]):
        values = {pair: float(area[place]) for pair, area in areas.items()}
        one, other = min(values, key=lambda pair: values[pair])
        n = int((of == other).sum())
        low, high = auroc_bounds(torch.tensor(values[one, other]), n, n)
        table = torch.full((len(names), len(names)), float("nan"))
        for pair, value in values.items():
            table[pair] = value
        found.append(
            {
                "transfer_auroc": sum(values.values()) / len(values),
                "transfer_auroc_least": values[one, other],
                "transfer_auroc_least_low": float(low),
                "transfer_auroc_least_high": float(high),
                "transfer_auroc_of": "" if len({*values.values()}) == 1 else f"{names[one]} to {names[other]}",
                "auroc": [[None if x != x else x for x in row] for row in _rounded(table)],
            }
        )
    return found


def in_words(numbers: Mapping[str, Any]) -> str:
    """What the provenance of a direction says of topics, in a line; "" where it says nothing."""
    if "transfer" not in numbers:
        return ""
    held = {name: f"{value:.2f}" for name, value in numbers.items() if isinstance(value, float)}
    least = f"least {held['transfer_least']}: {numbers['transfer_between']}"
    worst = f"least {held['transfer_auroc_least']}"
    if "transfer_auroc_least_low" in held:
        worst += f" [{held['transfer_auroc_least_low']}, {held['transfer_auroc_least_high']}]"
    worst += f": {of}" if (of := numbers["transfer_auroc_of"]) else ""
    return (
        f"{len(numbers['topics']['names'])} topics: cosine {held['transfer']} ({least}; by chance below "
        f"{held['chance_transfer']}), of halves {held['transfer_halves']}, of two halves of one topic "
        f"{held['topic_halves']}; one topic's direction on another: AUROC {held['transfer_auroc']} ({worst})"
    )


def doubts(places: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What speaks against one direction of all topics, in words: at how many places, and the numbers where it is worst.

    Args:
        places: the provenance of the direction at each place.
    """
    lines = []
    none = [one for one in places.values() if one.get("transfer", 1.0) <= one.get("chance_transfer", 0.0)]
    if none:
        many = f"at {len(none)} of {len(places)} places"
        lines.append(f"{many} the directions of two topics agree no better than they would by chance")
    own = {place: one for place, one in places.items() if one.get("p_one_direction", 1.0) <= LEVEL}
    own = {place: one for place, one in own.items() if (one["transfer_shared"] or math.nan) < SHARED}
    if own:
        place, one = min(own.items(), key=lambda item: item[1]["transfer_shared"])
        lines.append(
            f"at {len(own)} of {len(places)} places topics share less than half of a direction; at {place} halves of "
            f"two topics have cosine {one['transfer_halves']:.2f}, two halves of one {one['topic_halves']:.2f} "
            f"(p {one['p_one_direction']:.2g})"
        )
    return lines


def _parted(inner: Float[Tensor, "*any n n"]) -> tuple[Float[Tensor, "*any pairs"], Float[Tensor, "*any topics"]]:
    """Of cosines of halves, two after another of a topic: (means between two topics, and within each topic)."""
    blocks = inner.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    return _off_diagonal(blocks.mean((-3, -1))), inner[..., 0::2, 1::2].diagonal(dim1=-2, dim2=-1)


def _unit(x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def _inner(x: Float[Tensor, "*any n d"]) -> Float[Tensor, "*any n n"]:
    return x @ x.transpose(-1, -2)


def _off_diagonal(table: Float[Tensor, "*any n n"]) -> Float[Tensor, "*any pairs"]:
    one, other = torch.triu_indices(table.shape[-1], table.shape[-1], offset=1)
    return table[..., one, other]


def _rounded(table: Float[Tensor, "n n"]) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in table.tolist()]
