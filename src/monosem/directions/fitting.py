"""From prompts to directions at many places: activations stream by; what one half gives is judged on the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import PromptPairs
from ..errors import BadInput
from ..jobs import fingerprint, marks
from ..models import identity
from .diagnostics import Blocks, apart, geometry
from .methods import Found, Method, method
from .moments import Moments
from .reading import Place, Reader
from .sample import Sample
from .topics import Topics, detected, topics_of

BLOCKS = 16  # sets of prompts in each half that are drawn again and relabelled, at most


@dataclass(frozen=True)
class Fitted:
    """What was found at one place, and its diagnostics."""

    place: Place
    found: Found
    numbers: dict[str, Any]


@dataclass
class Half:
    """What is kept of the activations of some prompts."""

    positive: Moments | None = None
    negative: Moments | None = None
    differences: Moments | None = None
    rows: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    scores: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    blocks: Blocks | None = None

    def take(self, side: int, rows: Float[Tensor, "place batch d"], way: Method) -> None:
        """A batch of one side."""
        moments, name = Moments.of(rows, scatter=way.needs in ("scatter", "rows")), ("positive", "negative")[side]
        before = getattr(self, name)
        setattr(self, name, moments if before is None else before + moments)
        if "rows" in way.needs:
            self.rows[side].append(rows.float())

    def samples(self, background: Moments | None, k: int, seed: int) -> list[Sample]:
        """Place by place."""
        assert self.positive is not None
        assert self.negative is not None
        count = len(self.positive.mean)
        kept = [torch.cat(side, 1) if side else None for side in self.rows]
        beside = [[None] * count if one is None else list(one) for one in (self.differences, background)]
        rows = [None] * count if kept[0] is None else list(zip(*kept))
        parts = zip(self.positive, self.negative, *beside, rows)
        names = ("positive", "negative", "differences", "background", "rows")
        return [Sample(**dict(zip(names, part)), k=k, seed=seed) for part in parts]  # type: ignore[arg-type]

    def __add__(self, other: "Half") -> "Half":
        names = ("positive", "negative", "differences", "blocks")
        sums = {name: one + getattr(other, name) for name in names if (one := getattr(self, name)) is not None}
        return Half(**sums, rows=(self.rows[0] + other.rows[0], self.rows[1] + other.rows[1]))


def fitted(
    reader: Reader,
    pairs: PromptPairs,
    name: str,
    *,
    background: Sequence[str] | None = None,
    held_out: PromptPairs | None = None,
    k: int = 1,
    seed: int = 0,
) -> tuple[list[Fitted], dict[str, Any]]:
    """The direction at each place that can be read, and what was read; see `Directions.fit`."""
    way = check_asked(name, pairs, background, k)
    others = [] if held_out is None else [*held_out.positive, *held_out.negative]
    _check_new(pairs, others)
    reader.hold([*pairs.positive, *pairs.negative, *(background or ()), *others])
    first, second = (half for half in pairs.split(0.5, seed=seed))
    beside = None if background is None else _background(reader, background)
    halves = [_read(reader, first, way)]
    of_first = _found(reader, way, halves[0].samples(beside, k, seed))
    halves.append(_read(reader, second, way, _reads(of_first)))
    whole = halves[0] + halves[1]
    failed: dict[int, str] = {}
    found = _found(reader, way, whole.samples(beside, k, seed), failed)
    of_second = _found(reader, way, halves[1].samples(beside, k, seed))
    judged, groups = halves[1].scores, second.groups
    if held_out is not None:
        judged, groups = _scores(reader, held_out, _reads(found)), held_out.groups
    assert whole.blocks is not None
    assert whole.positive is not None
    assert whole.negative is not None
    tests = whole.blocks.tests(seed)
    up, down = (torch.cat(side, 1) for side in judged)
    told = apart(up, down, groups)
    transfer = _transfer(reader, pairs, seed)
    results = []
    for number, place in enumerate(reader.places):
        if (one := found[number]) is None or number in reader.refused:
            continue
        known = held_out is not None or of_first[number] is not None
        numbers: dict[str, Any] = {"stability": _cosine(of_first[number], of_second[number])}
        numbers |= {key: float(values[number]) for key, values in tests.items()}
        numbers |= (told[number] if known else {}) | (transfer[number] if transfer else {})
        up_mean, down_mean = whole.positive.mean[number], whole.negative.mean[number]
        numbers |= {"gap": _gap(one, up_mean - down_mean)}
        one = one._replace(centre=(up_mean + down_mean) / 2) if one.centre is None else one
        numbers |= geometry(one.vector, up_mean, down_mean)
        results.append(Fitted(place, one, numbers))
    refused = {str(reader.places[i]): why for i, why in sorted((failed | reader.refused).items())}
    if not results:
        raise BadInput(next(iter(refused.values())))
    about = _about(reader, pairs, *((first, second) if held_out is None else (pairs, held_out)))
    about |= {"operation": "erase" if way.erases else "add", "p_floor": whole.blocks.p_floor()}
    about |= {"refused": refused} if refused else {}
    return results, about


def _transfer(reader: Reader, pairs: PromptPairs, seed: int) -> list[dict[str, Any]]:
    """Cosines and detection from topic to topic at each place, where the pairs have topics. The prompts are read anew,
    once for the topics' directions and once for scores along these, where their states were not kept."""
    names, groups = topics_of(pairs), pairs.groups or ()
    if not names:
        return []
    topics: Topics | None = None
    for some, (up, down) in _parts(reader, pairs):
        topics = topics or Topics.of(names, len(up), up.shape[-1])
        topics.take(groups[some], up - down)
    assert topics is not None
    scores: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _, both in _parts(reader, pairs):
        for kept, rows in zip(scores, both):
            kept.append(torch.einsum("pbd,tpd->tpb", rows, topics.directions))
    areas = detected(names, groups, *(torch.cat(kept, 2) for kept in scores))
    found = topics.cosines(seed)
    for one, area in zip(found, areas):
        one["topics"]["auroc"] = area.pop("auroc")
    return [one | area for one, area in zip(found, areas)]


