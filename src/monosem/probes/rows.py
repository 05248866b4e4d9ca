"""Labelled states of texts: what probes and distances are fitted on and measured on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BadInput, Mismatch
from ..models import Site, SiteLike

Position = int | str  # "last", "mean", "all" or what `directions.selector` reads
FEWEST = 2  # rows of a class


@dataclass(frozen=True)
class Place:
    """Where states were read: a site (several: their states one after the other) and a position in the text."""

    sites: tuple[Site, ...]
    position: Position = "last"

    def __str__(self) -> str:
        sites = str(self.sites[0]) if len(self.sites) == 1 else f"{self.sites[0]}…{self.sites[-1]}"
        return f"{sites}@{self.position}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The place that `written` gave."""
        sites, _, position = text.partition("@")
        at: Any = int(position) if position.lstrip("-").isdigit() else position
        return cls(tuple(Site.parse(one) for one in sites.split("+")), at)

    def written(self) -> str:
        """As a file has it: every site by name."""
        return f"{'+'.join(map(str, self.sites))}@{self.position}"

    @property
    def site(self) -> Site:
        """Raises `BadInput` for a place of several sites."""
        if len(self.sites) != 1:
            raise BadInput(f"{self} is a place of {len(self.sites)} sites; this needs a probe of one site")
        return self.sites[0]


@dataclass(frozen=True, eq=False)
class Rows:
    """One row a text at each place, with its label and its group.

    Attributes:
        x: `places n d`; with every token of the texts (position "all"): `places n pos d`.
        y: whether a text is of the positive class, `n`; for distances, `classes` may have more.
        places: where each matrix of x was read.
        groups: rows that belong together (one template, topic, source, pair), `n`; splits keep them together.
            Default: every row is alone.
        texts: the texts, for baselines. lengths: their numbers of tokens.
        mask: which tokens are real and count, `n pos`.
        classes: numbers from 0, `n`; default: y.
        group_names: what the groups were called, by their numbers; empty where nobody named them.
        source: one object, which all parts of the rows share.

    Raises:
        BadInput: numbers that do not fit together, or a state that is not finite.
    """

    x: Float[Tensor, "places n *pos d"]
    y: Bool[Tensor, "n"]
    places: tuple[Place, ...] = ()
    groups: Any = None
    texts: tuple[str, ...] = ()
    lengths: Int[Tensor, "n"] | None = None
    mask: Bool[Tensor, "n pos"] | None = None
    classes: Any = None
    model_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    group_names: tuple[Any, ...] | None = None
    source: object = field(default_factory=object)

    def __post_init__(self) -> None:
        x = self.x if isinstance(self.x, Tensor) else torch.as_tensor(self.x)
        x = x[None] if x.ndim == 2 else x
        y = _labels(self.y)
        places = self.places or tuple(Place((Site("resid_post", i),)) for i in range(len(x)))
        if x.ndim not in (3, 4) or (x.ndim == 4) != (self.mask is not None):
            raise BadInput(f"x is places × n × d (or places × n × pos × d, with a mask), not {list(x.shape)}")
        groups, names = self.groups, self.group_names
        if groups is None:
            groups, names = torch.arange(len(y)), ()
        elif names is None:
            groups, names = group_numbers(groups)
        classes = y.long() if self.classes is None else torch.as_tensor(self.classes)
        counts = {"labels": y, "groups": groups, "classes": classes, "mask": self.mask, "lengths": self.lengths}
        for name, given in counts.items():
            if given is not None and len(given) != x.shape[1]:
                raise BadInput(f"{x.shape[1]} rows have {len(given)} {name}; give one a row")
        if len(places) != len(x) or (self.texts and len(self.texts) != x.shape[1]):
            raise BadInput(
                f"x is of {len(x)} places and {x.shape[1]} rows, beside {len(places)} places, {len(self.texts)} texts"
            )
        _check_finite(x, self.mask, places)
        for name, value in {
            "x": x,
            "y": y,
            "places": places,
            "groups": groups,
            "classes": classes,
            "group_names": names,
        }.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.x.shape[1]

    def part(self, rows: Any) -> "Rows":
        """Some rows, by index or mask."""
        index = torch.arange(len(self))[rows]
        given: dict[str, Any] = {"x": self.x[:, index.to(self.x.device)]}
        given["texts"] = tuple(self.texts[int(i)] for i in index) if self.texts else ()
        for name in ("y", "groups", "classes", "lengths", "mask"):
            value = getattr(self, name)
            given[name] = None if value is None else value[index]
        return replace(self, **given)

    def at(self, place: Place | SiteLike | int) -> "Rows":
        """One place alone: by number, as a `Place`, or by a site that was read at one position. Raises `BadInput`."""
        if isinstance(place, int):
            found = [range(len(self.places))[place]]
        else:
            wanted = place if isinstance(place, Place) else Site.parse(place)
            found = [i for i, one in enumerate(self.places) if wanted in (one, one.sites[0])]
        if len(found) != 1:
            raise BadInput(f"{place} is {len(found)} of the places {', '.join(map(str, self.places))!s:.200}; name one")
        return replace(self, x=self.x[found], places=(self.places[found[0]],))

    def relabelled(self, y: Bool[Tensor, "n"]) -> "Rows":
        """The same rows with other labels."""
        return replace(self, y=y, classes=y.long())

    def with_classes(self, names: Sequence[Any]) -> "Rows":
        """The same rows with classes of any number, a name or number a row, for distances."""
        return replace(self, classes=group_numbers(names)[0])

    def joined(self) -> "Rows":
        """All places as one: their states one after the other, `1 n (places d)`."""
        x = self.x.movedim(0, -2).flatten(-2)[None]
        sites = tuple(site for place in self.places for site in place.sites)
        return replace(self, x=x, places=(Place(sites, self.places[0].position),))

    @property
    def group_keys(self) -> set[Any]:
        """What tells groups apart across rows: their names, where they have any."""
        numbers = set(self.groups.tolist())
        return {self.group_names[i] if self.group_names else (id(self.source), i) for i in numbers}

    @property
    def named(self) -> dict[str, int]:
        """How many rows there are, of each class."""
        return {"positive": int(self.y.sum()), "negative": int((~self.y).sum())}

    def check_two_classes(self, what: str, fewest: int = FEWEST) -> None:
        """Raises `BadInput` unless there are rows of both classes."""
        if min(self.named.values()) < fewest:
            raise BadInput(
                f"{what} needs at least {fewest} rows of both classes, and these are {self.named['positive']} positive "
                f"and {self.named['negative']} negative ones; give texts of the other class"
            )

    def check_tokens(self, wanted: bool, what: str) -> None:
        """Raises `BadInput` where rows have every token and one state is wanted, or the other way."""
        if (self.mask is not None) != wanted:
            how = "position='all'" if wanted else "position='last' or 'mean'"
            raise BadInput(f"{what} reads {'every token' if wanted else 'one state'} of a text: read rows with {how}")


