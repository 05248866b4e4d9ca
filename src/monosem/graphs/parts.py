"""A frozen run taken apart: nodes of every layer, what they leave over (errors), tokens, and what is constant."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import BadInput, check_name
from .frozen import Frozen, Targets
from .transcoders import Transcoders, active, baseline, output_of
from .units import NEURONS, Neurons, Units, has_neurons


class Source(NamedTuple):
    """Columns of rows: the units of a list (by number), the errors of a branch (by number), tokens, or the bias."""

    kind: Literal["units", "error", "token", "bias"]
    number: int = 0


@dataclass(frozen=True, eq=False)
class Parts:
    """What the stream of a frozen run is the sum of.

    Attributes:
        units: neurons or latents, in the order of the depth at which they read.
        opaque: branches (by number) that have an error node at each token.
        constants: what a branch adds whatever the stream is: `pos d_model` of each.
        errors: what a branch adds beside its units, its constant and its linear maps: `pos d_model` of each opaque one,
            but for MLPs all of whose neurons are there.
        ends: the logits that are read.
    """

    frozen: Frozen
    units: list[Units]
    opaque: list[int]
    constants: dict[int, Float[Tensor, "pos d_model"]]
    errors: dict[int, Float[Tensor, "pos d_model"]] = field(default_factory=dict)
    ends: Targets | None = None

    @staticmethod
    def of(frozen: Frozen, transcoders: Sequence[Transcoders], neurons: str, everywhere: bool) -> "Parts":
        """All units that are active; skip connections of transcoders become linear maps of the frozen run.

        Args:
            neurons: how neurons of MLPs without a transcoder read, a row of `NEURONS`; "none": one error node a token.
        """
        check_name("rule for neurons", neurons, (*NEURONS, "none"))
        units, constants, replaced = list[Units](), dict(frozen.constants), set[int]()
        for one in transcoders:
            for layer in range(1 if isinstance(one, Dictionary) else one.n_layers):
                units.append(active(frozen, one, layer, everywhere))
                at, raw = output_of(frozen, one.site_out if isinstance(one, Dictionary) else one.sites_out[layer])
                if at in replaced:
                    raise BadInput(f"two transcoders write {frozen.branches[at].out}: give one for each layer")
                replaced.add(at)
                constants[at] = baseline(frozen, one, layer, at, raw)
        shape = (frozen.length, frozen.model.cfg.d_model)
        for number, branch in enumerate(frozen.branches):
            if number in constants:
                continue
            constants[number] = torch.zeros(shape, dtype=frozen.dtype, device=frozen.model.device)
            if neurons != "none" and has_neurons(branch):
                units.append(found := Neurons.of(frozen, number, neurons))
                written = frozen.written[number]
                constants[number] = written.push(found.known.bias.expand(shape)) + written.constant
        units.sort(key=lambda one: one.depth)
        opaque = [number for number in range(len(frozen.branches)) if number not in frozen.constants]
        return Parts(frozen, [], opaque, constants).with_units(units)

    def with_units(self, units: list[Units]) -> "Parts":
        """The same run with other nodes: what they leave over is error."""
        frozen, errors = self.frozen, dict[int, Tensor]()
        whole = {number for one in units if one.full for number in one.writes}
        for number in self.opaque:
            if number in whole:
                continue
            left = frozen.at(frozen.branches[number].out) - self.constants[number]
            for path in frozen.linear.get(number, ()):
                left = left - path.push(frozen.at(path.reads))
            for one in units:
                if number in one.writes and len(one):
                    made = one.written(number)
                    left = left - (frozen.written[number].push(made) if one.raw else made)
            errors[number] = left
        return Parts(frozen, units, self.opaque, self.constants, errors, self.ends)

    @property
    def n_units(self) -> int:
        return sum(map(len, self.units))

    @property
    def n_columns(self) -> int:
        return self.n_units + (len(self.opaque) + 1) * self.frozen.length + 1

    @property
    def ids(self) -> list[str]:
        """The node of each column: `12_381_5` is unit 381 of layer 12 at token 5."""
        frozen, found = self.frozen, list[str]()
        for one in self.units:
            found += [f"{one.layer}_{i}_{p}" for i, p in zip(one.indices.tolist(), one.positions.tolist())]
        for branch in (frozen.branches[number] for number in self.opaque):
            found += [f"{branch.layer}_{branch.name}-error_{p}" for p in range(frozen.length)]
        found += [f"E_{token}_{p}" for p, token in enumerate(frozen.batch.ids[0].tolist())]
        return [*found, "bias"]

    def rows(self, targets: Targets) -> dict[Source, Float[Tensor, "target n"]]:
        """What each part gives to each target; units as if their values were 1. A block may be narrower than its
        source: what is left out (later tokens) gives nothing, and so do sources that are missing (later layers)."""
        blocks, bias = dict[Source, Tensor](), targets.constants.clone()
        for source, block in self._contributions(targets):
            if source.kind == "bias":
                bias += block
            else:
                blocks[source] = blocks[source] + block if source in blocks else block
        blocks[Source("bias")] = bias[:, None]
        return blocks

    def _contributions(self, targets: Targets) -> Iterator[tuple[Source, Tensor]]:
        for number, stream in self.frozen.descend(targets):
            length = stream.shape[1]
            if number < 0:
                entered = self.frozen.at(self.frozen.start)[:length]
                yield Source("token"), torch.einsum("tpd,pd->tp", stream, entered)
                continue
            raw = None
            for i, one in enumerate(self.units):
                if number in one.writes and len(one):
                    if one.raw and raw is None:
                        raw = self.frozen.written[number].pull(stream)
                    yield Source("units", i), one.along(number, raw if one.raw and raw is not None else stream)
            if number in self.errors:
                yield Source("error", number), torch.einsum("tpd,pd->tp", stream, self.errors[number][:length])
            yield Source("bias"), stream.flatten(1) @ self.constants[number][:length].flatten()

    def starts(self) -> dict[Source, int]:
        """The first column of each source in a row as one vector: units, errors, tokens, bias."""
        sizes = {Source("units", i): len(one) for i, one in enumerate(self.units)}
        sizes |= {Source("error", number): self.frozen.length for number in self.opaque}
        sizes |= {Source("token"): self.frozen.length, Source("bias"): 1}
        starts, at = dict[Source, int](), 0
        for source, size in sizes.items():
            starts[source], at = at, at + size
        return starts
