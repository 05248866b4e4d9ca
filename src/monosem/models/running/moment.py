"""What an edit is told about an activation, what a session needs of an edit, and where edits act."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...errors import BadInput
from ..native import Native
from ..places.sites import Inner, Site
from ..tokens import TokenBatch


@dataclass
class Moment:
    """What an edit is told about the activation that it changes.

    A pass with a KV cache sees one chunk of the tokens at a time; `mask`, `positions` and `ids` are of the chunk (at
    rot_k: of all keys, with the cache's), `tokens` are all tokens so far.

    Attributes:
        tokens: the (padded) whole sequence so far.
        prompt_lengths: number of prompt tokens of each row, `batch`.
        column: column of the first token of this chunk in the whole sequence; > 0 with a KV cache.
        across: at scores and patterns of cross attention, whose keys are tokens of the source.
        rows: which rows of the whole batch these are, when it runs in parts; None for all of them.
        batch: number of rows of the whole batch.
        columns: for a chunk of each row's last token alone, which columns these are in the whole sequence.
        room: how many generated tokens the pass may still see after the prompt; 0 in a run.
        model: whose pass it is.
        visible: at scores and pattern, which keys each query may see, `batch|1 head|1 query key`.
        chosen: the tokens that the edit is narrowed to (`Edit.at`), `batch pos`. heads: likewise; None for all.
        before: the activation as it came here, before the edits at this site.
        notes: activations of this pass at the sites that an edit `reads` beside its own, before and after edits there.
        memory: what an edit keeps for later edits of this pass.
        lasting: what edits remember from one step of a generation to the next; empty when a run or generation begins.
        inside: comes by places inside an edit; None where nobody asked for any.
    """

    tokens: TokenBatch
    prompt_lengths: Int[Tensor, "batch"]
    column: int = 0
    across: bool = False
    rows: slice | Int[Tensor, "part"] | None = None
    batch: int = 0
    columns: Int[Tensor, "batch 1"] | None = None
    room: int = 0
    model: Native | None = None
    visible: Bool[Tensor, "batch head query key"] | None = None
    chosen: Bool[Tensor, "batch pos"] | None = None
    heads: tuple[int, ...] | None = None
    before: Tensor | None = None
    notes: dict[Site, tuple[Tensor, Tensor]] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)
    lasting: dict[Any, Any] = field(default_factory=dict)
    inside: "Inside | None" = None

    def part(self, whole: Tensor) -> Tensor:
        """The columns of this chunk, of a tensor with all columns so far, `batch column`."""
        return whole[:, self.column :] if self.columns is None else whole.gather(1, self.columns)

    @cached_property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """Which tokens of this chunk are real."""
        return self.part(self.tokens.mask)

    @cached_property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Index of each token among the real tokens of its row, counted from the start of the prompt."""
        return self.part(self.tokens.positions)

    @cached_property
    def ids(self) -> Int[Tensor, "batch pos"]:
        """Token ids of this chunk."""
        return self.part(self.tokens.ids)

    @property
    def size(self) -> int:
        """Number of rows of the whole batch."""
        return self.batch or len(self.tokens)

    def row(self, number: int) -> int:
        """The number in the whole batch of a row of this part."""
        return number if self.rows is None else int(torch.arange(self.size)[self.rows][number])

    def rows_of(self, per_row: Tensor) -> Tensor:
        """These rows of a tensor with one item for each row of the whole batch. Raises `BadInput` for fewer or more."""
        if len(per_row) != self.size:
            raise BadInput(f"{len(per_row)} values for {self.size} rows; give one, or one a row")
        return per_row if self.rows is None else per_row[self.rows]

    def of_rows(self, part: slice, rows: Int[Tensor, "part"] | None, batch: int) -> "Moment":
        """The same for some rows alone, `rows` of a whole batch of `batch` of their own; None: they are the whole."""
        tokens, columns, visible = self.tokens.of_rows(part), self.columns, self.visible
        came = self.before
        return replace(
            self,
            tokens=tokens,
            prompt_lengths=self.prompt_lengths[part],
            rows=rows,
            batch=batch if rows is not None else 0,
            columns=None if columns is None else columns[part],
            visible=visible if visible is None or len(visible) == 1 else visible[part],
            before=None if came is None else came[part],
            notes={site: (before[part], x[part]) for site, (before, x) in self.notes.items()},
            memory=self.memory.setdefault((part.start, part.stop), {}),
            lasting=self.lasting.setdefault(("rows", part.start, part.stop), {}),
            inside=self.inside if len(tokens) == len(self.tokens) else None,  # what is captured there has all rows
        )

    @property
    def last(self) -> "Moment":
        """The same for the last real token of each row alone (`batch 1`)."""
        return replace(self, column=self.tokens.ids.shape[1] - 1, columns=self.tokens.last[:, None])

    @property
    def of_source(self) -> "Moment":
        """The same for the text that the encoder reads: all of it, whatever chunk the decoder is at."""
        source = self.tokens.source
        assert source is not None
        return replace(self, tokens=source, prompt_lengths=source.lengths, column=0, columns=None, across=False)

    def of_keys(self, count: int) -> "Moment":
        """The same for the last `count` tokens so far: the keys that the queries of this chunk are compared with."""
        if self.across:
            return self.of_source
        return replace(self, column=self.tokens.ids.shape[1] - count)


class Inside(Protocol):
    """Places inside an edit, as a session comes by them."""

    def asked(self, site: Site) -> bool:
        """Whether it is captured or edited."""
        ...

    def written(self, site: Site) -> bool:
        """Whether it is edited."""
        ...

    def columns(self, site: Site) -> Int[Tensor, "n"] | None:
        """The latents that are visited at a place, in this order; None for all."""
        ...

    def visit(self, site: Site, value: Tensor, *, moment: Moment) -> Tensor:
        """The value after the edits there, which is captured where that was asked for."""
        ...


class EditLike(Protocol):
    """What a session needs of an edit (`monosem.edits.Edit`)."""

    @property
    def site(self) -> Site: ...

    def apply(self, x: Tensor, moment: Moment) -> tuple[Tensor, bool]:
        """The new activation, and whether the edit reached at least one token."""
        ...


Chain = dict[Site, list[EditLike]]


@dataclass
class Acting:
    """Edits by the sites where they act.

    Attributes:
        edits: what the user asked for. chains: these, and the dictionaries that look on, each where the first edit
            inside it stands.
        observed: the sites of those that look on.
        columns: places of latents of which some are visited alone -> which, in this order.
    """

    edits: Chain = field(default_factory=partial(defaultdict, list))
    chains: Chain = field(default_factory=partial(defaultdict, list))
    observed: set[Site] = field(default_factory=set)
    columns: dict[Site, Int[Tensor, "n"]] = field(default_factory=dict)

    @classmethod
    def of(cls, edits: Iterable[EditLike], wanted: Iterable[Site], grad: bool) -> Self:
        """Edits of latents act inside their dictionary where it is spliced in, a place inside it is captured or edited,
        there are several (they change the same codes), or it writes elsewhere than it reads. Of its latents, only those
        that they edit are computed, unless all are captured or edited.

        Raises:
            BadInput: a dictionary that is spliced in twice, so that there are two of a place.
        """
        given, acting = list(edits), cls()
        captured = [site for site in wanted if isinstance(site, Inner)]
        of_latents = [edit for edit in given if getattr(edit, "place", None) is not None]
        spliced = [id(owner) for edit in given if (owner := getattr(edit, "owner", None)) is not None]
        places = [site for edit in given if edit not in of_latents and isinstance(site := edit.site, Inner)]
        inner = [*captured, *places]
        for site in (*inner, *(edit.place for edit in of_latents)):  # type: ignore[attr-defined]
            if spliced.count(id(site.owner)) > 1:
                raise BadInput(
                    f"the dictionary of {site} is spliced in twice, so there are two of that place: splice it once"
                )
        within = _within(of_latents, {*spliced, *(id(site.owner) for site in inner)})
        for edit in within:
            if edit.place not in inner:
                acting._narrow(edit.place, edit.latents)
        present = set(spliced)
        for edit in given:
            at = edit.inside(acting.columns.get(edit.place)) if any(edit is other for other in within) else edit  # type: ignore[attr-defined]
            acting.edits[at.site].append(at)
            acting._look_on(at.site, present, further=True)
            acting.chains[at.site].append(at)
        for site in captured:
            acting._look_on(site, present, further=grad)
        return acting

    def _narrow(self, place: Site, latents: Tensor) -> None:
        known = self.columns.get(place)
        every = latents.reshape(-1).cpu() if known is None else torch.cat([known, latents.reshape(-1).cpu()])
        self.columns[place] = every.unique()

    def _look_on(self, site: Site, present: set[int], further: bool) -> None:
        """further: its later outputs change with it, or have a gradient to it."""
        for owner in (site.owner, *(site.also if further else ())) if isinstance(site, Inner) else ():
            if id(owner) not in present:
                present.add(id(owner))
                self.observed.add(owner.site_out)
                self.chains[owner.site_out].append(owner.observer())


def _within(of_latents: list[Any], asked: set[int]) -> list[Any]:
    """The edits of latents that act inside their dictionary."""
    groups = Counter((id(edit.place.owner), getattr(edit, "arm", None)) for edit in of_latents)
    several = {owner for (owner, _), count in groups.items() if count > 1}
    return [edit for edit in of_latents if id(edit.place.owner) in asked | several or isinstance(edit.site, Inner)]