def group_numbers(given: Any) -> tuple[Int[Tensor, "n"], tuple[Any, ...]]:
    """Groups of any kind (names, numbers) as numbers from 0, in the order in which they come, and their names."""
    items = given.tolist() if hasattr(given, "tolist") else list(given)
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(one, len(numbers)) for one in items], dtype=torch.long), tuple(numbers)


def _labels(given: Any) -> Bool[Tensor, "n"]:
    y = torch.as_tensor(given)
    if y.ndim != 1 or not bool(((y == 0) | (y == 1)).all()):
        raise BadInput("labels are one true or false (1 or 0) a row; of several classes, say which one is positive")
    return y.bool()


def _check_finite(x: Tensor, mask: Tensor | None, places: Sequence[Place]) -> None:
    fine = x.isfinite().all(-1)
    fine = fine if mask is None else (fine | ~mask.to(x.device)).all(-1)
    if not bool(fine.all()):
        place, row = (int(i) for i in (~fine).nonzero()[0])
        raise BadInput(
            f"row {row} at {places[place]} holds NaN or infinity ({int((~fine).any(0).sum())} such rows): leave them "
            "out, or read in float32"
        )


def check_same(rows: Rows, places: Sequence[Place], model_name: str, d: int, what: str) -> None:
    """Raises `Mismatch` where rows were read at other places, of another model or width than `what` was fitted on."""
    if tuple(rows.places) != tuple(places) or rows.x.shape[-1] != d:
        raise Mismatch(
            f"this {what} was fitted on states of width {d} at {', '.join(map(str, places))!s:.120}; these rows have "
            f"width {rows.x.shape[-1]} at {', '.join(map(str, rows.places))!s:.120}"
        )
    if model_name and rows.model_name and model_name != rows.model_name:
        raise Mismatch(f"this {what} was fitted on states of {model_name}, these are of {rows.model_name}")
