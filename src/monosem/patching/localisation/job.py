"""The localisation job: which attention layers, MLPs and heads carry an answer, where, and how much they explain.

1. **Sweep.** Every attention and MLP output of every layer is restored, one position at a time, in the corrupted run.
2. **Components** are the places whose score reaches the threshold and stands two standard errors from zero.
3. **Noising check.** Each component alone is corrupted in the clean run: does the answer also need it?
4. **Heads.** The attention layers found are swept by head, at the positions found; the same threshold, the same check.
5. **Together.** All that was found is restored, and corrupted, at once: sufficiency, necessity, PN, PS, PNS. The same
   is done with random sets of the same shape.
6. **Backup.** With all of it corrupted, which other heads begin to matter?
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...data import TokenPairs
from ...errors import BadInput
from ...models import Model, Site
from ...models.running.selection import heads_at
from ..cells import Cell, SpanPositions
from ..scoring import Metric, MetricLike, one_metric, refuse_joint
from ..sets.backups import Backup, backup, head_branches
from ..sets.evidence import CausalEvidence, answered, causal_evidence
from ..sets.sets import CellSet, Joint, patch_sets
from ..sweeps.result import Sweep
from ..sweeps.sweep import sweep
from .result import Component, Localisation


def localise(
    model: Model,
    pairs: TokenPairs,
    *,
    metric: MetricLike | None = None,
    threshold: float = 0.05,
    sites: Sequence[str] | None = None,
    positions: SpanPositions | None = None,
    head_threshold: float | None = None,
    controls: int = 10,
    with_backup: bool = True,
    seed: int = 0,
    memory: str | int = "2GB",
    quiet: bool = False,
) -> Localisation:
    """Find the components and heads that carry the difference between clean and corrupted prompts.

    Args:
        metric: one metric; default: what suits the answers (`default_metric`).
        threshold: normalised score from which a component counts: its share of clean minus corrupted.
        sites: what branches write ("attn_out", "mlp_out"; default: all of them), of which components are chosen, and
            "resid_pre" (or _mid, _post) for a map.
        positions: as `sweep`; default: every position where all pairs have one length, else the pairs' spans.
        head_threshold: the same for heads; default: `threshold`.
        controls: random sets of the same shape to compare with; 0 for none.
        with_backup: whether to look for backup heads.
        seed: of the random sets and of the bootstrap.

    Raises:
        BadInput: clean and corrupted do not differ by the metric; several metrics; no output of a branch in sites;
            a threshold that is no share; pairs of several lengths without spans.
        UnknownName: no such site, metric or span.
    """
    refuse_joint(pairs, "localise")
    name, function = one_metric(metric, pairs)
    head_threshold = threshold if head_threshold is None else head_threshold
    for what, share in (("threshold", threshold), ("head_threshold", head_threshold)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise BadInput(f"{what} is a share of the effect, 0 or more, such as 0.05, not {share!r}")
    places = _positions(pairs, positions)
    job = _Job(
        model, pairs, name, {name: function}, threshold, head_threshold, seed, {"memory": memory, "quiet": quiet}
    )
    return job.run(_sites(model, sites), places, controls, with_backup)


@dataclass(frozen=True, eq=False)
class _Job:
    """What every step needs. `options`: memory and quiet."""

    model: Model
    pairs: TokenPairs
    name: str
    metric: dict[str, Metric]
    threshold: float
    head_threshold: float
    seed: int
    options: dict[str, Any]

    def run(self, sites: list[str], places: SpanPositions | None, controls: int, with_backup: bool) -> Localisation:
        ends = self.ends()
        swept = self.swept(sites, ("layer", "position"), positions=places)
        components, opposing = self.chosen(swept, self.threshold)
        head_sweep, heads, opposing_heads = self.heads(components)
        sets = _sets(self.model, components, heads)
        last = list(sets.values())[-1] if sets else ()
        notes = [*self.pairs.notes, *self.remarks(places, ends), *_carriers(components, self.pairs)]
        if not components:
            notes.append(
                f"no place reaches the threshold of {self.threshold:g}: lower it, or the answer is spread over many"
            )
        return Localisation(
            config=self.settings(sites, places, controls),
            clean=float(ends.clean[self.name].mean()),
            corrupted=float(ends.corrupted[self.name].mean()),
            answered={side: float(getattr(ends, side)["answered"].mean()) for side in ("clean", "corrupted")},
            sweep=swept,
            head_sweep=head_sweep,
            components=components,
            opposing=opposing,
            heads=heads,
            opposing_heads=opposing_heads,
            evidence=self.evidence(sets),
            control=self.control(last, controls) if last else {},
            backup=self.backup(last) if last and with_backup and head_branches(self.model) else None,
            notes=notes,
        )  # fmt: skip

    def settings(self, sites: list[str], places: SpanPositions | None, controls: int) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "task": self.pairs.source or "pairs",
            "pairs": len(self.pairs),
            "metric": self.name,
            "sites": sites,
            "threshold": self.threshold,
            "head_threshold": self.head_threshold,
            "positions": places if places is not None else "all",
            "controls": controls,
            "seed": self.seed,
        }

    def ends(self) -> Joint:
        """Both unpatched runs.

        Raises:
            BadInput: the metric does not tell them apart.
        """
        metrics = self.metric | {"answered": answered}
        ends = patch_sets(self.model, self.pairs, [()], metric=metrics, **(self.options | {"quiet": True}))
        clean, corrupted, gap = ends.clean[self.name], ends.corrupted[self.name], ends.gap(self.name)
        scale = max(float(clean.abs().mean()), float(corrupted.abs().mean()), 1e-6)
        if abs(float(gap.mean())) < 1e-3 * scale:
            raise BadInput(
                f"{self.name} is {float(clean.mean()):.3g} for the clean and {float(corrupted.mean()):.3g} for the "
                "corrupted prompts, so nothing is to be localised; choose another metric or another corruption"
            )
        return ends

    def remarks(self, places: SpanPositions | None, ends: Joint) -> list[str]:
        notes = []
        right = float(ends.clean["answered"].mean())
        if right < 0.9:
            notes.append(
                f"the model answers only {right:.0%} of the clean prompts right; pairs.solved(model) keeps only those"
            )
        if float(ends.gap(self.name).mean()) < 0:
            notes.append(f"{self.name} is higher for the corrupted prompts; scores are shares of that difference")
        if places is not None:
            named = "the named positions " + ", ".join(self.pairs.spans)
            shown = named if isinstance(places, str) and places == "spans" else f"positions {places}"
            notes.append(f"only {shown} were searched; what happens at other tokens is not seen")
        if len(self.pairs) < 8:
            notes.append(f"{len(self.pairs)} pairs are few; intervals are wide")
        return notes

    def swept(self, sites: str | Sequence[str], over: Sequence[str], **which: Any) -> Sweep:
        return sweep(
            self.model, self.pairs, sites, over, metric=self.metric, direction="denoising", **which, **self.options
        )

    def patched(self, sets: Sequence[CellSet], direction: Any, label: str) -> torch.Tensor:
        """The score of every set."""
        runs = patch_sets(
            self.model, self.pairs, sets, metric=self.metric, direction=direction, label=label, **self.options
        )
        return runs.scores()

    def chosen(self, swept: Sweep, threshold: float) -> tuple[list[Component], list[Component]]:
        """(over the threshold, below minus the threshold), each checked by noising; strongest first."""
        scores, errors = swept.scores(), swept.score_se()
        passed = [
            i
            for i, cell in enumerate(swept.cells)
            if not cell.place.in_stream and abs(scores[i]) >= threshold and not abs(scores[i]) < 2 * errors[i]
        ]
        if not passed:
            return [], []
        passed.sort(key=lambda i: -abs(float(scores[i])))
        cells = [swept.cells[i] for i in passed]
        lost = (1 - self.patched([[cell] for cell in cells], "noising", "noising check")).tolist()
        made = [
            Component(cell, float(scores[i]), float(errors[i]), gone, needed=abs(gone) >= threshold)
            for i, cell, gone in zip(passed, cells, lost)
        ]
        return [one for one in made if one.restored > 0], [one for one in made if one.restored < 0]

    def heads(self, components: Sequence[Component]) -> tuple[Sweep | None, list[Component], list[Component]]:
        """The heads of the branches found, at the positions found: sweep, over, below minus the threshold."""
        cells = [one.cell for one in components if _heads_of(self.model, one.cell)]
        if not cells:
            return None, [], []
        sites = list(dict.fromkeys(site.name for cell in cells if (site := _heads_of(self.model, cell))))
        where = list(dict.fromkeys(cell.position for cell in cells))
        layers = sorted({cell.layer for cell in cells})
        swept = self.swept(sites, ("layer", "position", "head"), layers=layers, positions=where)
        return swept, *self.chosen(swept, self.head_threshold)

    def evidence(self, sets: dict[str, tuple[Cell, ...]]) -> CausalEvidence:
        if not sets:
            return CausalEvidence({})
        return causal_evidence(self.model, self.pairs, sets, metric=self.metric, seed=self.seed, **self.options)

    def control(self, cells: Sequence[Cell], count: int) -> dict[str, list[float]]:
        """Sufficiency and necessity of random sets: the same positions, other layers and heads."""
        if count < 1:
            return {}
        draw = random.Random(self.seed)
        sets = [_random_set(self.model, cells, draw) for _ in range(count)]
        restored, corrupted = (self.patched(sets, way, "random sets") for way in ("denoising", "noising"))
        return {"sufficiency": restored.tolist(), "necessity": (1 - corrupted).tolist()}

    def backup(self, cells: Sequence[Cell]) -> Backup:
        at = list(dict.fromkeys(place for cell in cells for place in cell.at or ()))
        return backup(
            self.model, self.pairs, cells, metric=self.metric, positions=at or None, threshold=self.threshold,
            **self.options,
        )  # fmt: skip


def _sites(model: Model, sites: Sequence[str] | None) -> list[str]:
    outputs = list(dict.fromkeys(branch.out.name for branch in model.branches()))
    chosen = outputs if sites is None else list(sites)
    branches = [site for site in chosen if not Site(site, 0).in_stream]
    if not branches or not set(branches) <= set(outputs):
        raise BadInput(f"localise chooses among {' and '.join(outputs)}; sites were {', '.join(chosen)}")
    return chosen


def _heads_of(model: Model, cell: Cell) -> Site | None:
    """The site of the heads that a whole branch is made of; None for branches without heads."""
    branch = model.branch_of(cell.place)
    return branch.inner if branch is not None and branch.units == "head" and branch.out == cell.place else None


def _positions(pairs: TokenPairs, asked: SpanPositions | None) -> SpanPositions | None:
    if asked is not None or len(set(pairs.clean.lengths.tolist())) == 1:
        return asked
    if not pairs.spans:
        raise BadInput("the pairs differ in length and name no spans; give positions=[-1, ...], or pairs of one length")
    return "spans"


def _sets(model: Model, components: Sequence[Component], heads: Sequence[Component]) -> dict[str, tuple[Cell, ...]]:
    """The sets that are patched together; the last one is what random sets and backups are measured against."""
    if not components:
        return {}
    whole = tuple(one.cell for one in components)
    rest = tuple(cell for cell in whole if _heads_of(model, cell) is None)
    sets = {"components": whole}
    if heads:
        alone = tuple(one.cell for one in heads)
        if rest:
            sets["heads and MLPs"] = (*alone, *rest)
        sets["heads"] = alone
    return sets


def _carriers(components: Sequence[Component], pairs: TokenPairs) -> list[str]:
    """A remark on components that are little more than the changed token itself."""
    differs = pairs.differs.cpu()
    carriers = []
    for one in components:
        rows = [one.cell.positions(pairs, row) for row in range(len(pairs))]
        if one.restored > 0.9 and all(bool(differs[row, at].all()) for row, at in enumerate(rows)):
            carriers.append(str(one.cell))
    if not carriers:
        return []
    verb = "restores" if len(carriers) == 1 else "restore"
    return [
        f"{', '.join(carriers)} alone {verb} over 90% at a token that was changed, so it may be no more than that "
        "token; sets with it say little about the rest"
    ]


def _heads(model: Model, cell: Cell, layer: int) -> range:
    return range(heads_at(model, Site(cell.site, layer)))


def _random_set(model: Model, cells: Sequence[Cell], draw: random.Random) -> list[Cell]:
    chosen: set[Cell] = set()
    for cell in cells:
        options = [
            other
            for layer in model.layers_with(cell.site)
            for head in (_heads(model, cell, layer) if cell.head is not None else [None])
            if (other := replace(cell, layer=layer, head=head)) not in chosen.union(cells)
        ]
        if options:
            chosen.add(draw.choice(options))
    return sorted(chosen, key=str)
