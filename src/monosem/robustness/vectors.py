"""The direction that carries a behaviour, the subspace around it, and controls of the same size."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import PromptPairs
from ..directions import Direction, Directions, prefilter, select
from ..errors import BadInput
from ..models import Model, Site
from ..models.transformerlens.text import single_token
from ..steering import random_directions
from .config import CHOOSE, FEWEST, KS, RobustnessConfig

CANDIDATES, EARLIEST, LATEST = 8, 0.2, 0.8  # layers that are tried, and where they lie
SHUFFLED = "shuffled labels"
FIRST_AXIS, REST = "first axis", "rest of shuffled"


@dataclass(frozen=True)
class Vectors:
    """What attacks are made of. Controls are named; the fitted direction and subspace have the name "".

    Attributes:
        site: where they were read. gap: distance of the class means along the direction.
        units: name -> unit vector. bases: name -> orthonormal rows, the first k of which are its k-subspace.
        facts: how the direction was found, for the report.
    """

    site: Site
    gap: float
    units: dict[str, Float[Tensor, "d"]]
    bases: dict[str, Float[Tensor, "k d"]]
    facts: dict[str, Any]

    @property
    def controls(self) -> list[str]:
        return [name for name in self.units if name]


def fitted(model: Model, config: RobustnessConfig, prompts: dict[str, list[str]]) -> Vectors:
    """Fit on three quarters of the training prompts, choose the layer by COSMIC on the rest (`directions.select`).

    Where no candidate passes COSMIC's filters, the one with the largest score is taken, and `facts` says so: a model
    without the behaviour gets a direction as well, which then has nothing to remove. Likewise a prefilter (of the
    config) that would leave too few prompts leaves them all.

    Args:
        prompts: of the two training roles, as the model is given them.

    Raises:
        BadInput: no place at which states can be read.
    """
    pairs = PromptPairs(prompts["behaviour_train"], prompts["unrelated_train"], paired=False)
    pairs, unfiltered = _shown(model, pairs, config)
    fit, choose = pairs.split(CHOOSE, seed=config.seed)
    layers = candidates(model, config)
    found = Directions.fit(model, fit, config.site, layers=layers, method=config.method, at=config.at, seed=config.seed)
    chosen = select(model, found, choose, by="cosmic", batch_size=config.batch_size)
    direction, row = chosen.candidates[0], chosen.table.iloc[0]
    shuffled = _shuffled(fit, config.seed)
    other = Direction.fit(
        model, *_sides(shuffled), direction.site, method=config.method, at=config.at, seed=config.seed
    )
    units = {"": direction.unit}
    for number, (_, vector) in enumerate(
        random_directions((direction.site, direction.vector), config.controls, seed=config.seed), 1
    ):
        units[f"random {number}"] = vector / vector.norm()
    units[SHUFFLED] = other.unit
    if FIRST_AXIS in config.more_controls:
        units[FIRST_AXIS] = _first_axis(model, fit, direction, config)
    if REST in config.more_controls:
        units[REST] = _orthonormal(torch.stack([direction.unit, other.unit]))[-1]
    gap = float(direction.provenance.get("gap", float("nan")))
    gap = abs(gap) if gap == gap and gap else float(direction.vector.norm())
    facts = {"site": str(direction.site), "position": direction.position, "method": config.method, "gap": gap}
    facts |= {name: direction.provenance.get(name) for name in ("stability", "held_out_auroc", "promotes")}
    facts |= {"left_out": str(row["left_out"]), "score": float(row["score"]), "cosmic_kl": float(row["kl"])}
    facts |= {"doubts": [*unfiltered, *chosen.doubts, *_left_out(config)]}
    facts |= {"prefilter": dict(pairs.prefilter)} if pairs.prefilter else {}
    facts |= {"shuffled_cosine": float(direction.unit @ other.unit), "candidates": len(found)}
    facts |= {"prompts": {"fit": _counts(fit), "choose": _counts(choose)}}
    bases = _bases(model, direction, fit, shuffled, config) if config.subspaces else {}
    return Vectors(direction.site, gap, units, bases, facts)


def _shown(model: Model, pairs: PromptPairs, config: RobustnessConfig) -> tuple[PromptPairs, list[str]]:
    """The training prompts that begin as their side says, where the config asks for a prefilter; all of them, and a
    doubt, where too few do, as in a model without the behaviour."""
    tokens = [single_token(model, token) for token in config.prefilter]
    if not tokens:
        return pairs, []
    enough = (
        math.ceil(max(config.subspaces, default=1) / (1 - CHOOSE)) + 1
    )  # so many prompts that the largest subspace can be fitted
    fewest = max(FEWEST["behaviour_train"], FEWEST["unrelated_train"], enough)
    try:
        return prefilter(model, pairs, tokens, fewest=fewest, batch_size=config.batch_size).pairs, []
    except BadInput as error:
        return pairs, [f"the prefilter was not used ({error}); all training prompts were"]


def _left_out(config: RobustnessConfig) -> list[str]:
    """What is said of sizes of subspaces that the prompts are too few for."""
    if config.ks is not None or not config.subspaces or config.subspaces == KS:
        return []
    out = ", ".join(str(k) for k in KS if k not in config.subspaces)
    n = config.most_directions
    return [f"ks = {out} was left out, for {n} pairs of training prompts give subspaces of {n} directions at most"]


def _bases(
    model: Model, direction: Direction, fit: PromptPairs, shuffled: PromptPairs, config: RobustnessConfig
) -> dict[str, Tensor]:
    """Subspaces: the fitted direction, then the axes of largest scatter of paired differences (uncentred), made
    orthogonal; of shuffled labels the same; random ones."""
    most = max(config.subspaces)
    found = {
        "": _subspace(model, direction.site, direction.unit, fit, most, config),
        SHUFFLED: _subspace(model, direction.site, None, shuffled, most, config),
    }
    noise = torch.Generator().manual_seed(config.seed + 1)
    for number in range(1, config.controls + 1):
        drawn = torch.randn(most, model.cfg.d_model, generator=noise)
        found[f"random {number}"] = torch.linalg.qr(drawn.T)[0].T
    return dict(sorted(found.items()))


def _first_axis(model: Model, fit: PromptPairs, direction: Direction, config: RobustnessConfig) -> Float[Tensor, "d"]:
    """The axis of largest scatter of the unrelated prompts' states, which knows nothing of the behaviour."""
    half, site = len(fit.negative) // 2, direction.site
    sides = fit.negative[:half], fit.negative[half:]
    return Direction.fit(model, *sides, site, method="pca_global", at=config.at, paired=False, seed=config.seed).unit


