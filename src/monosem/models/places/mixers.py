"""Mixers: a kind of them (`kinds.KINDS`), and where one architecture has its modules."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Literal

from torch import nn

from .calls import FUNCTIONS, names_of
from .kinds import KINDS, Inner, Kind

Fused = Literal["stacked", "interleaved", "quarters"]


@dataclass(frozen=True)
class Mixer:
    """A mixer of one architecture: its module in the block, and the paths of its parts in that module.

    Attributes:
        fused: how one module for q, k and v lays them out: [q | k | v], q k v for each kv head, or CodeGen's quarters.
        clip: config attribute; q, k, v are clipped in place right after their projection.
        of: name of its module's class, where blocks have modules of several classes at this path.
        calls: functions that its forward calls, by their names there (`calls.FUNCTIONS`).
        axes: of mixers with a memory: the length of an axis, or the attribute of the module that has it.
        gate: what the output gate of an attention goes through, a name of `torch.nn.functional`.
        gate_at: of mixers with a memory: where the gate lies in the output of its part.
        value_scale: config attribute that values are multiplied by before they are mixed.
        ends: modules inside it, where no module is given its input and returns its output: the first one's input and
            the last one's output ("": what the norm after it reads; ".": itself). In an MLP they are the whole chain.
            OPT's MLP is no module of its own, BLOOM's modules add the stream before they return, BERT's norm it.
        bias: parameter that is added to its output outside (GPT-NeoX-Japanese).
        registered: it calls the attention function of transformers' registry. flat: it sees `batch*pos` rows.
        in_place: the block writes into the tensor that it returns (Falcon).
        scales: config attributes that what a part gives is multiplied by ("mlp_multipliers.1": an item of a list).
        more: it is given more than the stream that it reads.
        differs: what is otherwise about a site than its kind says: fields of `Inner`.
    """

    kind: str
    path: str
    parts: dict[str, str] = field(default_factory=dict)
    fused: Fused | None = None
    clip: str | None = None
    of: str | None = None
    calls: tuple[str, ...] = ()
    axes: dict[str, str | int] = field(default_factory=dict)
    gate: str = "sigmoid"
    gate_at: Literal["whole", "first", "last", "grouped"] = "whole"
    value_scale: str | None = None
    ends: tuple[str, ...] = ()
    bias: str | None = None
    registered: bool = True
    flat: bool = False
    in_place: bool = False
    scales: dict[str, str] = field(default_factory=dict)
    more: bool = False
    differs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def row(self) -> Kind:
        return KINDS[self.kind]

    @property
    def projections(self) -> list[str]:
        """The parts of an attention that are linear."""
        return [part for part in ("q", "k", "v", "kv_a", "kv", "gate", "out") if part in self.parts]

    @property
    def gated_queries(self) -> bool:
        """Whether one projection computes [query | gate] head by head."""
        return self.parts.get("gate") == self.parts.get("q")

    def at(self, part: str) -> str:
        """The path of a part in the block; "" is the mixer's module itself."""
        return self._within(self.parts[part]) if part else self.path

    @property
    def chain(self) -> tuple[str, ...]:
        """The modules in the block from its input to its output."""
        return tuple(self._within(path.strip(".")) if path else "" for path in self.ends) if self.ends else (self.path,)

    def _within(self, path: str) -> str:
        return ".".join(filter(None, (self.path, path)))

    def part(self, inner: Inner) -> str:
        """The part that an inner site is at."""
        return inner.instead if inner.instead and inner.part not in self.parts else inner.part

    def is_in(self, block: nn.Module) -> bool:
        """Whether a block has the mixer's module with all its parts, which calls what the mixer calls."""
        if self.of is not None and type(module_at(block, self.path)).__name__ != self.of:
            return False
        if any(module_at(block, path) is None for path in (*map(self.at, ("", *self.parts)), *self.chain)):
            return False
        return not self.calls or set(self.calls) <= names_of(module_at(block, self.path)).keys()

    def found(self, block: nn.Module) -> "Mixer":
        """The mixer with the usual parts that this block has."""
        module = module_at(block, self.path)
        usual = {
            part: next((path for path in paths if module_at(module, path) is not None), None)
            for part, paths in self.row.usual.items()
            if part not in self.parts
        }
        more = {part: path for part, path in usual.items() if path is not None}
        return replace(self, parts=self.parts | more) if more else self

    def sizes(self, block: nn.Module) -> dict[str, int]:
        """The lengths of its own axes in a block that has it."""
        module = module_at(block, self.path)
        return {axis: of if isinstance(of, int) else int(attrgetter(of)(module)) for axis, of in self.axes.items()}

    def inner(self, branch: str) -> Iterator[tuple[str, Inner]]:
        """The inner sites by their names in a branch; a part that this architecture does not have, has no site."""
        roles = {role for name in self.calls for role in FUNCTIONS[name]}
        for name, usual in self.row.sites.items():
            inner = usual._replace(**self.differs[name]) if name in self.differs else usual
            there = inner.role in roles if inner.side == "call" else not inner.part or self.part(inner) in self.parts
            if there and (not inner.needs or any(part in self.parts for part in inner.needs)):
                yield self.row.site(name, branch), inner


def module_at(block: nn.Module, path: str) -> Any:
    """A module of a block by its path, None for what the block does not have."""
    for name in filter(None, path.split(".")):
        block = getattr(block, name, None)  # type: ignore[assignment]
    return block
