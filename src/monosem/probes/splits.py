"""Parts of rows that share no group, and rows that are nearly the same text as one group."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import BadInput
from .rows import Rows

TRIES = 200
PREFIX = 48  # letters and digits that texts which begin alike have in common
SHINGLE, RESEMBLE = 3, 0.5  # words in a run; share of two texts' runs that near duplicates have in common


class Parts(NamedTuple):
    """Rows to fit on, to choose by (strength, place, threshold), and to measure on."""

    train: Rows
    validation: Rows
    test: Rows


def split(rows: Rows, shares: tuple[float, float, float] = (0.5, 0.2, 0.3), *, seed: int = 0) -> Parts:
    """Training, validation and test rows: no group is in two parts, and each part has both classes.

    Groups are drawn in random order, and each goes where most rows of its classes are still wanted.

    Raises:
        BadInput: shares that do not sum to 1, rows of one class, or too few groups of a class for three parts.
    """
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise BadInput(f"shares are three numbers above 0 that sum to 1 (training, validation, test), not {shares}")
    rows.check_two_classes("a split")
    part = parted(rows.y, rows.groups, shares, seed=seed)
    found = Parts(*(rows.part((part == i).nonzero()[:, 0]) for i in range(len(shares))))
    check_apart(*found)
    return found


def parted(
    y: Bool[Tensor, "n"], groups: Int[Tensor, "n"], shares: Sequence[float], *, seed: int = 0
) -> Int[Tensor, "n"]:
    """The part of each row, a number from 0, as `split` makes it for any number of parts.

    Args:
        groups: numbers from 0. shares: how large the parts should be, in rows; they sum to 1.

    Raises: as `split`.
    """
    if len(shares) < 2 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise BadInput(f"shares are numbers above 0 that sum to 1, one for each part, not {tuple(shares)}")
    cells = _cells(y, groups)
    if not bool((cells.sum(0) > 0).all()):
        raise BadInput("a split needs rows of both classes; give texts of the other class")
    for label, name in ((1, "positive"), (0, "negative")):
        if (have := int((cells[:, label] > 0).sum())) < len(shares):
            few = "one group" if have == 1 else f"{have} groups"
            raise BadInput(
                f"the {name} rows are of {few}, and groups are kept together: {len(shares)} parts need "
                f"{len(shares)} groups of each class at least; give finer groups or more of them"
            )
    for attempt in range(TRIES):
        part = _assigned(cells, shares, seed + attempt * 1_000_003)
        if all(bool((cells[part == i].sum(0) > 0).all()) for i in range(len(shares))):
            return part[groups]
    raise BadInput("the groups cannot be split so that each part has both classes; give finer groups or more of them")


def folds(rows: Rows, k: int = 5, *, seed: int = 0) -> list[tuple[Rows, Rows]]:
    """k pairs of training and held-out rows for cross-validation, every group held out once. Errors as `split`."""
    rows.check_two_classes("folds")
    cells = _cells(rows.y, rows.groups)
    if k < 2 or int((cells > 0).sum(0).min()) < k:
        raise BadInput(f"{k} folds need {max(k, 2)} groups of each class, there are {int((cells > 0).sum(0).min())}")
    for attempt in range(TRIES):
        part = _assigned(cells, (1 / k,) * k, seed + attempt * 1_000_003)[rows.groups]
        pairs = [(rows.part(part != i), rows.part(part == i)) for i in range(k)]
        if all(min(held.named.values()) for _, held in pairs):
            return pairs
    raise BadInput(f"the groups cannot be split into {k} folds with both classes; use fewer folds")


def held_out(rows: Rows, share: float = 0.3, *, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows to fit on, and about this share of held-out ones, whole groups drawn at random; classes are not looked at.

    Raises:
        BadInput: a share outside 0 to 1, or fewer than two groups.
    """
    if not 0 < share < 1:
        raise BadInput(f"share is between 0 and 1, such as 0.3, not {share}")
    count = int(rows.groups.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    sizes = rows.groups.bincount(minlength=count)[order].cumsum(0)
    last = int((sizes < share * len(rows)).sum()) + 1  # groups until there are enough rows
    if count < 2 or last >= count:
        raise BadInput(f"{count} groups cannot be parted so that {share:g} of the rows are held out: give finer groups")
    held = torch.isin(rows.groups, order[:last])
    return rows.part(~held), rows.part(held)


def _cells(y: Bool[Tensor, "n"], groups: Int[Tensor, "n"]) -> Int[Tensor, "groups 2"]:
    """Numbers of negative and positive rows of each group."""
    cells = torch.zeros(int(groups.max()) + 1, 2, dtype=torch.long)
    return cells.index_put_((groups, y.long()), torch.ones(len(groups), dtype=torch.long), accumulate=True)


def _assigned(cells: Int[Tensor, "groups 2"], shares: Sequence[float], seed: int) -> Int[Tensor, "groups"]:
    """The part of each group: large groups are not drawn first, so that the parts are random."""
    draw = torch.Generator().manual_seed(seed % 2**63)
    wanted = torch.tensor(shares)[:, None] * cells.sum(0)
    part, has = torch.zeros(len(cells), dtype=torch.long), torch.zeros_like(wanted)
    for group in torch.randperm(len(cells), generator=draw).tolist():
        lacking = ((wanted - has) / wanted.clamp(min=1e-9) * (cells[group] > 0)).sum(1)
        part[group] = int(lacking.argmax())
        has[part[group]] += cells[group]
    return part


def check_apart(*parts: Rows) -> None:
    """Raises `BadInput` where a group, or a text, is in two parts: a probe would be measured on what it has seen."""
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            if shared := one.group_keys & other.group_keys:
                example = f", such as {min(map(str, shared))!r:.40}," if one.group_names else ""
                raise BadInput(
                    f"groups leak: {len(shared)} groups{example} are both in training and in held-out "
                    "rows; split with monosem.probes.split, which keeps groups together"
                )
            if twice := set(one.texts) & set(other.texts):
                raise BadInput(
                    f"texts leak: {len(twice)} texts are in two parts, such as {min(twice)!r:.60}; give them one group "
                    "(monosem.probes.near_duplicates finds them)"
                )


def near_duplicates(texts: Sequence[str], groups: Sequence[object] | None = None) -> list[int]:
    """A group for each text: near duplicates, and texts that share a group already, are one.

    Near duplicates begin alike (letters and digits, case aside, up to `PREFIX`), or at least `RESEMBLE` of the runs of
    `SHINGLE` words that either has are in both (resemblance; Broder 1997). So a text is found again behind another
    beginning; two statements of one form with another name in them are as a rule not.
    """
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first, plain = dict[object, int](), [re.sub(r"[\W_]+", " ", text.lower()).strip() for text in texts]
    for i, text in enumerate(plain):
        for key in [text[:PREFIX]] + ([("group", groups[i])] if groups is not None else []):
            parent[root(i)] = root(first.setdefault(key, i))
    for one, other in _resembling([frozenset(_shingles(text.split())) for text in plain]):
        parent[root(one)] = root(other)
    return [root(i) for i in range(len(texts))]


def _shingles(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Each run of `SHINGLE` words; of fewer words, all of them."""
    yield from (tuple(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, 1)))


def _resembling(sets: Sequence[frozenset[tuple[str, ...]]]) -> Iterator[tuple[int, int]]:
    """All pairs of sets of which at least the share `RESEMBLE` of their union is in both.

    Such sets have one of their rarest elements in common, if so many are looked at that the others cannot be enough
    (Bayardo, Ma & Srikant 2007), so few pairs are compared.
    """
    holders, same = defaultdict[tuple[str, ...], list[int]](list), dict[frozenset[tuple[str, ...]], int]()
    seen = Counter(chain.from_iterable(sets))
    for i, own in enumerate(sets):
        if (twin := same.setdefault(own, i)) != i:
            yield twin, i
            continue
        rarest = sorted(own, key=lambda one: (seen[one], one))[: len(own) - math.ceil(RESEMBLE * len(own)) + 1]
        for other in {other for one in rarest for other in holders[one]}:
            both = len(own & sets[other])
            if both >= RESEMBLE * (len(own) + len(sets[other]) - both):
                yield other, i
        for one in rarest:
            holders[one].append(i)
