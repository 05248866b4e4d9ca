"""Attribution patching: the first-order estimate of a sweep, from one gradient instead of one run for each cell.

A patch writes `source` where `base` was. The metric then is, to first order,

    metric(base run) + Σ (source - base) · ∂metric/∂activation,

summed over the cell, with the gradient taken in the base run: corrupted when denoising, clean when noising. Values are
thus estimates of what `sweep` measures for the same cell, with the same sign: an effect above zero means that the patch
raises the metric. The gradient is taken at the activation that the rest of the model reads (every captured view is
joined back into the path), so nothing is missed in fused or reshaped projections.

With `steps` above one the gradient is the mean over runs whose input to the first block lies between the two sides
(midpoints; integrated gradients over inputs, as in EAP-IG: Hanna et al. 2024, arXiv:2403.17806), which helps where the
gradient at the base is flat or saturated.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from ...data import TokenPairs
from ...errors import BadInput
from ...models import Model, Site
from ...results import analysis
from ..cells import Cell, Which, axes_of, cells_of, columns_of, labels_of, places_of
from ..corruptions import Corruption
from ..experiment import Direction, numbers_of
from ..scoring import Metric, MetricLike, refuse_joint
from ..sweeps.result import Sweep
from ..trials import Trial, patching_experiment

INPUT = Site("resid_pre", 0)


@analysis
def attribution(
    model: Model,
    pairs: TokenPairs,
    sites: str | Sequence[str] = "resid_pre",
    over: str | Sequence[str] = ("layer", "position"),
    *,
    metric: MetricLike = "logit_diff",
    direction: Direction | None = None,
    corruption: Corruption | None = None,
    steps: int = 1,
    quiet: bool = False,
    **which: Unpack[Which],
) -> Sweep:
    """Estimate `sweep` with the same arguments. One gradient a pair and metric serves all cells of all sites.

    Args:
        steps: 1: the gradient in the base run; more: the mean over that many runs between base and source.

    Raises:
        UnknownName, BadInput: as `sweep`; a metric that is not differentiable; steps towards bare values.
    """
    if steps < 1:
        raise BadInput(f"steps counts gradients, at least 1, not {steps}")
    if steps > 1 and corruption is not None and not corruption.is_run:
        raise BadInput(
            f"integrated gradients need a run on both sides, and {corruption.label} gives values: use steps=1"
        )
    refuse_joint(pairs, "attribution")
    cells = cells_of(model, pairs, sites, over, **which)
    places, labels = places_of(cells), labels_of(model, pairs, cells)
    captured = list(dict.fromkeys([*places, INPUT]))
    experiment = patching_experiment(model, pairs, captured, metric, direction, corruption, which.get("dictionary"))

    named = which.get("dictionary") is not None and which.get("positions") is not None

    def estimated(trial: Trial) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        if named:
            trial.check_trained(cells)
        base = numbers_of(trial, experiment.metrics, trial.base_logits)
        slopes = gradients(trial, captured, experiment.metrics, steps)
        yield slice(None), {name: base[name] + effects for name, effects in _effects(trial, cells, slopes).items()}

    run = experiment.run(estimated, columns_of(cells, over, labels), label="attribute", unit="cell", quiet=quiet)
    method = "attribution" if steps == 1 else f"attribution, {steps} steps"
    return Sweep.of(run, cells=cells, over=axes_of(over), labels=labels, method=method)


def gradients(
    trial: Trial, places: Sequence[Site], metrics: Mapping[str, Metric], steps: int = 1
) -> dict[str, dict[Site, Tensor]]:
    """Metric -> site -> gradient in the base run (without batch axis), or the mean between base and source.

    Raises:
        BadInput: a metric whose value carries no gradient.
    """
    slopes: dict[str, dict[Site, Tensor]] = {name: {} for name in metrics}
    base, source = trial.base[INPUT], trial.source[INPUT][None]
    for step in range(steps):
        share = 0.0 if steps == 1 else (step + 0.5) / steps
        stream = base + share * (source - base)
        run = trial.model.run(
            trial.base.tokens,
            capture=[*places, INPUT],  # the input, so that all of the stream carries gradients
            edits=trial.edits_after(INPUT),
            start=(INPUT, stream),
            logits="last",
            grad=True,
        )
        for number, (name, metric) in enumerate(metrics.items()):
            value = torch.as_tensor(metric(run.logits, trial.pairs, trial.clean_logits)).sum()  # type: ignore[arg-type]
            if not value.requires_grad:
                raise BadInput(f"metric {name!r} carries no gradient; compute it from the logits with torch alone")
            sites = [run[place] for place in places]
            parts = torch.autograd.grad(value, sites, retain_graph=number + 1 < len(metrics))
            for place, part in zip(places, parts):
                mean = part[0].to(torch.promote_types(part.dtype, torch.float32)) / steps
                slopes[name][place] = slopes[name].get(place, 0) + mean
    return slopes


def _effects(trial: Trial, cells: Sequence[Cell], slopes: Mapping[str, Mapping[Site, Tensor]]) -> dict[str, Tensor]:
    """Metric -> the estimated effect of every cell."""
    latents: dict[Site, list[int]] = {}
    for cell in cells:
        if cell.latent is not None and cell.latent not in (held := latents.setdefault(cell.place, [])):
            held.append(cell.latent)
    columns = {place: {latent: n for n, latent in enumerate(held)} for place, held in latents.items()}
    effects = {}
    for name, by_site in slopes.items():
        shares = {
            place: _latent_shares(trial, place, latents[place], slope)
            if place in latents
            else slope * (trial.source[place].to(slope) - trial.base[place][0].to(slope))
            for place, slope in by_site.items()
            if place in trial.source
        }
        rows = []
        for cell in cells:
            index = cell.index(trial.pairs, 0)
            if cell.latent is not None:
                index = (*index, columns[cell.place][cell.latent])
            rows.append(shares[cell.place][index].sum(dtype=torch.float64))
        effects[name] = torch.stack(rows).cpu()
    return effects


def _latent_shares(trial: Trial, place: Site, latents: Sequence[int], slope: Tensor) -> Any:
    """(source - base) of each latent times the gradient along what it writes, `pos latent`; the error term stays."""
    dictionary = trial.dictionary
    assert dictionary is not None
    base, source = trial.base[place][0].flatten(1), trial.source[place].flatten(1)
    here, there = (dictionary.latent_activations(x, list(latents)).to(slope) for x in (base, source))
    slope = slope.flatten(1)
    along = slope @ dictionary.decoder_rows(list(latents)).to(slope).T
    if (scale := dictionary.token_scale(base)) is not None:
        along = along * scale.to(slope)
    return (there - here) * along * trial.trained[:, None]