def _subspace(
    model: Model, site: Site, first: Tensor | None, pairs: PromptPairs, k: int, config: RobustnessConfig
) -> Float[Tensor, "k d"]:
    n = min(len(pairs.positive), len(pairs.negative))
    up, down = pairs.positive[:n], pairs.negative[:n]
    found = Direction.fit(model, up, down, site, method="svd", at=config.at, paired=True, k=k, seed=config.seed)
    rows = found.unit[None] if found.basis is None else found.basis  # one direction has no basis beside it
    return _orthonormal(rows if first is None else torch.cat([first[None], rows]))[:k]


def _orthonormal(rows: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """Rows that span the first ones in their order (Gram-Schmidt); those that add nothing are left out."""
    kept: list[Tensor] = []
    for row in rows.double():
        for one in kept:
            row = row - (row @ one) * one
        if float(row.norm()) > 1e-3:
            kept.append(row / row.norm())
    return torch.stack(kept).float()


def _shuffled(pairs: PromptPairs, seed: int) -> PromptPairs:
    """The same prompts under labels that were drawn."""
    every, n = [*pairs.positive, *pairs.negative], len(pairs.positive)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
    mixed = [every[i] for i in order]
    return PromptPairs(mixed[:n], mixed[n:], paired=False)


def _sides(pairs: PromptPairs) -> tuple[list[str], list[str]]:
    return list(pairs.positive), list(pairs.negative)


def _counts(pairs: PromptPairs) -> dict[str, int]:
    return {"behaviour": len(pairs.positive), "unrelated": len(pairs.negative)}


def candidates(model: Model, config: RobustnessConfig) -> list[int]:
    """The layers at which directions are fitted."""
    return config.layers or _spread(model.cfg.n_layers)


def _spread(n_layers: int) -> list[int]:
    """Evenly spaced layers inside the part of the model where directions are looked for."""
    first, last = round(EARLIEST * n_layers), max(round(LATEST * n_layers) - 1, round(EARLIEST * n_layers))
    steps = min(CANDIDATES, last - first + 1)
    return sorted({round(first + i * (last - first) / max(steps - 1, 1)) for i in range(steps)})
