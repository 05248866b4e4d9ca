"""A block as data: its branches in the order in which they write, and where each of its sites is."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from torch import nn

from .families import BranchRow, Family
from .heads import Heads, heads_of
from .mixers import KINDS, Mixer, Side
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
        role: which value of the functions that the module calls.
    """

    path: str
    side: Side
    layout: str = "whole"
    slot: "Slot | None" = None
    item: int = 0
    flat: bool = False
    sum_of: tuple[str, ...] = ()
    role: str = ""


@dataclass(frozen=True, eq=False)
class Slot:
    """A branch of one block.

    Attributes:
        number: its place among the block's branches. mixer: what it computes. reads: the stream that it reads.
        before, after: paths of the norms that the block has around it. own_norm: no earlier branch reads through it.
        scale: what its output is multiplied by. sizes: the lengths of its mixer's own axes.
        heads: the sizes of its heads, where it is softmax attention.
    """

    row: BranchRow
    number: int
    mixer: Mixer
    reads: str
    before: str | None
    after: str | None
    own_norm: bool
    scale: float
    sizes: dict[str, int]
    heads: Heads | None = None

    @property
    def name(self) -> str:
        return self.row.name

    def places(self) -> Iterator[tuple[str, Place]]:
        """Its sites in the order of computation, without the stream that it reads."""
        if self.before and self.own_norm:
            yield f"{self.row.norm}_input", Place(self.before, "in", slot=self)
            for form in ("scale", "normalized"):
                yield f"{self.row.norm}_{form}", Place(self.before, "around", slot=self)
            yield f"{self.row.norm}_output", Place(self.before, "out", slot=self)
        yield f"{self.name}_input", Place(self.mixer.path, "in", slot=self)
        for name, inner in self.mixer.inner(self.name):
            path = self.mixer.at(self.mixer.part(inner))
            yield name, Place(path, inner.side, inner.layout, self, inner.item, inner.flat, role=inner.role)
        yield f"{self.name}_raw", Place(self.mixer.path, "out", slot=self)
        yield f"{self.name}_out", Place(self.after or self.mixer.path, "out", "branch", self)


@dataclass(frozen=True, eq=False)
class Block:
    """One block: its branches, and its sites in the order of computation."""

    slots: tuple[Slot, ...]
    places: dict[str, Place]

    @staticmethod
    def of(family: Family, config: Any, block: nn.Module) -> "Block":
        """What of the family's row this block has."""
        slots: list[Slot] = []
        for row in family.branches:
            if (mixer := row.mixer(block)) is not None and row.name not in {slot.name for slot in slots}:
                slots.append(_slot(row, mixer, slots, config, block))
        places = {"resid_pre": Place("", "in")}
        written = ["resid_pre"]
        for slot in slots:
            if slot.reads not in places:
                places[slot.reads] = Place(slot.before or slot.mixer.path, "in", sum_of=tuple(written))
                written = [slot.reads]
            places.update(slot.places())
            if slot is slots[0]:
                places.update({f"mixer_{form}": places[f"{slot.name}_{form}"] for form in FORMS})
            written.append(f"{slot.name}_out")
        places["resid_post"] = Place("", "out")
        return Block(tuple(slots), places)

    def sums(self) -> dict[str, tuple[str, ...]]:
        """Every stream that branches wrote into -> the sites that it is the sum of."""
        between = {name: place.sum_of for name, place in self.places.items() if place.sum_of}
        return between | {"resid_post": ("resid_pre", *(f"{slot.name}_out" for slot in self.slots))}

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


def _slot(row: BranchRow, mixer: Mixer, earlier: list[Slot], config: Any, block: nn.Module) -> Slot:
    parallel = bool(getattr(config, row.parallel) if isinstance(row.parallel, str) else row.parallel)
    beside = earlier[-1] if parallel and earlier else None
    before, after = (path if path and _is_norm(attrgetter(path)(block)) else None for path in (row.before, row.after))
    if before is None and beside is not None:
        before = beside.before
    scale = 1.0
    if row.scale is not None:
        scale = float(getattr(block if hasattr(block, row.scale) else config, row.scale))
    reads = beside.reads if beside else stream_before(len(earlier))
    own_norm = all(slot.before != before for slot in earlier)
    heads = heads_of(mixer, config, block)
    return Slot(row, len(earlier), mixer, reads, before, after, own_norm, scale, mixer.sizes(block), heads)


def _is_norm(module: Any) -> bool:
    """Some blocks have nothing, or a module that changes nothing, where others of the type have a norm."""
    return module is not None and not isinstance(module, nn.Identity)


def _norm_reason(slot: Slot, slots: tuple[Slot, ...], site: str) -> str:
    if slot.before is None:
        after = ", only one after it" if slot.after else ""
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
    if lacking == slot.mixer.kind == "mlp" and site == f"{slot.name}_gated":
        return f"has no norm inside its {slot.name}; use {slot.name}_post"
    if lacking == slot.mixer.kind == "mlp":
        return f"has no {site}: its {slot.name} is not gated; use {slot.name}_pre"
    if {lacking, slot.mixer.kind} != {"mlp", "mixture"}:
        return None
    if lacking == "mlp":
        return (
            "is a mixture of experts, whose neurons are batched parameters without a module to read; "
            f"use {slot.name}_out, router_logits, expert_weights or expert_indices"
        )
    return "has no router: it is not a mixture of experts"
