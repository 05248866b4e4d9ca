"""Cells: the places that a sweep patches one at a time, one `Cell` a place."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypedDict

from ..data import TokenPairs
from ..dictionaries import Dictionary
from ..errors import BadInput, UnknownName, check_name
from ..models import PER_LAYER, Layers, Model, Positions, Site, SiteLike
from ..models.numbers import whole_number, whole_numbers, whole_slice
from ..models.running.selection import heads_at

Position = int | str  # a token index of its own row (negative: from the end), or the name of a span
SpanPositions = Positions | str | Sequence[Position]  # positions as everywhere, and names of the pairs' spans

NOT_SWEPT = ("rot_q", "rot_k", "scores")  # other forms of q, k and pattern
ORDER = ("layer", "position", "head", "key", "neuron", "latent")


class Which(TypedDict, total=False):
    """Which cells: the options of `cells_of`, which sweeps and their estimates pass on."""

    layers: Layers
    positions: SpanPositions | None
    heads: Iterable[int] | None
    neurons: Mapping[int, Iterable[int]] | None
    dictionary: Dictionary | None
    latents: Iterable[int] | None


@dataclass(frozen=True)
class Cell:
    """One place: a site of one layer, or a part of it. What is None is not cut: all positions, all heads, ...

    Attributes:
        site: name of the site, without its layer.
        at: token positions that are patched together: indices of the row's own tokens (0 = the first real one, -1 =
            the last) or names of `TokenPairs.spans`. In a `pattern` these are the queries.
        head: query head for q, z and pattern; kv head for k and v.
        key: position of the key, in a `pattern`.
        neuron: unit of the MLP. latent: a latent of the sweep's dictionary (its error term is kept).
    """

    site: str
    layer: int
    at: tuple[Position, ...] | None = None
    head: int | None = None
    key: Position | None = None
    neuron: int | None = None
    latent: int | None = None

    def __str__(self) -> str:
        parts = {"position": ",".join(map(str, self.at or ()))} | {
            axis: getattr(self, axis) for axis in ("head", "key", "neuron", "latent")
        }
        return " ".join([str(self.place), *(f"{k} {v}" for k, v in parts.items() if v not in (None, ""))])

    @property
    def place(self) -> Site:
        return Site(self.site, self.layer)

    @property
    def position(self) -> Position | None:
        """The one position that is patched; None when it is several or all."""
        return self.at[0] if self.at is not None and len(self.at) == 1 else None

    @property
    def position_axis(self) -> int:
        """The axis of positions in what the patch writes (`Trial.value`)."""
        return self.place.query_axis - 1 if self.head is None else 0

    def positions(self, pairs: TokenPairs, row: int) -> list[int]:
        """The patched token indices in one row, ascending."""
        length = int(pairs.clean.lengths[row])
        if self.at is None:
            return list(range(length))
        return sorted({index_of(position, pairs, row) for position in self.at})

    def index(self, pairs: TokenPairs, row: int) -> tuple[Any, ...]:
        """What indexes the site's tensor without its batch axis (`pos ...`, for a pattern `head query key`)."""
        return self.at_positions(
            self.positions(pairs, row), None if self.key is None else index_of(self.key, pairs, row)
        )

    def at_positions(self, positions: Any, key: int | None = None) -> tuple[Any, ...]:
        """`index` for token indices that are known already."""
        everything = slice(None)
        if self.place.query_axis == 2:
            return (everything if self.head is None else self.head, positions, everything if key is None else key)
        unit = self.head if self.head is not None else self.neuron
        return (positions,) if unit is None else (positions, unit)


def index_of(position: Position, pairs: TokenPairs, row: int) -> int:
    """The token index that a position means in one row.

    Raises:
        UnknownName: no span of that name. BadInput: the row has no such token.
    """
    length = int(pairs.clean.lengths[row])
    if isinstance(position, str):
        check_name("span", position, pairs.spans)
        index = int(pairs.spans[position][row])
    else:
        index = position
    if not -length <= index < length:
        raise BadInput(f"position {position} is outside pair {row}, which has {length} tokens")
    return index % length


