"""What nodes of a layer are: neurons of an MLP, or latents of a transcoder. Each reads the stream, and writes.

A neuron's or latent's read-out is linear in the stream once the norm's size is frozen:

| node | what its row sums to | frozen beside patterns and norms |
|---|---|---|
| neuron of a plain MLP | its pre-activation | nothing |
| neuron of a gated MLP, `neurons="up"` | its value act(gate) · up | act(gate): the row says what made it so large |
| neuron of a gated MLP, `neurons="half"` | its value | act(gate) and up, half of the value each (RelP's half rule) |
| latent | its pre-activation | nothing |

Freezing act(gate) keeps the row exact: the value is linear in what up reads. What opened the gate is then not seen; the
half rule gives the gate's inputs half of the value, as act(gate) = (act(gate) / gate) · gate with the ratio frozen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models import Branch, Model, Site
from ..models.places.weights import bias_of, weight_from
from .frozen import Frozen, Targets

NEURONS = ("up", "half")


@dataclass(frozen=True, eq=False)
class Units:
    """Some neurons or latents of one layer at some tokens, in the order of position, then index.

    Attributes:
        kind: "neuron" or "latent". layer: of the branch that they belong to. depth: where they read.
        positions, indices, values: of each: its token, its number, how active it is.
        full: all units of a layer at all tokens, so that none has to be looked up.
    """

    frozen: Frozen
    layer: int
    depth: int
    positions: Int[Tensor, "unit"]
    indices: Int[Tensor, "unit"]
    values: Float[Tensor, "unit"]
    full: bool = False
    kind = "latent"

    def __len__(self) -> int:
        return len(self.indices)

    def chosen(self, which: Int[Tensor, "n"]) -> "Units":
        """Some of them, in their order."""
        which = which.sort().values
        picked = {name: getattr(self, name)[which] for name in ("positions", "indices", "values")}
        return replace(self, **picked, full=False)

    def targets(self, which: slice = slice(None)) -> Targets:
        """Their read-outs of the stream."""
        positions, indices = self.positions[which], self.indices[which]
        vectors, constants, sums = self._read(positions, indices)
        return Targets(vectors, positions, self.depth, constants, sums)

    def _read(self, positions: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors in the stream, what is added, and the read-out in the run."""
        raise NotImplementedError

    @property
    def writes(self) -> list[int]:
        """The branches (by number) at which they write."""
        raise NotImplementedError

    def rows(self, number: int, indices: Int[Tensor, "n"] | None) -> Float[Tensor, "n width"]:
        """What units write at a branch, for a value of 1; None: all of them."""
        raise NotImplementedError

    @property
    def raw(self) -> bool:
        """Whether they write into the branch's raw output, before a norm after it."""
        return True

    def spans(self) -> Iterator[tuple[int, slice]]:
        """Positions, and which units are there."""
        counts = torch.bincount(self.positions, minlength=1).tolist()
        first = 0
        for position, count in enumerate(counts):
            if count:
                yield position, slice(first, first + count)
            first += count

    def along(self, number: int, pulled: Float[Tensor, "target pos width"]) -> Float[Tensor, "target unit"]:
        """What units of value 1 would give to targets, from the cotangent of what is written at a branch; of the units
        at its positions, the first so many."""
        length = pulled.shape[1]
        if self.full:
            return (pulled @ self.rows(number, None).T).flatten(1)
        out = pulled.new_zeros(len(pulled), self.before(length))
        for position, span in self.spans():
            if position < length:
                out[:, span] = pulled[:, position] @ self.rows(number, self.indices[span]).T
        return out

    def before(self, length: int) -> int:
        """How many of them are at the first so many positions."""
        return int(torch.searchsorted(self.positions, length))

    def written(self, number: int) -> Float[Tensor, "pos width"]:
        """What they write at a branch together."""
        frozen = self.frozen
        if self.full:
            return self.values.view(frozen.length, -1) @ self.rows(number, None)
        out = torch.zeros(frozen.length, frozen.model.cfg.d_model, dtype=frozen.dtype, device=self.values.device)
        for position, span in self.spans():
            out[position] = self.values[span] @ self.rows(number, self.indices[span])
        return out


class NeuronWeights:
    """What the neurons of one MLP read and write, and what its gates were."""

    def __init__(self, frozen: Frozen, number: int, gated: str):
        branch, run, dtype = frozen.branches[number], frozen.run, frozen.dtype
        model = frozen.model
        self.number, self.reading = number, frozen.readings[number]
        self.out: Float[Tensor, "neuron d_model"] = branch.weight().to(dtype)
        self.bias = branch.bias().to(dtype)
        pre, post = (run[branch.site(name)][0].to(dtype) for name in ("_pre", "_post"))
        linear = branch.site("_pre_linear")
        self.values = post
        if not model.has(linear):
            self.parts = [(branch.site("_pre"), torch.ones_like(pre), pre)]
        else:
            up = run[linear][0].to(dtype)
            self.parts = [(linear, _ratio(post, up), post)]
            if gated == "half":
                gate = branch.site("_pre")
                self.parts = [(linear, _ratio(post, up) / 2, post / 2), (gate, _ratio(post, pre) / 2, post / 2)]
        self.weights = [
            (weight_from(model, site).to(dtype).T, bias_of(model, site).to(dtype), by) for site, by, _ in self.parts
        ]

    def read(self, positions: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norm = self.reading.norm
        vectors = torch.zeros(len(indices), self.out.shape[1], dtype=self.out.dtype, device=self.out.device)
        constants = vectors.new_zeros(len(indices))
        for weight, bias, by in self.weights:
            factor = by[positions, indices]
            rows = weight[indices]
            vectors = vectors + rows * factor[:, None]
            constants = constants + (rows @ norm.bias + bias[indices]) * factor
        sums = sum(part[positions, indices] for _, _, part in self.parts)
        return self.reading.pull_at(vectors, positions), constants, torch.as_tensor(sums)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where nothing is divided."""
    return torch.where(whole == 0, 0, part / torch.where(whole == 0, 1, whole))


@dataclass(frozen=True, eq=False)
class Neurons(Units):
    """Neurons of an MLP."""

    weights: NeuronWeights | None = None
    kind = "neuron"

    @staticmethod
    def of(frozen: Frozen, number: int, gated: str) -> "Neurons":
        """All neurons of a branch at all tokens."""
        weights = NeuronWeights(frozen, number, gated)
        length, width = weights.values.shape
        device = weights.values.device
        positions = torch.arange(length, device=device).repeat_interleave(width)
        indices = torch.arange(width, device=device).repeat(length)
        branch = frozen.branches[number]
        depth = frozen.model.depth(branch.reads)
        return Neurons(frozen, branch.layer, depth, positions, indices, weights.values.flatten(), True, weights)

    @property
    def known(self) -> NeuronWeights:
        assert self.weights is not None
        return self.weights

    def _read(self, positions: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.known.read(positions, indices)

    @property
    def writes(self) -> list[int]:
        return [self.known.number]

    def rows(self, number: int, indices: Int[Tensor, "n"] | None) -> Float[Tensor, "n width"]:
        return self.known.out if indices is None else self.known.out[indices]


def has_neurons(branch: Branch) -> bool:
    return branch.units == "neuron" and branch.slot.mixer.kind == "mlp"


def neuron_sites(model: Model, branch: Branch) -> list[Site]:
    names = [branch.site(name) for name in ("_pre", "_pre_linear", "_post")]
    return [site for site in names if model.has(site)]
