"""How far a circuit depends on its pairs: which edges are chosen again when pairs are resampled."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..errors import BadInput
from ..models import Model
from ..results import Result, analysis
from .attribute import attribute
from .circuit import Circuit
from .scores import EdgeScores


@dataclass(frozen=True, eq=False)
class Stability(Result):
    """Circuits of one size, found on pairs that were drawn again with replacement.

    Attributes:
        circuit: the one of all pairs. frequency: the share of draws that choose an edge. overlaps: of each draw's
            circuit with `circuit`, shared edges over all of both (IoU).
    """

    circuit: Circuit
    frequency: Float[Tensor, "place source slot"] = field(repr=False)
    overlaps: tuple[float, ...]
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by = "frequency"

    @property
    def table(self) -> pd.DataFrame:
        """A row an edge that the circuit or some draw has: how often it is chosen."""
        chosen = self.circuit.edges | (self.frequency > 0)
        frame = replace(self.circuit, edges=chosen, values=None).table
        at = chosen.nonzero()
        frame["frequency"] = self.frequency[tuple(at.T)].tolist()
        frame["in_circuit"] = self.circuit.edges[tuple(at.T)].tolist()
        return frame.sort_values("frequency", ascending=False, kind="stable", ignore_index=True)

    def core(self, at_least: float = 0.9) -> Circuit:
        """The edges that are chosen in at least this share of draws, pruned."""
        return replace(self.circuit, edges=self.frequency >= at_least).pruned()


@analysis
def stability(
    model: Model,
    pairs: TokenPairs,
    edges: int,
    method: str = "eap-ig",
    *,
    how: Literal["top_n", "greedy"] = "greedy",
    draws: int = 50,
    group: int = 4,
    seed: int = 0,
    quiet: bool = False,
    **options: Any,
) -> Stability:
    """Choose circuits again on resampled pairs.

    Args:
        edges: of every circuit. how: as in `curve`.
        draws: times that pairs are drawn. group: pairs that are scored together and drawn together.
        options: of `attribute`.

    Raises:
        BadInput: fewer than 2 groups, or no draw.
    """
    parts = [pairs[slice(first, first + group)] for first in range(0, len(pairs), group)]
    if len(parts) < 2 or draws < 1 or how not in ("top_n", "greedy"):
        raise BadInput(
            f"{len(pairs)} pairs make {len(parts)} groups of {group}: 2 or more are drawn from, once at least"
        )
    scored = [attribute(model, part, method, quiet=quiet, **options) for part in parts]
    sizes = torch.tensor([float(len(part)) for part in parts], dtype=torch.float64)
    values = torch.stack([one.values for one in scored])

    def chosen(weights: Float[Tensor, "groups"]) -> Circuit:
        mean = torch.einsum("g,gpuv->puv", weights * sizes / (weights * sizes).sum(), values)
        made: Circuit = getattr(EdgeScores(scored[0].graph, mean, method), how)(edges)
        return made

    circuit = chosen(torch.ones_like(sizes))
    drawn = torch.randint(0, len(parts), (draws, len(parts)), generator=torch.Generator().manual_seed(seed))
    counts, overlaps = torch.zeros(scored[0].graph.shape, dtype=torch.float64), []
    for row in drawn:
        again = chosen(torch.bincount(row, minlength=len(parts)).double()).edges
        counts += again
        overlaps.append(float((again & circuit.edges).sum() / (again | circuit.edges).sum().clamp(min=1)))
    return Stability(circuit, counts / draws, tuple(overlaps))