def listed(pairs: TokenPairs, positions: SpanPositions | None) -> list[Position]:
    """Positions one by one: indices and names of spans. "spans" means every span, "last" -1, None every position.

    Raises:
        UnknownName: no such span. BadInput: a position outside a pair; "spans" without spans; None or a slice for pairs
            of several lengths, in which an index means different things.
    """
    if isinstance(positions, str) and positions not in pairs.spans and positions in ("last", "spans"):
        chosen: list[Position] = [-1] if positions == "last" else list(pairs.spans)
        if not chosen:
            raise BadInput(
                "positions='spans', but the pairs name none; give TokenPairs.of(..., spans={name: positions})"
            )
    elif positions is None or isinstance(positions, slice):
        lengths = sorted(set(pairs.clean.lengths.tolist()))
        if len(lengths) > 1:
            raise BadInput(
                f"the pairs have {lengths[0]} to {lengths[-1]} tokens, so an index means different words in them: give "
                "positions='spans', positions counted from the end (positions=[-2, -1]), or pairs of one length"
            )
        chosen = [*range(lengths[0])[whole_slice(positions or slice(None), "positions")]]
        if not chosen:
            raise BadInput(f"positions={positions} is no position of pairs of {lengths[0]} tokens")
    else:
        named = isinstance(positions, str) or not isinstance(positions, Iterable)
        entries: Any = [positions] if named or getattr(positions, "ndim", 1) == 0 else positions
        chosen = [one if isinstance(one, str) else whole_number(one, "positions") for one in entries]
        if not chosen:
            raise BadInput("no cells to patch, positions is empty: give at least one, or None for all")
    for row in range(len(pairs)):
        for position in chosen:
            index_of(position, pairs, row)
    return chosen


def check_cell(model: Model, cell: Cell) -> None:
    """Raises `UnknownName` for a site, layer, head or neuron that the model or the site does not have."""
    model.site(cell.place)
    for axis in ("head", "key", "neuron"):
        if getattr(cell, axis) is not None and axis not in cell.place.axes:
            raise UnknownName(f"{cell.place} has no {axis}s to patch")
    if cell.head is not None:
        _within([cell.head], heads_at(model, cell.place), f"{cell.site} head")
    if cell.neuron is not None:
        _within([cell.neuron], _neurons_at(model, cell.place), "neuron")


def cells_of(
    model: Model,
    pairs: TokenPairs,
    sites: str | Sequence[str] = "resid_pre",
    over: str | Sequence[str] = ("layer", "position"),
    *,
    layers: Layers = None,
    positions: SpanPositions | None = None,
    heads: Iterable[int] | None = None,
    neurons: Mapping[int, Iterable[int]] | None = None,
    dictionary: Dictionary | None = None,
    latents: Iterable[int] | None = None,
) -> list[Cell]:
    """Every cell of a sweep: site by site, layer by layer, then along the axes in the order of `ORDER`.

    Args:
        sites: names without a layer ("resid_pre"), one or several; with "latent" in `over`, the dictionary's site.
        over: axes that are cut: "layer" always, and of "position", "head", "key", "neuron", "latent" what the site
            has (`Site.axes`).
        positions: with "position" in `over`, one cell each; otherwise patched together in every cell. Indices (see
            `Cell.at`), a slice, "last", names of spans, or "spans" for all of them. Default: every position. It and
            slices need pairs of one length: an index means different things in prompts of different lengths.
        heads, layers: default all. neurons: {layer: units}. latents: of the dictionary; both have no default.

    Raises:
        UnknownName: a site, axis, layer, head, neuron or latent that is not there.
        BadInput: positions that mean nothing in these pairs; lists that do not go with the axes.
    """
    if dictionary is not None:
        dictionary.check(model)
    axes, numbers = axes_of(over), None if layers is None else model.layers(layers)
    heads = None if heads is None else whole_numbers(heads, "heads")
    names: list[Any] = list(sites) if isinstance(sites, list | tuple | set) else [sites]
    chosen = [_site_name(model, site, axes, dictionary) for site in names]
    if "latent" in axes and dictionary is not None:
        if numbers not in (None, [dictionary.site.layer]):
            raise BadInput(f"the dictionary reads {dictionary.site}; leave layers out")
        numbers = model.layers(dictionary.site.layer)
    _check_lists(axes, heads=heads, neurons=neurons, latents=latents)
    neurons = neurons and {model.layers(layer)[0]: units for layer, units in neurons.items()}
    places = _places(pairs, axes, positions)
    keys: Sequence[Position | None] = listed(pairs, None) if "key" in axes else [None]
    read = _within(latents, dictionary.width, "latent") if "latent" in axes and dictionary is not None else [None]
    cells = []
    for site in chosen:
        for layer in _layers(model, site, numbers, several=len(chosen) > 1):
            place = model.site(Site(site, layer))
            across = _within(heads, heads_at(model, place), f"{site} head") if "head" in axes else [None]
            units: Sequence[int | None] = [None]
            if "neuron" in axes:
                units = _within((neurons or {}).get(layer, ()), _neurons_at(model, place), "neuron")
            cells += [Cell(site, layer, *where) for where in product(places, across, keys, units, read)]
    if not cells:
        raise BadInput("no cells to patch; give at least one layer, position, head, neuron or latent")
    return cells


def _layers(model: Model, site: str, numbers: Sequence[int] | None, several: bool) -> list[int]:
    """The layers where a site is patched; of several sites, a layer may have some alone."""
    if numbers is None:
        return model.layers_with(site)
    return [n for n in numbers if model.has((site, n))] if several else list(numbers)


def cuts(site: Site) -> tuple[str, ...]:
    """The axes that cells of a site can be cut along, besides its layer; none where the site cannot be swept."""
    swept = site.name in (*PER_LAYER, "mixer_out") and not site.name.endswith(NOT_SWEPT) and not site.in_source
    return tuple(axis for axis in ORDER if axis in site.axes) if swept else ()


