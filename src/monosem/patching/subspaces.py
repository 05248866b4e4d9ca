"""Patching a direction or subspace of an activation, and whether it is the place that it seems to be.

x' = x + P (s - x), P the projection onto the subspace, x and s the activations in the patched run and in the other run.
Such a patch may change the answer although the model never uses the subspace: a direction with one part that differs
between the prompts and is not read, and another that is read and never differs, moves along the second by what it sees
in the first (Makelov, Lange and Nanda 2023, arXiv 2311.17030). So the same is done with the whole activation, with the
rest of it, with random subspaces, and, where the next layer reads by one matrix, with the part that it can read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..edits import DirectionLike
from ..errors import BadInput
from ..models import Model, SiteLike
from ..plots import Figure, literal
from ..results import analysis
from .cells import Cell, Position, SpanPositions, cuts, heads_at, listed
from .experiment import Direction
from .measured import Measured
from .scoring import MetricLike
from .trials import Trial, Writes, patching_experiment

Basis = DirectionLike | Float[Tensor, "d"] | Float[Tensor, "k d"]
RANDOM = "random"
DORMANT = 0.5  # of the subspace's effect, what the part that is read must have at least


@dataclass(frozen=True, eq=False, kw_only=True)
class SubspacePatch(Measured):
    """What patching a subspace does, beside what it has to be compared with.

    Attributes:
        columns: `arm`: "subspace", "whole" (all of the activation), "rest" (all but the subspace), "random" (mean over
            random subspaces of as many dimensions) and, at `mlp_post` and `z`, "readable": the part of the subspace
            that is in the row space of the output projection.
        spread: metric -> standard deviation of the mean value over the random subspaces.
        readable_share: of the subspace's squared length, what the output projection reads, 0 to 1; None elsewhere.
    """

    cell: Cell
    dimensions: int
    spread: dict[str, float]
    readable_share: float | None

    @property
    def arms(self) -> list[str]:
        return list(self.columns["arm"])

    @property
    def illusory(self) -> bool | None:
        """Whether less than half of the effect is left when only what is read of the subspace is patched; None where no
        single matrix reads the activation: there, compare with the whole (`notes`)."""
        effect = self._effects
        return abs(effect["readable"]) < DORMANT * abs(effect["subspace"]) if "readable" in effect else None

    @property
    def notes(self) -> list[str]:
        """What speaks against the subspace being the place, by the first metric; empty if nothing does."""
        effect, notes = self._effects, []
        subspace, whole = effect["subspace"], effect["whole"]
        if abs(subspace) > abs(whole) * (1 + 1e-6):
            notes.append(f"the subspace alone ({subspace:.3g}) does more than the whole activation ({whole:.3g})")
        if subspace * whole < 0:
            notes.append(f"the subspace ({subspace:.3g}) moves the answer the other way than the whole ({whole:.3g})")
        if self.illusory:
            notes.append(
                f"the part of it that the output projection reads does {effect['readable']:.3g} of its {subspace:.3g}: "
                "the rest comes from a part that the model cannot read, moving one that is dormant"
            )
        if abs(subspace) <= abs(effect[RANDOM]) + 2 * next(iter(self.spread.values())):
            notes.append(f"random subspaces of {self.dimensions} dimensions do as much ({effect[RANDOM]:.3g})")
        return notes

    @property
    def _effects(self) -> dict[str, float]:
        """The mean effect of each arm by the first metric."""
        return dict(zip(self.arms, self.effect().tolist()))

    def plot(self, metric: str | None = None) -> Figure:
        """The effect of every arm, with standard errors over pairs."""
        title = f"{self.dimensions} of the dimensions of {self.cell}, {self.direction}"
        return super().plot(metric).update_layout(title={"text": literal(title)})


@analysis
def subspace(
    model: Model,
    pairs: TokenPairs,
    basis: Basis,
    *,
    site: SiteLike | None = None,
    positions: SpanPositions = -1,
    head: int | None = None,
    metric: MetricLike = "logit_diff",
    direction: Direction = "denoising",
    random: int = 8,
    seed: int = 0,
    quiet: bool = False,
) -> SubspacePatch:
    """Patch the part of an activation that lies in a subspace, and what it must be compared with.

    Args:
        basis: a `Direction`, a vector, or vectors `k d` that span the subspace (any scale, not orthogonal).
        site: where; a `Direction` knows. Sites of sweeps but `pattern`; at q, k, v and z with `head` (`d_head` wide),
            or all heads side by side.
        positions: at which tokens, together: indices, or names of the pairs' spans.
        random: how many random subspaces to compare with.

    Raises:
        BadInput: vectors of another width, or no independent vector. UnknownName: no such site, span or head.
    """
    cell, vectors = _place(model, basis, site, tuple(listed(pairs, positions)), head)
    projections, share = _projections(model, cell, vectors, random, seed)
    experiment = patching_experiment(model, pairs, [cell.place], metric, direction)

    def patched(trial: Trial) -> Iterator[tuple[slice, Tensor]]:
        yield slice(None), _patched(trial, cell, list(projections.values()))

    runs = experiment.run(patched, {"arm": list(projections)}, label="patch subspaces", quiet=quiet)
    arms = len(projections) - random
    values, drawn = (
        {name: value[rows] for name, value in runs.values.items()} for rows in (slice(arms), slice(arms, None))
    )
    return SubspacePatch.of(
        runs,
        numbers={name: torch.cat([values[name], drawn[name].mean(0, keepdim=True)]) for name in values},
        columns={"arm": [*list(projections)[:arms], RANDOM]},
        cell=cell,
        dimensions=round(float(projections["subspace"].trace())),
        spread={name: float(value.mean(1).std(correction=0)) for name, value in drawn.items()},
        readable_share=share,
    )


def _place(
    model: Model, basis: Basis, site: SiteLike | None, at: tuple[Position, ...], head: int | None
) -> tuple[Cell, Float[Tensor, "k d"]]:
    """The cell, and an orthonormal basis."""
    if not isinstance(basis, Tensor):
        site, basis = (basis.site if site is None else site), basis.vector
    if site is None:
        raise BadInput("a bare vector belongs to no site: give site='resid_post.15'")
    place = model.site(site)
    if "position" not in cuts(place) or "key" in place.axes or (head is not None and place.head_axis is None):
        raise BadInput(f"subspaces of {place}{'' if head is None else f' head {head}'} cannot be patched")
    return Cell(place.name, place.layer, at, head=head), _orthonormal(basis)  # type: ignore[arg-type]


def _patched(trial: Trial, cell: Cell, projections: Sequence[Tensor]) -> Float[Tensor, "arms vocab"]:
    """Logits after the last token with x + P (s - x) at the cell, a row for each P."""
    index = cell.index(trial.pairs, 0)
    base, source = trial.base[cell.place][0][index], trial.source[cell.place][index]
    x, change = base.double().flatten(1), (source.double() - base.double()).flatten(1)
    parts = [
        (row, index, (x + change @ p.to(x.device)).to(base.dtype).reshape(base.shape))
        for row, p in enumerate(projections)
    ]
    return trial.patched(len(parts), [Writes(cell.place, parts)])


def _projections(
    model: Model, cell: Cell, basis: Float[Tensor, "k d"], random: int, seed: int
) -> tuple[dict[str, Float[Tensor, "d d"]], float | None]:
    """What is written by each arm, and the share of the subspace that is read (None where no one matrix reads it)."""
    k, width = basis.shape
    if width != (expected := _width(model, cell)):
        raise BadInput(f"vectors at {cell.place} have {expected} entries, not {width}")
    if random < 1:
        raise BadInput("compare with at least one random subspace: random=8")
    whole = torch.eye(width, dtype=torch.float64)
    onto = basis.T @ basis
    projections, share = {"subspace": onto, "whole": whole, "rest": whole - onto}, None
    if (reader := _reader(model, cell)) is not None:
        read = basis @ reader
        share = float(read.square().sum() / k)
        kept = _orthonormal(read) if share > 1e-12 else read[:0]
        projections["readable"] = kept.T @ kept
    draw = torch.Generator().manual_seed(seed)
    for number in range(random):
        other = _orthonormal(torch.randn(k, width, generator=draw, dtype=torch.float64))
        projections[f"{RANDOM} {number}"] = other.T @ other
    return projections, share


def _reader(model: Model, cell: Cell) -> Float[Tensor, "d d"] | None:
    """The projection onto what the output projection reads."""
    branch = model.branch_of(cell.place)
    if branch is None or branch.inner != cell.place:
        return None
    weight = branch.weight() if cell.head is None else branch.weight()[cell.head]
    weight = weight.reshape(-1, model.cfg.d_model)
    left, sizes, _ = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    left = left[:, sizes > sizes[0] * 1e-6]
    return left @ left.T


def _width(model: Model, cell: Cell) -> int:
    if "head" not in cell.place.axes:
        return model.cfg.d_mlp if "neuron" in cell.place.axes else model.cfg.d_model
    heads = heads_at(model, cell.place)
    if cell.head is not None and not 0 <= cell.head < heads:
        raise BadInput(f"{cell.place} has heads 0 to {heads - 1}, not {cell.head}")
    return model.cfg.d_head * (heads if cell.head is None else 1)


def _orthonormal(vectors: Tensor) -> Float[Tensor, "k d"]:
    """An orthonormal basis of what the vectors span, in float64. Raises `BadInput` where all vectors are zero."""
    rows = vectors.detach().double().cpu().reshape(-1, vectors.shape[-1])
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    basis = right[sizes > sizes[0] * 1e-6] if bool(sizes[0] > 0) else right[:0]
    if not len(basis):
        raise BadInput("the vectors are all zero; give at least one direction")
    return basis
