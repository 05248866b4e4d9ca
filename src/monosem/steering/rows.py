"""Rows of several arms in one batch: every arm's edits act on that arm's rows alone, as if the arm ran by itself."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..edits import Edit
from ..errors import BadInput, EditDidNotFire
from ..models import Model, Moment, Site
from ..models.places.sites import EMBEDDINGS, Inner, host_of
from ..models.running.effects import unreached

# Edits for every prompt, or a function that makes them for the prompts of one batch (row numbers into the prompt list)
EditSource = Edit | Sequence[Edit] | Callable[[Sequence[int]], Sequence[Edit]]


@dataclass(frozen=True)
class Chunk:
    """Arms × prompts that run together, arm after arm."""

    arms: range
    prompts: list[int]  # numbers of the prompts

    def rows(self, arm: int) -> slice:
        """The rows of an arm in the batch."""
        first = (arm - self.arms.start) * len(self.prompts)
        return slice(first, first + len(self.prompts))


@dataclass(frozen=True, eq=False)
class Share:
    """An edit of one arm, at the arm's rows of a batch.

    Attributes:
        rows: these rows. prompts: the numbers of their prompts among all of them, `total`; None for an edit that was
            made for these rows.
        reached: gets the edit when it has reached a token; an edit may reach one chunk's prompts and not another's.
        alone: whether the batch has no other arm.
        within: the edit inside its dictionary, where the pass asks for that.
    """

    edit: Edit
    rows: slice
    prompts: Int[Tensor, "rows"] | None
    total: int
    reached: set[Edit]
    by_row: bool = True
    alone: bool = False
    within: Edit | None = None

    @property
    def site(self) -> Site:
        return (self.within or self.edit).site

    @property
    def owner(self) -> Any:
        """The dictionary that it splices in for all rows."""
        return getattr(self.edit, "owner", None) if self.alone else None

    @property
    def arm(self) -> int:
        """Tells the arms of a batch apart."""
        return int(self.rows.start)

    @property
    def place(self) -> Any:
        return getattr(self.edit, "place", None)

    @property
    def latents(self) -> Any:
        return getattr(self.edit, "latents", None)

    def inside(self, columns: Tensor | None) -> "Share":
        edit: Any = self.edit
        return replace(self, within=edit.inside(columns))

    @property
    def reads(self) -> Sequence[Site]:
        return getattr(self.edit, "reads", ())

    def __str__(self) -> str:
        return str(self.edit)

    def prepare(self, model: Model) -> None:
        self.edit.prepare(model)

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        edit, seen = self.within or self.edit, x[self.rows]
        part, reached = edit.apply(seen, moment.of_rows(self.rows, self.prompts, self.total))
        if reached:
            self.reached.add(self.edit)
        if part is not seen:
            x = x.clone()
            x[self.rows] = part
        return x, True


def chunks(lengths: Sequence[int], arms: int, batch_size: int) -> Iterator[Chunk]:
    """At most `batch_size` rows at a time, of prompts of similar length, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    together = min(arms, batch_size)
    for first in range(0, arms, together):
        part = range(first, min(first + together, arms))
        width = max(batch_size // len(part), 1)
        for start in range(0, len(order), width):
            yield Chunk(part, order[start : start + width])


def shares(arms: Sequence[EditSource], chunk: Chunk, total: int, reached: set[Edit]) -> list[Share]:
    """The edits of a chunk."""
    numbers, found = torch.tensor(chunk.prompts), []
    for arm in chunk.arms:
        source = arms[arm]
        prompts, alone = None if callable(source) else numbers, len(chunk.arms) == 1
        for edit in edits_for(source, chunk.prompts):
            found.append(Share(edit, chunk.rows(arm), prompts, total, reached, alone=alone))
    return found


def edits_for(source: EditSource, rows: Sequence[int]) -> list[Edit]:
    if isinstance(source, Edit):
        return [source]
    made: Any = source(rows) if callable(source) else source
    if not isinstance(made, Iterable) or not all(isinstance(edit, Edit) for edit in made):
        raise BadInput(f"an arm is an edit, several, or a function that makes them for some prompts, not {made!r:.60}")
    return list(made)


def may_share(source: EditSource) -> bool:
    """Whether an arm's edits treat every row alone, so that other rows may stand beside it, in any order."""
    return callable(source) or all(edit.by_row for edit in edits_for(source, ()))


def needs_its_order(source: EditSource, total: int) -> bool:
    """Whether an arm edits latents and, at the same place, something else (a splice of their dictionary, the stream,
    another dictionary's latents), so that no other arm may stand beside it: in a batch, latents of a dictionary are
    edited at one point of all edits there, and arms may disagree where it stands among theirs."""
    edits = edits_for(source, range(total))
    acting = [(host, _latents_of(edit)) for edit in edits for host in _hosts_of(edit)]
    inside = {host for host, dictionary in acting if dictionary is not None}
    return len({(host, dictionary) for host, dictionary in acting if host in inside}) > len(inside)


def _latents_of(edit: Edit) -> int | None:
    """Tells the dictionary whose latents (or other inner places) an edit changes; None for an edit of other kinds."""
    place = edit.site if isinstance(edit.site, Inner) else getattr(edit, "place", None)
    return None if place is None else id(place.owner)


def _hosts_of(edit: Edit) -> tuple[Site, ...]:
    """The sites that it changes: latents of a cross-layer transcoder write to several."""
    place = edit.site if isinstance(edit.site, Inner) else getattr(edit, "place", None)
    return (host_of(edit.site),) if place is None else place.hosts


def check_reached(arms: Sequence[EditSource], reached: set[Edit], length: int) -> None:
    """Raises `EditDidNotFire` for an edit that reached no token in any chunk.

    Edits of generated tokens have nothing to reach where fewer than two are made: the last of them is not run.
    """
    for source in arms:
        for edit in [] if callable(source) else edits_for(source, ()):
            if edit not in reached and (edit.scope != "generated" or length > 1):
                raise EditDidNotFire(unreached(edit))


def first_layer(model: Model, arms: Sequence[EditSource], total: int) -> int:
    """The first layer that an edit of some arm acts in; what it reads, the layers before it gave without edits. An edit
    of what a layer reads acts in the one before."""
    edits = [edit for arm in arms for edit in edits_for(arm, range(total))]
    sites = [site for edit in edits for site in (edit.site, *getattr(edit, "reads", ()))]
    sites += [site.owner.site for site in sites if isinstance(site, Inner)]
    return min((_layer(model, site) for site in sites), default=0)


def _layer(model: Model, site: Site) -> int:
    if site.layer is not None:
        return max(site.layer - 1, 0) if host_of(site).name == "resid_pre" else site.layer
    return 0 if site.name in EMBEDDINGS else model.cfg.n_layers - 1


class Beginning:
    """The unedited stream of each prompt where the first edited layer reads it, computed once for all arms."""

    def __init__(self, model: Model, rows: Sequence[list[int]], layer: int, batch_size: int):
        self.site, self.streams = Site("resid_pre", layer), dict[int, Tensor]()
        for chunk in chunks([len(row) for row in rows], 1, batch_size):
            run = model.run([rows[number] for number in chunk.prompts], capture=self.site, logits=False)
            for number, stream, mask in zip(chunk.prompts, run[self.site], run.tokens.mask):
                self.streams[number] = stream[mask]

    def of(self, chunk: Chunk) -> tuple[Site, Float[Tensor, "rows pos d_model"]]:
        """Where a chunk's pass starts."""
        padded = pad_sequence([self.streams[number] for number in chunk.prompts], batch_first=True)
        return self.site, padded.repeat(len(chunk.arms), 1, 1)
