"""When a latent that should fire is replaced by others: absorption (Chanin et al. 2024, arXiv:2409.14507), per word.

Along a probe's direction u, an activation x has a projection, of which every latent gives a part. A concept's main
latents are silent, or weak, where other latents (of the single word, say) give the projection in their place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import check_name

SILENT = 1e-8  # activation below which a main latent is silent
LEAST_SHARE = 0.4  # of the projection, that absorbers must give
LEAST_COSINE, LEAST_COSINE_FULL = 0.1, 0.025  # of a decoder row with the probe; the latter in sae-bench's full rate
MOST_ABSORBERS = 3


@dataclass(frozen=True)
class Parts:
    """What latents give along a probe's direction.

    acts: codes. given: what each latent gives. cosine: of its decoder row with the probe. projection: of the whole.
    """

    acts: Float[Tensor, "n width"]
    given: Float[Tensor, "n width"]
    cosine: Float[Tensor, "width"]
    projection: Float[Tensor, "n"]


class Absorbed(NamedTuple):
    """fraction: 0 to 1, how much of what main latents and absorbers give comes from absorbers. full: main latents are
    silent, and a single other latent gives enough."""

    fraction: Float[Tensor, "n"]
    full: Bool[Tensor, "n"]


def parts(
    x: Float[Tensor, "n d"],
    acts: Float[Tensor, "n width"],
    W_dec: Float[Tensor, "width d"],
    probe: Float[Tensor, "d"],
    *,
    rest: tuple[Float[Tensor, "d"], Float[Tensor, "width"]] | None = None,
    variant: str = "monosem",
) -> Parts:
    """Parts of the projection on u = probe / |probe|.

    "monosem": (f_j - f̄_j) (W_dec_j · u) of (x - x̄) · u, where x̄ and f̄ (`rest`; default: zeros) are the means over
    examples without the concept: norms of decoder rows count, constants do not.
    "saebench": f_j cos(W_dec_j, u) of x · u, as sae-bench 0.6.0: norms are lost, and a constant counts for the concept.

    Raises:
        UnknownName: another variant.
    """
    check_name("variant", variant, ("monosem", "saebench"))
    unit = probe / probe.norm()
    cosine = torch.cosine_similarity(unit, W_dec, dim=-1)
    if variant == "saebench":
        return Parts(acts, acts * cosine, cosine, x @ unit)
    mean_x, mean_f = rest or (torch.zeros_like(x[0]), torch.zeros_like(acts[0]))
    return Parts(acts, (acts - mean_f) * (W_dec @ unit), cosine, (x - mean_x) @ unit)


def absorbed(parts: Parts, main: Sequence[int], *, variant: str = "monosem") -> Absorbed:
    """Whether other latents stand in for the main ones, for each row.

    Absorbers are the up to three latents that give most, are not main and have a cosine of at least 0.1 with the probe.
    With a = what they give, m = what the main ones give, p = the projection: fraction is 0 where p <= 0, m >= p or
    a / p < 0.4; 1 where m <= 0; else c / (c + m), c = min(a, p - m). Full: no main latent is active, p > 0, and the
    first absorber alone gives 0.4 p.

    "saebench" (0.6.0) asks for less: full looks at the latent that gives most of all latents, with a cosine of 0.025,
    so that an example may be fully absorbed at fraction 0; a main latent below 0 counts as silent.

    Raises:
        UnknownName: another variant.
    """
    check_name("variant", variant, ("monosem", "saebench"))
    chosen = list(main)
    top = standing_in(parts, chosen)[0]
    a, m, p = top.sum(1), parts.given[:, chosen].sum(1).double(), parts.projection.double()
    c = torch.minimum(a, p - m)
    fraction = torch.where(m <= 0, 1.0, (c / (c + m)).clamp(0, 1))
    fraction = torch.where((p <= 0) | (m >= p) | (a < LEAST_SHARE * p), 0.0, fraction)
    main_acts = parts.acts[:, chosen]
    if variant == "monosem":
        full = (main_acts.abs() < SILENT).all(1) & (p > 0) & (top[:, 0] >= LEAST_SHARE * p)
        return Absorbed(fraction, full & (fraction > 0))
    best = parts.given.max(1)
    share = best.values.double() / p
    aligned = parts.cosine[best.indices] >= LEAST_COSINE_FULL
    full = (main_acts < SILENT).all(1) & aligned & (p >= 0) & (share >= LEAST_SHARE)
    return Absorbed(fraction, full)


def standing_in(parts: Parts, main: Sequence[int]) -> tuple[Float[Tensor, "n most"], Int[Tensor, "n most"]]:
    """(what each gives, its number) of each row's candidates for absorbers, as `absorbed` has them; 0 where there is
    none."""
    other = parts.cosine >= LEAST_COSINE
    other[list(main)] = False
    candidates = torch.where(other & (parts.given > 0), parts.given, 0.0)
    top = candidates.topk(min(MOST_ABSORBERS, candidates.shape[1]), dim=1)
    return top.values.double(), top.indices


def split_size(scores: Sequence[float], jump: float = 0.03) -> int:
    """How many latents share a concept: k = 1, 2, ... are taken while the k-sparse probe's F1 rises by more than
    `jump` from each to the next (sae-bench 0.6.0; that says k - 1 in one column, k in another)."""
    size = 1
    while size < len(scores) and scores[size] > scores[size - 1] + jump:
        size += 1
    return size


def rates(fractions: Sequence[Absorbed]) -> tuple[list[float], list[float]]:
    """Mean fraction and share of full absorption of each concept, over the words that its probe gets right."""
    means = [float(one.fraction.mean()) for one in fractions]
    return means, [float(one.full.double().mean()) for one in fractions]
