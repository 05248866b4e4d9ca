"""A concept's texts in four parts that share no group: for the judge, to fit on, to choose by, and to measure on."""

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import BadInput
from ..models import Model
from ..probes import Rows, near_duplicates, parted
from ..probes.rows import group_numbers
from .concept import Concept

PARTS = ("judge", "fit", "choose", "test")
SHARES = (0.25, 0.35, 0.15, 0.25)
WHOLE_STYLES = 4  # styles from which whole styles are kept together, else pairs or texts
JUDGED = 0.25  # share of the judge's part by which its strength is chosen


@dataclass(frozen=True, eq=False)
class Material:
    """Texts, clipped, in their parts: in each first the positive ones, then the negative ones.

    Attributes:
        groups: numbers of what stays together, over all parts. part: index into `PARTS`.
        paired: whether the i-th positive of a part belongs to its i-th negative.
    """

    texts: list[str]
    y: Bool[Tensor, "n"]
    groups: Int[Tensor, "n"]
    part: Int[Tensor, "n"]
    paired: bool
    seed: int

    @classmethod
    def of(cls, model: Model, concept: Concept, sizes: tuple[int, int, int], longest: int, seed: int) -> "Material":
        """The parts of a concept, drawn by the seed.

        Args:
            sizes: texts of a class at most, to fit, to choose by and to measure on. longest: tokens of a text.

        Raises:
            BadInput: too few groups of a class, or texts that are the same once they are clipped.
        """
        up, down = ([clipped(model, text, longest) for text in concept.side(side)] for side in ("positive", "negative"))
        if twice := set(up) & set(down):
            raise BadInput(
                f"{concept.name}: a text of both sides begins with the same {longest} tokens: {min(twice)!r:.60}"
            )
        y = torch.tensor([True] * len(up) + [False] * len(down))
        groups = group_numbers(near_duplicates([*up, *down], _together(concept)))[0]
        try:
            part = parted(y, groups, SHARES, seed=seed)
        except BadInput as error:
            raise BadInput(f"{concept.name}: {error}") from error
        rng, kept = random.Random(seed), list[int]()
        for number, name in enumerate(PARTS):
            most = None if name == "judge" else sizes[number - 1]
            kept += _drawn(part == number, y, concept.paired, most, rng)
        index = torch.tensor(kept)
        texts = [[*up, *down][i] for i in kept]
        return cls(texts, y[index], groups[index], part[index], concept.paired, seed)

    def rows(self, part: str) -> Int[Tensor, "rows"]:
        """The numbers of a part's texts."""
        return (self.part == PARTS.index(part)).nonzero()[:, 0]

    def side(self, part: str, positive: bool) -> Int[Tensor, "rows"]:
        rows = self.rows(part)
        return rows[self.y[rows] == positive]

    def without_states(self, rows: Int[Tensor, "rows"]) -> Rows:
        """Rows of texts alone, for detectors that read no state."""
        texts = tuple(self.texts[i] for i in rows)
        return Rows(torch.zeros(1, len(rows), 1), self.y[rows], groups=self.groups[rows], texts=texts)

    def of_judge(self) -> tuple[Rows, Rows]:
        """The judge's part in two: to fit it on, and to choose its strength by."""
        rows = self.rows("judge")
        numbers = group_numbers(self.groups[rows])[0]
        try:
            second = parted(self.y[rows], numbers, (1 - JUDGED, JUDGED), seed=self.seed)
        except BadInput:  # one group, such as a single style: its texts are drawn one by one
            second = parted(self.y[rows], torch.arange(len(rows)), (1 - JUDGED, JUDGED), seed=self.seed)
        return self.without_states(rows[second == 0]), self.without_states(rows[second == 1])

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Texts of each class, and groups, of each part."""
        return {
            name: {
                "positive": len(self.side(name, True)),
                "negative": len(self.side(name, False)),
                "groups": len(self.groups[self.rows(name)].unique()),
            }
            for name in PARTS
        }


def clipped(model: Model, text: str, longest: int) -> str:
    """The text up to so many tokens."""
    ids = model.bare(text)
    return text if len(ids) <= longest else model.text(ids[:longest])


def _together(concept: Concept) -> list[object]:
    """What keeps texts together, one for each: the style where there are enough, else the pair, else nothing."""
    styles = concept.styles.items()
    whole = len(concept.styles) >= WHOLE_STYLES
    keys: list[object] = []
    for side in ("positive", "negative"):
        for name, style in styles:
            for line in range(len(getattr(style, side))):
                keys.append(name if whole else (name, line) if concept.paired else (name, side, line))
    return keys


def _drawn(inside: Tensor, y: Tensor, paired: bool, most: int | None, rng: random.Random) -> list[int]:
    """Up to `most` texts of each class of a part, in random order; of pairs, the same ones of both sides."""
    up, down = ((inside & (y == side)).nonzero()[:, 0].tolist() for side in (True, False))
    if paired:  # the sides stand in the same order, and no pair is in two parts
        order = rng.sample(range(len(up)), len(up))[:most]
        return [up[i] for i in order] + [down[i] for i in order]
    return rng.sample(up, len(up))[:most] + rng.sample(down, len(down))[:most]
