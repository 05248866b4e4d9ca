"""Patching a direction or subspace of an activation, and whether it is the place that it seems to be.

x' = x + P (s - x), P the projection onto the subspace, x and s the activation in the patched run and in the other one.
Such a patch may change the answer although the model never uses the subspace: a direction with one part that differs
between the prompts and is not read, and another that is read and never differs, moves along the second by what it sees
in the first (Makelov, Lange and Nanda 2023, arXiv 2311.17030). So the same is done with the whole activation, with the
rest of it, with random subspaces, and, where the next layer reads by one matrix, with the part that it can read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..data import TokenPairs
from ..edits import DirectionLike
from ..errors import BadInput, require
from ..models import Model, SiteLike, TokenBatch
from ..plots import BLUE, style
from ..statistics import standard_error
from .cells import AXES, Cell, Position
from .corruptions import Prompt
from .scoring import MetricLike, metrics_of, normalised
from .tally import Tally, direction_of
from .trial import Trial, Writes, trials

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Basis = DirectionLike | Float[Tensor, "d"] | Float[Tensor, "k d"]
RANDOM = "random"
DORMANT = 0.5  # of the subspace's effect, what the part that is read must have at least


@dataclass(frozen=True, eq=False)
class SubspacePatch:
    """What patching a subspace does, beside what it has to be compared with.

    Attributes:
        arms: "subspace", "whole" (all of the activation), "rest" (all but the subspace), "random" (mean over random
            subspaces of as many dimensions) and, at `mlp_post` and `z`, "readable": the part of the subspace that is
            in the row space of the output projection.
        values: metric -> its value in every patched run, `arms pairs`. clean, corrupted: unpatched runs, `pairs`.
        spread: metric -> standard deviation of the mean value over the random subspaces.
        readable_share: of the subspace's squared length, what the output projection reads, 0 to 1; None elsewhere.
    """

    cell: Cell
    dimensions: int
    arms: Sequence[str]
    values: dict[str, Float[Tensor, "arms pairs"]]
    clean: dict[str, Float[Tensor, "pairs"]]
    corrupted: dict[str, Float[Tensor, "pairs"]]
    spread: dict[str, float]
    direction: str
    readable_share: float | None

    def effects(self, metric: str | None = None) -> Float[Tensor, "arms pairs"]:
        """Patched minus unpatched run."""
        name = metric or next(iter(self.values))
        return self.values[name] - (self.corrupted if self.direction == "denoising" else self.clean)[name]

    def scores(self, metric: str | None = None) -> Float[Tensor, "arms"]:
        """(patched - corrupted) / (clean - corrupted) of means over pairs: 0 as corrupted, 1 as clean."""
        name = metric or next(iter(self.values))
        return normalised(self.values[name].mean(1), self.clean[name].mean(), self.corrupted[name].mean())

    @property
    def illusory(self) -> bool | None:
        """Whether less than half of the effect is left when only what is read of the subspace is patched; None where no
        single matrix reads the activation: there, compare with the whole (`notes`)."""
        effect = self._effect
        return abs(effect["readable"]) < DORMANT * abs(effect["subspace"]) if "readable" in effect else None

    @property
    def notes(self) -> list[str]:
        """What speaks against the subspace being the place, by the first metric; empty if nothing does."""
        effect, found = self._effect, []
        own, whole = effect["subspace"], effect["whole"]
        if abs(own) > abs(whole) * (1 + 1e-6):
            found.append(f"the subspace alone ({own:.3g}) does more than the whole activation ({whole:.3g})")
        if own * whole < 0:
            found.append(f"the subspace ({own:.3g}) moves the answer the other way than the whole ({whole:.3g})")
        if self.illusory:
            found.append(
                f"the part of it that the output projection reads does {effect['readable']:.3g} of its {own:.3g}: the "
                "rest comes from a part that the model cannot read, moving one that is dormant"
            )
        if abs(own) <= abs(effect[RANDOM]) + 2 * next(iter(self.spread.values())):
            found.append(f"random subspaces of {self.dimensions} dimensions do as much ({effect[RANDOM]:.3g})")
        return found

    @property
    def _effect(self) -> dict[str, float]:
        return dict(zip(self.arms, self.effects().mean(1).tolist()))

    @property
    def table(self) -> pd.DataFrame:
        """A row an arm and metric: value, effect and its standard error over pairs, score."""
        rows = []
        for metric, values in self.values.items():
            effects, scores = self.effects(metric), self.scores(metric)
            errors = standard_error(effects)
            for i, arm in enumerate(self.arms):
                numbers = {"value": values[i].mean(), "effect": effects[i].mean(), "error": errors[i]}
                rows.append({"arm": arm, "metric": metric} | {k: float(v) for k, v in numbers.items()})
                rows[-1]["score"] = float(scores[i])
        return pd.DataFrame(rows)

    def plot(self, metric: str | None = None) -> "Figure":
        """The effect of every arm, with standard errors over pairs."""
        go = require("plotly.graph_objects", "plots")
        name = metric or next(iter(self.values))
        own = self.table[self.table.metric == name]
        bars = {"array": own.error.fillna(0.0).tolist()}
        figure = go.Figure(go.Bar(x=own.arm.tolist(), y=own.effect.tolist(), error_y=bars, marker={"color": BLUE}))
        return style(figure, "", f"Δ {name}", f"{self.dimensions} of the dimensions of {self.cell}, {self.direction}")


def subspace(
    model: Model,
    pairs: TokenPairs,
    basis: Basis,
    site: SiteLike | None = None,
    positions: Position | Sequence[Position] = -1,
    head: int | None = None,
    metric: MetricLike = "logit_diff",
    direction: Literal["denoising", "noising"] = "denoising",
    *,
    random: int = 8,
    seed: int = 0,
) -> SubspacePatch:
    """Patch the part of an activation that lies in a subspace, and what it must be compared with.

    Args:
        basis: a `Direction`, a vector, or vectors `k d` that span the subspace (any scale, not orthogonal).
        site: where; a `Direction` knows. Sites of sweeps but `pattern`; at q, k, v and z with `head` (`d_head` wide),
            or all heads side by side.
        positions: at which tokens, together: indices, or names of the pairs' spans.
        random: how many random subspaces to compare with.

    Raises:
        BadInput: vectors of another width, or none that are independent. UnknownName: no such site, span or head.
    """
    direction = direction_of(direction, Prompt())  # type: ignore[assignment]
    if not isinstance(basis, Tensor):
        site, basis = (basis.site if site is None else site), basis.vector
    if site is None:
        raise BadInput("a bare vector belongs to no site: give site='resid_post.15'")
    place = model.site(site)
    if place.name not in AXES or place.name == "pattern" or (head is not None and place.head_axis is None):
        raise BadInput(f"subspaces of {place}{'' if head is None else f' head {head}'} cannot be patched")
    at = tuple(positions) if isinstance(positions, list | tuple | range) else (positions,)
    cell = Cell(place.name, place.layer, at, head=head)  # type: ignore[arg-type]
    projections, share = _projections(model, cell, _orthonormal(basis), random, seed)
    table, arms = metrics_of(metric), len(projections) - random
    tally = Tally(table, len(projections), len(pairs))
    sides = Prompt().sides(model, pairs, [place])
    for row in range(len(pairs)):
        (trial,) = trials(model, pairs, row, sides(row), direction, [place], None)
        tally.add(tally.clean, trial, trial.clean_logits, row, 1.0)
        tally.add(tally.corrupted, trial, trial.other_logits, row, 1.0)
        logits = _patched(trial, cell, list(projections.values()))
        tally.add(tally.values, trial, logits, (list(range(len(projections))), row), 1.0)
    drawn = {name: values[arms:] for name, values in tally.values.items()}
    values = {name: torch.cat([v[:arms], drawn[name].mean(0, keepdim=True)]) for name, v in tally.values.items()}
    spread = {name: float(v.mean(1).std(correction=0)) for name, v in drawn.items()}
    names = [*list(projections)[:arms], RANDOM]
    k = round(float(projections["subspace"].trace()))
    return SubspacePatch(cell, k, names, values, tally.clean, tally.corrupted, spread, direction, share)


def _patched(trial: Trial, cell: Cell, projections: Sequence[Tensor]) -> Float[Tensor, "arms vocab"]:
    """Logits after the last token with x + P (s - x) at the cell, a row for each P."""
    index = cell.index(trial.pairs, 0)
    base, source = trial.base[cell.place][0][index], trial.source[cell.place][index]
    x, change = base.double().flatten(1), (source.double() - base.double()).flatten(1)
    parts = [
        (row, index, (x + change @ p.to(x.device)).to(base.dtype).reshape(base.shape))
        for row, p in enumerate(projections)
    ]
    tokens = trial.base.tokens
    batch = TokenBatch(tokens.ids.expand(len(parts), -1), tokens.mask.expand(len(parts), -1))
    logits = trial.model.run(batch, edits=[*trial.edits, Writes(cell.place, parts)], logits="last").logits
    assert logits is not None
    return logits


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
    own = basis.T @ basis
    found, share = {"subspace": own, "whole": whole, "rest": whole - own}, None
    if (reader := _reader(model, cell)) is not None:
        read = basis @ reader
        share = float(read.square().sum() / k)
        kept = _orthonormal(read) if share > 1e-12 else read[:0]
        found["readable"] = kept.T @ kept
    draw = torch.Generator().manual_seed(seed)
    for number in range(random):
        other = _orthonormal(torch.randn(k, width, generator=draw, dtype=torch.float64))
        found[f"{RANDOM} {number}"] = other.T @ other
    return found, share


def _reader(model: Model, cell: Cell) -> Float[Tensor, "d d"] | None:
    """The projection onto what the output projection reads."""
    if cell.site == "mlp_post":
        weight = model.W_out[cell.layer]
    elif cell.site == "z":
        weight = model.W_O[cell.layer].flatten(0, 1) if cell.head is None else model.W_O[cell.layer, cell.head]
    else:
        return None
    left, sizes, _ = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    left = left[:, sizes > sizes[0] * 1e-6]
    return left @ left.T


def _width(model: Model, cell: Cell) -> int:
    c = model.cfg
    heads = {"q": c.n_heads, "z": c.n_heads, "k": c.n_kv_heads, "v": c.n_kv_heads}.get(cell.site)
    if heads is not None:
        if cell.head is not None and not 0 <= cell.head < heads:
            raise BadInput(f"{cell.place} has heads 0 to {heads - 1}, not {cell.head}")
        return c.d_head * (heads if cell.head is None else 1)
    return c.d_mlp if "neuron" in AXES[cell.site] else c.d_model


def _orthonormal(vectors: Tensor) -> Float[Tensor, "k d"]:
    """An orthonormal basis of what the vectors span, in float64. Raises `BadInput` where that is nothing."""
    rows = vectors.detach().double().cpu().reshape(-1, vectors.shape[-1])
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    found = right[sizes > sizes[0] * 1e-6] if bool(sizes[0] > 0) else right[:0]
    if not len(found):
        raise BadInput("the vectors are all zero; give at least one direction")
    return found
