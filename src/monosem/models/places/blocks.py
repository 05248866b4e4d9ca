"""A block as data: its branches in the order in which they write, and where each of its sites is."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from .families import BranchRow, Family
from .heads import Heads, heads_of
from .kinds import KINDS, Side
from .mixers import Mixer, module_at
from .sites import FORMS, declare, stream_before

for _form in FORMS:  # of a block's first branch, whatever it computes and is called
    declare(f"mixer_{_form}")


class Place(NamedTuple):
    """A site in a block: the path of a module ("" is the block), what of it, and a layout (`points.layout_of`).

    Attributes:
        slot: the branch that the site belongs to.
        item: which of the module's outputs it is, where there are several.
        flat: the module sees `batch*pos` rows (routers).
        sum_of: what a stream between branches is the sum of: the stream before, and what was written since, in order.
            None of it where a norm closes the sum: its output is the stream, and can be written as it is.
        role: which value of the functions that the module calls.
        fixed: why it can be read alone.
        keeps: what the first of `sum_of` becomes before the others are added, of the block and the stream.
    """

    path: str
    side: Side
    layout: str = "whole"
    slot: "Slot | None" = None
    item: int = 0
    flat: bool = False
    sum_of: tuple[str, ...] = ()
    role: str = ""
    fixed: str = ""
    keeps: Callable[[Any, Tensor], Tensor] | None = None


class Sum(NamedTuple):
    """A stream that branches wrote into: the sum of these sites, through a norm (its path) where one closes the sum.

    streams: the module (its path) that says how several streams are mixed, and what the parts become in them.
    keeps: what the first part becomes before the others are added, of the block and the stream.
    """

    stream: str
    parts: tuple[str, ...]
    norm: str | None = None
    streams: str = ""
    keeps: Callable[[Any, Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Slot:
    """A branch of one block.

    Attributes:
        number: its place among the block's branches. mixer: what it computes. reads: the stream that it reads.
        before, after: paths of the norms that the block has around it. own_norm: no earlier branch reads through it.
        closing: path of the norm that the stream goes through after the branch was added.
        scale: what its output is multiplied by. sizes: the lengths of its mixer's own axes.
        heads: the sizes of its heads, where it is softmax attention. given: what the norm's output is multiplied by.
        scales: what the outputs of its mixer's parts are multiplied by, for some.
        gated: the norm before it ends with a gate, so that no scale and normalised value tell its output (A.X K2).
    """

    row: BranchRow
    number: int
    mixer: Mixer
    reads: str
    before: str | None
    after: str | None
    closing: str | None
    own_norm: bool
    scale: float
    sizes: dict[str, int]
    heads: Heads | None = None
    given: float = 1.0
    scales: dict[str, float] = field(default_factory=dict)
    gated: bool = False

    @property
    def name(self) -> str:
        return self.row.name

    def places(self) -> Iterator[tuple[str, Place]]:
        """Its sites in the order of computation, without the stream that it reads."""
        flat, (first, *_, last) = self.mixer.flat, (*self.mixer.chain, self.mixer.chain[-1])
        if self.before and self.own_norm:
            yield from self._norm(self.before, flat)
        if not self.mixer.more:
            yield f"{self.name}_input", Place(first, "in", slot=self, flat=flat)
        for name, inner in self.mixer.inner(self.name):
            path = first if inner.side == "inside" else self.mixer.at(self.mixer.part(inner))
            at = Place(path, inner.side, inner.layout, self, inner.item, inner.flat or flat)
            yield name, at._replace(role=inner.role, fixed=inner.fixed)
        raw = Place(last, "out", "raw", self, flat=flat) if last else Place(str(self.after), "in", "raw", self)
        yield f"{self.name}_raw", raw
        yield f"{self.name}_out", Place(self.after or last, "out", "branch", self, flat=flat)
        if self.closing:
            yield from self._norm(self.closing)

    def _norm(self, path: str, flat: bool = False) -> Iterator[tuple[str, Place]]:
        sides: dict[str, Side] = {"input": "in", "scale": "around", "normalized": "around", "output": "out"}
        for form, side in sides.items():
            if side == "around" and self.gated:
                continue
            yield f"{self.row.norm}_{form}", Place(path, side, slot=self, flat=flat)


@dataclass(frozen=True, eq=False)
class Block:
    """One block: its branches, and its sites in the order of computation.

    Attributes:
        factor: what the stream is multiplied by at the block's end, after all branches have written.
    """

    slots: tuple[Slot, ...]
    places: dict[str, Place]
    sums: tuple[Sum, ...]
    factor: float = 1.0

    @staticmethod
    def all_of(family: Family, config: Any, blocks: Iterable[nn.Module]) -> "list[Block]":
        """What of the family's row each block has: one `Block` for all that have the same."""
        kinds: list[tuple[list[Any], Block]] = []
        made = []
        for block in blocks:
            opening = family.opening if family.opening and module_at(block, family.opening) is not None else None
            slots: list[Slot] = []
            for row in family.branches:
                if (mixer := row.mixer(block)) is not None and row.name not in {slot.name for slot in slots}:
                    slots.append(_slot(row, mixer, slots, config, block))
            factor = 1.0 if family.factor is None else float(getattr(block, family.factor))
            key = [opening, factor, *map(vars, slots)]
            if (one := next((block for other, block in kinds if other == key), None)) is None:
                kinds.append((key, one := Block._of(family, slots, opening, factor)))
            made.append(one)
        return made

    @staticmethod
    def _of(family: Family, slots: list[Slot], opening: str | None, factor: float) -> "Block":
        if family.alternating:
            return _alternating(tuple(slots), family.alternating)
        places, sums = {"resid_pre": Place(opening, "out") if opening else Place("", "in")}, list[Sum]()
        keeps = None
        whole: tuple[str, ...] = ("resid_pre",)  # since the block began, or the last closing norm
        written = whole  # since the last stream
        for slot in slots:
            if slot.row.streams:
                places.setdefault(slot.reads, Place(slot.row.streams, "in", fixed=_MIXED))
                places.update(slot.places())
                after = "resid_post" if slot is slots[-1] else stream_before(slot.number + 1)
                sums.append(Sum(after, (slot.reads, f"{slot.name}_out"), streams=slot.row.streams))
                whole = ("resid_post",)
                continue
            if slot.reads not in places:
                path, flat = slot.before or slot.mixer.chain[0], slot.mixer.flat
                places[slot.reads] = Place(path, "in", flat=flat, sum_of=written, keeps=keeps)
                sums.append(Sum(slot.reads, written, keeps=keeps))
                written = (slot.reads,)
                if keeps is not None:
                    whole, keeps = written, None
            places.update(slot.places())
            if slot is slots[0]:
                forms = [form for form in FORMS if f"{slot.name}_{form}" in places]
                places.update({f"mixer_{form}": places[f"{slot.name}_{form}"] for form in forms})
            whole, written = (*whole, f"{slot.name}_out"), (*written, f"{slot.name}_out")
            keeps = slot.row.keeps
            if slot.closing:
                stream = "resid_post" if slot is slots[-1] else stream_before(slot.number + 1)
                places[stream] = Place(slot.closing, "out")
                sums.append(Sum(stream, whole, slot.closing))
                whole = written = (stream,)
        places.pop("resid_post", None)
        places["resid_post"] = Place("", "out")
        if whole != ("resid_post",):
            sums.append(Sum("resid_post", whole, keeps=keeps))
        return Block(tuple(slots), places, tuple(sums), factor)

    @property
    def closed(self) -> bool:
        """Whether norms close sums in it, or it changes the stream itself: then its streams are not sums."""
        return any(slot.closing or slot.row.keeps for slot in self.slots)

    def why_not(self, site: str) -> str:
        """Why the block has no such site, as it follows "layer 3 of gpt2 "; the mixers give reasons of their own."""
        if site.startswith("resid_"):
            names = " and ".join(slot.name for slot in self.slots)
            return f"has no stream between its branches: {names or 'nothing'} all read resid_pre (parallel blocks)"
        for slot in self.slots:
            if site.startswith(f"{slot.row.norm}_"):
                return _norm_reason(slot, self.slots, site)
        for slot in self.slots:
            if reason := _mixer_reason(slot, site):
                return reason
        parts = ", ".join(f"{slot.name} ({slot.mixer.kind})" for slot in self.slots)
        return f"has no such site; its branches are {parts}"