def _about(reader: Reader, pairs: PromptPairs, finding: PromptPairs, judging: PromptPairs) -> dict[str, Any]:
    """What all places have in common."""
    return ({"prefilter": dict(pairs.prefilter)} if pairs.prefilter else {}) | {
        "prompts": _counts(pairs),
        "held_out_prompts": _counts(judging),
        "data": fingerprint(*pairs.positive, "\0", *pairs.negative),
        "seen": marks([*pairs.prompts, *judging.prompts]),
        "leaks": _leaks(finding.prompts, judging.prompts),
        "made_on": identity(reader.model),
        "units": "activation, not normalised",
        "tokens": reader.summary(),
    }


def _counts(pairs: PromptPairs) -> dict[str, int]:
    return {"positive": len(pairs.positive), "negative": len(pairs.negative)}


def _check_new(pairs: PromptPairs, held_out: Sequence[str]) -> None:
    """Raises `BadInput` where a prompt that is to judge finds, too."""
    if both := sorted(set(pairs.prompts) & set(held_out)):
        raise BadInput(
            f"{len(both)} held-out prompts are also among those that find, e.g. {both[0]!r:.60}: take them out"
        )


def _leaks(finding: Sequence[str], judging: Sequence[str]) -> int:
    """How many of the judging prompts are, begin or continue one that finds (statements cut after every word)."""
    order, finds, found = sorted({*finding, *judging}), set(finding), set[str]()
    for number, one in enumerate(order):
        for other in order[number:]:
            if not other.startswith(one):
                break  # what begins with a text follows it at once
            found |= {other} if one in finds else set()
            found |= {one} if other in finds else set()
    return sum(prompt in found for prompt in judging)


def check_asked(name: str, pairs: PromptPairs, background: Sequence[str] | None, k: int) -> Method:
    """The method. Raises `UnknownName`, and `BadInput` for what cannot be fitted with it, whatever the model is."""
    way = method(name)
    if way.paired and not pairs.paired:
        raise BadInput(
            f"method {name!r} takes pairs (paired=True, --paired): the i-th prompt of each side belong together"
        )
    if (way.needs == "background") != (background is not None):
        raise BadInput(
            f"method {name!r} needs background= texts, a few hundred of any kind"
            if background is None
            else f"background= texts go with method 'mean_centred' alone, not with {name!r}"
        )
    if k < 1 or (k > 1 and not way.several):
        raise BadInput(f"k={k}: methods 'svd' and 'repe' find several directions (k of 1 or more), {name!r} finds one")
    if min(len(set(pairs.positive)), len(set(pairs.negative))) < 2:
        raise BadInput("a direction needs at least two different prompts a side, to say how stable it is")
    return way


