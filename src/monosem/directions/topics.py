"""Whether the topics of a set of prompts (its groups) give one direction: cosines and detection from topic to topic."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data import PromptPairs
from ..statistics import auroc
from .diagnostics import DRAWS

FEWEST, MOST = 4, 16  # pairs that a topic needs, and topics that are compared (the largest ones)
PARTS = 8  # sets of pairs of each topic whose signs are drawn, and which make up its halves


def topics_of(pairs: PromptPairs) -> list[str]:
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

    names: Sequence[str]
    sums: Float[Tensor, "topic part place d"]
    counts: Int[Tensor, "topic part"]

    @classmethod
    def of(cls, names: Sequence[str], places: int, width: int) -> "Topics":
        """Of no pairs yet."""
        counts = torch.zeros(len(names), PARTS, dtype=torch.long)
        return cls(names, torch.zeros(*counts.shape, places, width, dtype=torch.float64), counts)

    def take(self, groups: Sequence[str], differences: Float[Tensor, "place pair d"]) -> None:
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
        - `chance_transfer`: what 95 % of draws of `transfer` stay below where the labels say nothing: each topic's
          differences less their mean, signs drawn.
        - `topics`: their names and the cosines of every two.
        """
        sums = self.sums.permute(2, 0, 1, 3)
        n = self.counts.sum(1).double()
        whole = sums.sum(2) / n[:, None]
        rest = (sums.sum((1, 2))[:, None] - sums.sum(2)) / (n.sum() - n)[:, None]
        halves = _unit(torch.stack([sums[:, :, half::2].sum(2) for half in (0, 1)], 2))
        between = torch.einsum("pthd,pukd->ptuhk", halves, halves).mean((-2, -1))
        within = torch.einsum("ptd,ptd->pt", halves[:, :, 0], halves[:, :, 1]).mean(1)
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
                    "transfer_between": ", ".join(self.names[topic] for topic in least),
                    "transfer_rest": float(with_rest[place]),
                    "transfer_halves": float(_off_diagonal(between[place]).mean()),
                    "topic_halves": float(within[place]),
                    "chance_transfer": float(chance[place]),
                    "topics": {"names": list(self.names), "cosine": _rounded(table)},
                }
            )
        return found

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
    names: Sequence[str],
    groups: Sequence[str],
    up: Float[Tensor, "topic place n"],
    down: Float[Tensor, "topic place n"],
) -> list[dict[str, Any]]:
    """How well each topic's difference of means tells the classes of every other topic apart, place by place:
    `transfer_auroc` and `transfer_auroc_least`, with `transfer_auroc_of`, from which topic to which that is.

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
        table = torch.full((len(names), len(names)), float("nan"))
        for pair, value in values.items():
            table[pair] = value
        found.append(
            {
                "transfer_auroc": sum(values.values()) / len(values),
                "transfer_auroc_least": values[one, other],
                "transfer_auroc_of": f"{names[one]} to {names[other]}",
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
    worst = f"least {held['transfer_auroc_least']}: {numbers['transfer_auroc_of']}"
    return (
        f"{len(numbers['topics']['names'])} topics: cosine {held['transfer']} ({least}; by chance below "
        f"{held['chance_transfer']}), of halves {held['transfer_halves']}, of two halves of one topic "
        f"{held['topic_halves']}; one topic's direction on another: AUROC {held['transfer_auroc']} ({worst})"
    )


def _unit(x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def _inner(x: Float[Tensor, "*any n d"]) -> Float[Tensor, "*any n n"]:
    return x @ x.transpose(-1, -2)


def _off_diagonal(table: Float[Tensor, "*any n n"]) -> Float[Tensor, "*any pairs"]:
    one, other = torch.triu_indices(table.shape[-1], table.shape[-1], offset=1)
    return table[..., one, other]


def _rounded(table: Float[Tensor, "n n"]) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in table.tolist()]