_MIXED = "the block mixes its streams there beside what reads them; use resid_pre, or what a branch adds"


def _alternating(slots: tuple[Slot, ...], module: str) -> Block:
    """AltUp: one stream is predicted from all; branches read and write it, and what became of it corrects all."""
    places = {"resid_pre": Place("", "in", "streams_first")}
    for slot in slots:
        path = slot.before or slot.mixer.chain[0]
        places.setdefault(slot.reads, Place(path, "in", fixed=_MIXED))
        places.update(slot.places())
    forms = [form for form in FORMS if f"{slots[0].name}_{form}" in places]
    places |= {f"mixer_{form}": places[f"{slots[0].name}_{form}"] for form in forms}
    places["resid_post"] = Place("", "out", "streams_first")
    first, *others = [f"{slot.name}_out" for slot in slots if slot.reads == "active"]
    middle, last = ([f"{slot.name}_out" for slot in slots if slot.reads == at] for at in ("resid_mid", "corrected"))
    corrected = ("resid_pre", "resid_mid", *middle)
    sums = (
        Sum("active", ("resid_pre",), streams=module),
        Sum("resid_mid", ("active", first, *others), streams=module),
        Sum("corrected", corrected, streams=module),
        Sum("resid_post", (*corrected, *last), streams=module),
    )
    return Block(slots, places, sums)