def _neurons_at(model: Model, site: Site) -> int:
    """How many neurons the branch of a site has."""
    branch = model.branch_of(site)
    return model.cfg.d_mlp if branch is None or branch.units != "neuron" else branch.n_units


def places_of(cells: Iterable[Cell]) -> list[Site]:
    """Every site that some of the cells are part of, once."""
    return list(dict.fromkeys(cell.place for cell in cells))


def columns_of(cells: Sequence[Cell], over: str | Sequence[str], labels: Mapping[Any, str]) -> dict[str, list[Any]]:
    """Where each cell lies: its site, its coordinate along every axis and, with positions, the token there."""
    axes = axes_of(over)
    columns: dict[str, list[Any]] = {"site": [cell.site for cell in cells]}
    columns |= {axis: [getattr(cell, axis) for cell in cells] for axis in axes}
    if "position" in axes:
        columns["token"] = [labels.get(cell.position, "") for cell in cells]
    return columns


def labels_of(model: Model, pairs: TokenPairs, cells: Sequence[Cell]) -> dict[Any, str]:
    """A token for each position where all pairs agree: the clean one, with the corrupted one where they differ."""
    labels: dict[Any, str] = {}
    sides = [pairs.clean.rows(), pairs.corrupted.rows()]
    for position in dict.fromkeys(cell.position for cell in cells):
        if isinstance(position, int):
            seen = [{row[position] for row in side} for side in sides]
            if all(len(tokens) == 1 for tokens in seen):
                labels[position] = "/".join(dict.fromkeys(model.str_token(tokens.pop()) for tokens in seen))
    return labels


def axes_of(over: str | Sequence[str]) -> tuple[str, ...]:
    """The axes in the order of `ORDER`.

    Raises:
        UnknownName: no such axis. BadInput: "layer" is missing.
    """
    axes = over if isinstance(over, list | tuple | set) else [over]
    for axis in axes:
        check_name("axis", axis, ORDER)
    if "layer" not in axes:
        raise BadInput("over needs 'layer' (choose one layer with layers=[...])")
    return tuple(axis for axis in ORDER if axis in axes)


def _site_name(model: Model, site: SiteLike, axes: Sequence[str], dictionary: Dictionary | None) -> str:
    if not isinstance(site, str | Site | tuple):
        raise BadInput(f"sites= are names such as 'z', not {site!r:.40}")
    if isinstance(site, str) and re.fullmatch(r".+\.\d+", site):
        raise BadInput(f"a sweep takes a site's name without its layer: {site.rpartition('.')[0]!r}, and layers=[...]")
    parsed = Site.parse(site if isinstance(site, Site | tuple) else f"{site}.0")
    name = parsed.name
    if parsed.in_source:
        raise UnknownName(
            f"{site!s:.40} has the positions of what the encoder reads, and sweeps go over the decoder's: write it "
            "with model.run(..., edits=edits.patch(...))"
        )
    offered = cuts(model.site(Site(name, model.layers_with(name)[0])))
    if not offered:
        known = ", ".join(one for one in (*PER_LAYER, "mixer_out") if cuts(Site(one, 0)))
        raise UnknownName(f"{name} cannot be swept; sites: {known}")
    if "latent" in axes:
        if dictionary is None or dictionary.site.name != name:
            raise BadInput(f"latents of {name} need dictionary=, one that reads {name}")
        if dictionary.site != dictionary.site_out:
            raise BadInput(
                f"the dictionary writes {dictionary.site_out}; latents are patched where it reads and writes"
            )
        offered = ("position", "latent")
    for axis in axes:
        if axis != "layer" and axis not in offered:
            raise BadInput(f"{name} has no axis {axis!r}; it can be cut by layer, {', '.join(offered)}")
    return name


def _check_lists(axes: Sequence[str], **lists: Any) -> None:
    for name, chosen in lists.items():
        axis = name.removesuffix("s")
        if chosen is not None and axis not in axes:
            raise BadInput(f"{name}= is given but {axis!r} is not in over; add it")
        if chosen is None and axis in axes and axis != "head":
            raise BadInput(f"over {axis!r} needs {name}=, the ones to patch")


def _places(
    pairs: TokenPairs, axes: Sequence[str], positions: SpanPositions | None
) -> list[tuple[Position, ...] | None]:
    """Values for `Cell.at`."""
    if "position" in axes:
        return [(position,) for position in listed(pairs, positions)]
    return [None if positions is None else tuple(listed(pairs, positions))]


def _within(chosen: Iterable[int] | None, count: int, what: str) -> list[int]:
    numbers = list(range(count)) if chosen is None else whole_numbers(chosen, what)
    for number in numbers:
        if not 0 <= number < count:
            raise UnknownName(f"no {what} {number}: there are 0 to {count - 1}")
    return numbers
