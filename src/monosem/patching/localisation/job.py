"""The localisation job: which attention layers, MLPs and heads carry an answer, where, and how much they explain.

1. **Sweep.** Every attention and MLP output of every layer is restored, one position at a time, in the corrupted run.
2. **Components** are the places whose score reaches the threshold and stands two standard errors from zero.
3. **Noising check.** Each component alone is corrupted in the clean run: does the answer also need it?
4. **Heads.** The attention layers found are swept by head, at the positions found; the same threshold, the same check.
5. **Together.** All that was found is restored, and corrupted, at once: sufficiency, necessity, PN, PS, PNS. The same
   is done with random sets of the same make.
6. **Backup.** With all of it corrupted, which other heads begin to matter?
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...data import TokenPairs
from ...errors import BadInput
from ...models import Model
from ..cells import Cell, Positions
from ..measured import Sweep
from ..scoring import Metric, MetricLike, one_metric
from ..sets.backups import Backup, backup
from ..sets.evidence import answered, evidence
from ..sets.sets import Joint, patch_sets
from ..sweeps.sweep import sweep
from .result import Component, Localisation

BRANCHES = ("attn_out", "mlp_out")
STREAM = ("resid_pre", "resid_mid", "resid_post")  # everything passes through these, so they are shown and not chosen


def localise(
    model: Model,
    pairs: TokenPairs,
    metric: MetricLike | None = None,
    threshold: float = 0.05,
    *,
    sites: Sequence[str] = BRANCHES,
    positions: Positions = None,
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
        sites: "attn_out" and "mlp_out", of which components are chosen, and "resid_pre" (or _mid, _post) for a map.
        positions: as `sweep`; default: every position where all pairs have one length, else the pairs' spans.
        head_threshold: the same for heads; default: `threshold`.
        controls: random sets of the same make to compare with; 0 for none.
        with_backup: whether to look for backup heads.
        seed: of the random sets and of the bootstrap.

    Raises:
        BadInput: clean and corrupted do not differ by the metric; several metrics; no attn_out or mlp_out in sites;
            pairs of several lengths without spans. UnknownName: no such site, metric or span.
    """
    name, function = one_metric(metric, pairs)
    table = {name: function}
    branches = [site for site in sites if site not in STREAM]
    if not branches or not set(branches) <= set(BRANCHES):
        raise BadInput(f"localise chooses among {' and '.join(BRANCHES)}; sites were {', '.join(sites)}")
    places = _positions(pairs, positions)
    head_threshold = threshold if head_threshold is None else head_threshold
    options: dict[str, Any] = {"memory": memory, "quiet": quiet}
    ends = _ends(model, pairs, table, options)
    notes = [*pairs.notes, *_remarks(pairs, places, ends, name)]

    swept = sweep(model, pairs, list(sites), ("layer", "position"), table, "denoising", positions=places, **options)
    components, opposing = _chosen(model, pairs, swept, table, threshold, options)
    head_sweep, heads, opposing_heads = _heads(model, pairs, components, table, head_threshold, options)
    sets = _sets(components, heads)
    found = dict(zip(sets, evidence(model, pairs, list(sets.values()), table, seed=seed, **options))) if sets else {}
    final = list(sets.values())[-1] if sets else ()
    notes += _carriers(components, pairs)
    if not components:
        notes.append(f"no place reaches the threshold of {threshold:g}: lower it, or the answer is spread over many")
    asked = {"sites": list(sites), "threshold": threshold, "head_threshold": head_threshold}
    asked |= {"positions": places if places is not None else "all", "controls": controls, "seed": seed}
    return Localisation(
        config=_origin(model, pairs, name) | asked,
        clean=float(ends.clean[name].mean()),
        corrupted=float(ends.corrupted[name].mean()),
        answered={side: float(getattr(ends, side)["answered"].mean()) for side in ("clean", "corrupted")},
        sweep=swept,
        head_sweep=head_sweep,
        components=components,
        opposing=opposing,
        heads=heads,
        opposing_heads=opposing_heads,
        evidence=found,
        control=_control(model, pairs, final, table, controls, seed, options) if final else {},
        backup=_backup(model, pairs, final, table, threshold, options) if final and with_backup else None,
        notes=notes,
    )