# ---------------------------------------------------------------------- passes
def _read(reader: Reader, pairs: PromptPairs, way: Method, reads: Tensor | None = None) -> Half:
    """One pass over the prompts of both sides.

    Args:
        reads: `place d`: prompts are scored by these.
    """
    half, block = Half(), _block_numbers(pairs)
    counts = torch.stack([torch.bincount(numbers, minlength=int(torch.cat(block).max()) + 1) for numbers in block])
    sums = torch.zeros(0)
    for some, both in _parts(reader, pairs):
        if not len(sums):
            sums = torch.zeros(2, counts.shape[1], len(both[0]), both[0].shape[-1], dtype=torch.float64)
        for side, rows in enumerate(both):
            if not rows.shape[1]:
                continue
            sums[side].index_add_(0, block[side][some], rows.transpose(0, 1))
            half.take(side, rows, way)
            if reads is not None:
                half.scores[side].append(torch.einsum("pbd,pd->pb", rows, reads))
        if way.needs == "pairs":
            differences = Moments.of(both[0] - both[1])
            half.differences = differences if half.differences is None else half.differences + differences
    half.blocks = Blocks(sums, counts, pairs.paired)
    return half


def _parts(reader: Reader, pairs: PromptPairs) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Some prompts of both sides after the other, and their states, `place prompt d` each."""
    size = max(1, reader.at_once // 2)
    for start in range(0, max(len(pairs.positive), len(pairs.negative)), size):
        some = slice(start, start + size)
        up, down = pairs.positive[some], pairs.negative[some]
        yield some, reader.rows([*up, *down]).split([len(up), len(down)], 1)


def _block_numbers(pairs: PromptPairs) -> tuple[Tensor, Tensor]:
    """The block of each prompt of both sides: whole groups where there are any, else pairs or prompts."""
    if pairs.groups is not None and len(set(pairs.groups)) > 1:
        names = {group: number for number, group in enumerate(dict.fromkeys(pairs.groups))}
        numbers = torch.tensor([names[group] for group in pairs.groups])
        return numbers % BLOCKS, numbers % BLOCKS
    return tuple(torch.arange(len(side)) % BLOCKS for side in (pairs.positive, pairs.negative))  # type: ignore[return-value]


def _background(reader: Reader, texts: Sequence[str]) -> Moments:
    total: Moments | None = None
    for start in range(0, len(texts), reader.at_once):
        moments = Moments.of(reader.rows(texts[start : start + reader.at_once]), scatter=False)
        total = moments if total is None else total + moments
    if total is None:
        raise BadInput("background= has no texts; give a few hundred of any kind")
    return total


def _scores(reader: Reader, pairs: PromptPairs, reads: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _, both in _parts(reader, pairs):
        for scores, rows in zip(sides, both):
            scores.append(torch.einsum("pbd,pd->pb", rows, reads))
    return sides


# ---------------------------------------------------------------------- places
def _found(
    reader: Reader, way: Method, samples: list[Sample], failed: dict[int, str] | None = None
) -> list[Found | None]:
    """What the method finds at each place; None where it cannot (`failed` says why), or the place cannot be read."""
    results: list[Found | None] = []
    for number, sample in enumerate(samples):
        one = None
        if number not in reader.refused:
            try:
                one = way.find(sample)
            except BadInput as error:
                if failed is not None:
                    failed[number] = f"{reader.places[number]}: {error}"
        results.append(one)
    return results


def _reads(found: list[Found | None]) -> Float[Tensor, "place d"]:
    width = next((len(one.vector) for one in found if one is not None), 1)
    return torch.stack(
        [torch.zeros(width).double() if one is None else one.vector if one.read is None else one.read for one in found]
    )


def _gap(one: Found, delta: Float[Tensor, "d"]) -> float:
    """Distance of the class means along what reads."""
    read = one.vector if one.read is None else one.read
    return float(read @ delta / read.norm())


def _cosine(one: Found | None, other: Found | None) -> float:
    """Of the vectors; of subspaces, the mean cosine of their principal angles. NaN where a half finds none."""
    if one is None or other is None:
        return float("nan")
    if one.basis is not None and other.basis is not None:
        return float(torch.linalg.svdvals(one.basis @ other.basis.T).mean())
    read = one.read is not None and other.read is not None
    a, b = (x.read if read else x.vector for x in (one, other))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))  # type: ignore[arg-type]