def _slot(row: BranchRow, mixer: Mixer, earlier: list[Slot], config: Any, block: nn.Module) -> Slot:
    parallel = bool(getattr(config, row.parallel) if isinstance(row.parallel, str) else row.parallel)
    beside = earlier[-1] if parallel and earlier else None
    if row.beside:
        beside = next(slot for slot in earlier if slot.name == row.beside)
    candidates = (row.before,) if isinstance(row.before, str) else row.before or ()
    before = next((path for path in candidates if _is_norm(module_at(block, path))), None)
    after = row.after if row.after and _is_norm(module_at(block, row.after)) else None
    if before is None and beside is not None:
        before = beside.before
    closing = row.closing
    if row.norm_first is not None:  # one norm, which stands before the branch or closes the sum
        before, closing = (before, None) if getattr(config, row.norm_first) else (None, closing)
    scale = 1.0
    if callable(row.scale):
        scale = row.scale(block)
    elif row.scale is not None:
        scale = float(getattr(block if hasattr(block, row.scale) else config, row.scale))
    reads = row.reads or (beside.reads if beside else stream_before(len(earlier)))
    own_norm = all(slot.before != before for slot in earlier)
    heads = heads_of(mixer, config, block)
    given = 1.0 if row.given is None else _number(config, row.given)
    scales = {part: _number(config, path) for part, path in mixer.scales.items()}
    sizes = mixer.sizes(block)
    gated = before is not None and _is_gated(module_at(block, before))
    ends = (reads, before, after, closing, own_norm)
    return Slot(row, len(earlier), mixer, *ends, scale, sizes, heads, given, scales, gated)


def _number(config: Any, path: str) -> float:
    """A number of the config; `name.1` is the second item of a list."""
    name, _, item = path.partition(".")
    value = getattr(config, name)
    return float(value[int(item)] if item else value)


def _is_norm(module: Any) -> bool:
    """Some blocks have nothing, or a module that changes nothing, where others of the type have a norm."""
    return module is not None and not isinstance(module, nn.Identity)


def _is_gated(norm: Any) -> bool:
    """Whether a norm has modules of its own inside, which are no adapter's."""
    return bool([*norm.children()]) and not hasattr(norm, "base_layer")


def _norm_reason(slot: Slot, slots: tuple[Slot, ...], site: str) -> str:
    if slot.gated:
        return f"has a gate in its norm, so that no scale tells its output; use {slot.row.norm}_output"
    if slot.before is None:
        after = ", only one after it" if slot.after or slot.closing else ""
        return f"has no norm before {slot.name}{after}; {slot.name} is given {slot.name}_input"
    first = next(other for other in slots if other.before == slot.before)
    return f"reads {first.name} and {slot.name} through one norm; use {site.replace(slot.row.norm, first.row.norm, 1)}"


# why a mixer lacks an inner site that others have
_REASONS = {
    "mixed": "has nothing between mixing and the output projection; use z",
    "attn_gate": "has no output gate",
    "k": "takes keys and values from an earlier layer; rot_k and values hold them as it uses them",
    "v": "has no values of its own; `values` holds what it mixes",
    "q_latent": "makes queries from the stream, not from a latent",
    "kv_latent": "makes keys and values from the stream, not from a latent",
    "k_rope": "has no latents: its keys are k, and rot_k after rotation",
    "k_nope": "has no latents: its keys are k, and rot_k after rotation",
}


def _mixer_reason(slot: Slot, site: str) -> str | None:
    """What the branch's mixer lacks that another mixer of its row, or another architecture, has."""
    if slot.mixer.row.attends and site in _REASONS:
        if slot.mixer.kind == "latent_attention" and site == "k":
            return "makes its keys in two parts: k_nope and k_rope; rot_k holds them joined"
        return _REASONS[site]
    lacking = next((key for key, kind in KINDS.items() if site in {kind.site(n, slot.name) for n in kind.sites}), None)
    if lacking and slot.mixer.kind == "other" and slot.name in (KINDS[lacking].plain, site.split("_")[0]):
        return f"is read without what is inside its {slot.name}; use {slot.name}_input, {slot.name}_out"
    if lacking == slot.mixer.kind == "mlp" and site == f"{slot.name}_gated":
        return f"has no norm inside its {slot.name}; use {slot.name}_post"
    if lacking == slot.mixer.kind == "mlp":
        return f"has no {site}: its {slot.name} is not gated; use {slot.name}_pre"
    mixtures = ("mixture", "joined_mixture", "scaled_mixture")
    if slot.mixer.kind == "mlp":
        return "has no router: it is not a mixture of experts" if lacking in mixtures else None
    if lacking == "mlp" and slot.mixer.kind in mixtures:
        return (
            "is a mixture of experts: its neurons are expert_post, of the experts in expert_indices, and "
            f"shared_post where it has a shared expert; {slot.name}_out is what it adds"
        )
    return None