def _origin(model: Model, pairs: TokenPairs, metric: str) -> dict[str, Any]:
    what = {"model": model.name, "dtype": str(model.dtype).removeprefix("torch.")}
    return what | {"task": pairs.source or "pairs", "pairs": len(pairs), "metric": metric}


def _ends(model: Model, pairs: TokenPairs, table: dict[str, Metric], options: dict[str, Any]) -> Joint:
    """Both unpatched runs.

    Raises:
        BadInput: the metric does not tell them apart, or is not finite.
    """
    ends = patch_sets(model, pairs, [()], table | {"answered": answered}, **(options | {"quiet": True}))
    (name,) = table
    gap = ends.clean[name] - ends.corrupted[name]
    if not bool(gap.isfinite().all()):
        bad = int((~gap.isfinite()).nonzero()[0])
        raise BadInput(
            f"{name} is {float(ends.clean[name][bad])} clean, {float(ends.corrupted[name][bad])} corrupted "
            f"in pair {bad}; localise needs finite numbers"
        )
    scale = max(float(ends.clean[name].abs().mean()), float(ends.corrupted[name].abs().mean()), 1e-6)
    if abs(float(gap.mean())) < 1e-3 * scale:
        means = [float(side[name].mean()) for side in (ends.clean, ends.corrupted)]
        raise BadInput(
            f"{name} is {means[0]:.3g} for the clean and {means[1]:.3g} for the corrupted prompts, so nothing is to be "
            "localised; choose another metric or another corruption"
        )
    return ends


def _remarks(pairs: TokenPairs, places: Positions, ends: Joint, metric: str) -> list[str]:
    found = []
    right = float(ends.clean["answered"].mean())
    if right < 0.9:
        found.append(
            f"the model answers only {right:.0%} of the clean prompts right; pairs.solved(model) keeps only those"
        )
    gap = ends.clean[metric] - ends.corrupted[metric]
    if float(gap.mean()) < 0:
        found.append(f"{metric} is higher for the corrupted prompts; scores are shares of that difference")
    if places is not None:
        shown = "the named positions " + ", ".join(pairs.spans) if places == "spans" else f"positions {places}"
        found.append(f"only {shown} were searched; what happens at other tokens is not seen")
    if len(pairs) < 8:
        found.append(f"{len(pairs)} pairs are few; intervals are wide")
    return found


def _positions(pairs: TokenPairs, given: Positions) -> Positions:
    if given is not None or len(set(pairs.clean.lengths.tolist())) == 1:
        return given
    if not pairs.spans:
        raise BadInput("the pairs differ in length and name no spans; give positions=[-1, ...], or pairs of one length")
    return "spans"


def _chosen(
    model: Model, pairs: TokenPairs, swept: Sweep, table: dict[str, Metric], threshold: float, options: dict[str, Any]
) -> tuple[list[Component], list[Component]]:
    """(over the threshold, below minus the threshold), each checked by noising; strongest first."""
    scores, errors = swept.scores(), swept.score_error()
    passed = [
        i
        for i, cell in enumerate(swept.cells)
        if cell.site not in STREAM and abs(scores[i]) >= threshold and not abs(scores[i]) < 2 * errors[i]
    ]
    if not passed:
        return [], []
    passed.sort(key=lambda i: -abs(float(scores[i])))
    cells = [swept.cells[i] for i in passed]
    noised = patch_sets(model, pairs, [[cell] for cell in cells], table, "noising", label="noising check", **options)
    lost = (1 - noised.scores(next(iter(table)))).tolist()
    made = [
        Component(cell, float(scores[i]), float(errors[i]), gone, needed=abs(gone) >= threshold)
        for i, cell, gone in zip(passed, cells, lost)
    ]
    return [one for one in made if one.restored > 0], [one for one in made if one.restored < 0]


def _heads(
    model: Model,
    pairs: TokenPairs,
    components: Sequence[Component],
    table: dict[str, Metric],
    threshold: float,
    options: dict[str, Any],
) -> tuple[Sweep | None, list[Component], list[Component]]:
    """The heads of the attention layers found, at the positions found: sweep, over, and below minus the threshold."""
    attention = [one.cell for one in components if one.cell.site == "attn_out"]
    if not attention:
        return None, [], []
    where: Any = list(dict.fromkeys(cell.position for cell in attention))
    layers = sorted({cell.layer for cell in attention})
    over = ("layer", "position", "head")
    swept = sweep(model, pairs, "z", over, table, "denoising", layers=layers, positions=where, **options)
    found, opposing = _chosen(model, pairs, swept, table, threshold, options)
    return swept, found, opposing


def _sets(components: Sequence[Component], heads: Sequence[Component]) -> dict[str, tuple[Cell, ...]]:
    """The sets that are patched together; the last one is what random sets and backups are measured against."""
    if not components:
        return {}
    whole = tuple(one.cell for one in components)
    mlps = tuple(cell for cell in whole if cell.site != "attn_out")
    sets = {"components": whole}
    if heads:
        alone = tuple(one.cell for one in heads)
        if mlps:
            sets["heads and MLPs"] = (*alone, *mlps)
        sets["heads"] = alone
    return sets


def _carriers(components: Sequence[Component], pairs: TokenPairs) -> list[str]:
    """A remark on components that are little more than the changed token itself."""
    differs = pairs.differs.cpu()
    found = []
    for one in components:
        rows = [one.cell.positions(pairs, row) for row in range(len(pairs))]
        if one.restored > 0.9 and all(bool(differs[row, at].all()) for row, at in enumerate(rows)):
            found.append(str(one.cell))
    if not found:
        return []
    verb = "restores" if len(found) == 1 else "restore"
    return [
        f"{', '.join(found)} alone {verb} over 90% at a token that was changed, so it may be no more than that token; "
        "sets with it say little about the rest"
    ]


def _control(
    model: Model,
    pairs: TokenPairs,
    cells: Sequence[Cell],
    table: dict[str, Metric],
    count: int,
    seed: int,
    options: dict[str, Any],
) -> dict[str, list[float]]:
    """Sufficiency and necessity of random sets: the same positions, other layers and heads, none that were found."""
    if count < 1:
        return {}
    rng = random.Random(seed)
    held = set(cells)
    sets = [_random_set(model, cells, held, rng) for _ in range(count)]
    (name,) = table
    restored, corrupted = (
        patch_sets(model, pairs, sets, table, direction, label="random sets", **options)
        for direction in ("denoising", "noising")  # type: ignore[arg-type]
    )
    return {"sufficiency": restored.scores(name).tolist(), "necessity": (1 - corrupted.scores(name)).tolist()}


def _random_set(model: Model, cells: Sequence[Cell], held: set[Cell], rng: random.Random) -> list[Cell]:
    drawn: set[Cell] = set()
    for cell in cells:
        options = [
            other
            for layer in range(model.cfg.n_layers)
            for head in (range(model.cfg.n_heads) if cell.head is not None else [None])
            if (other := replace(cell, layer=layer, head=head)) not in held | drawn
        ]
        if options:
            drawn.add(rng.choice(options))
    return sorted(drawn, key=str)


def _backup(
    model: Model,
    pairs: TokenPairs,
    cells: Sequence[Cell],
    table: dict[str, Metric],
    threshold: float,
    options: dict[str, Any],
) -> Backup:
    at = list(dict.fromkeys(place for cell in cells for place in cell.at or ()))
    return backup(model, pairs, cells, table, positions=at or None, threshold=threshold, **options)
