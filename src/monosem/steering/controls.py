"""Control arms: what does *any* latent do, and what does the dictionary's own error do?

An effect of one latent means little alone. Beside it belong the same intervention on random latents that are as active
on the same tokens, and the arm in which the activation is only replaced by its reconstruction (`monosem.edits.splice`).
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import DirectionLike
from ..edits.changes import site_and_vector
from ..errors import BadInput
from ..models import Site, SiteLike


def random_latents(
    alike: Float[Tensor, "*measures width"],
    latent: int,
    n: int,
    *,
    exclude: Iterable[int] = (),
    seed: int = 0,
) -> list[int]:
    """`n` latents drawn at random among the 2n that are most like the latent in some measures.

    To ablate a silent latent does nothing, so a latent that is silent on the tokens in question is no control. Measures
    that make good ones are the mean activation on just these tokens (ablation) and the maximum (amplification). The
    distance is the difference in logarithm, summed over the measures. A measure that is 0 for `latent` itself is left
    out. Where there are too few others, latents that are 0 in a measure are drawn, then those to exclude.

    Args:
        alike: values of 0 and more; a row for each measure, or one measure.
        exclude: latents that should not be drawn (the candidates); `latent` never is.

    Raises:
        BadInput: the dictionary has fewer than n other latents.
    """
    width = alike.shape[-1]
    if width <= n:
        raise BadInput(f"{n} random control latents wanted, but the dictionary has only {width}; ask for fewer")
    measures = alike.double().reshape(-1, width)
    logs = measures[measures[:, latent] > 0].clamp_min(1e-300).log()
    distance = (logs - logs[:, [latent]]).abs().sum(0)
    silent = (logs < -600).any(0)
    tier = silent.int()  # 0: good ones; 1: silent ones; 2: excluded ones
    tier[list(exclude)] = 2
    tier[latent] = 3
    order = sorted(range(width), key=lambda i: (int(tier[i]), float(distance[i])))
    good = int((tier == 0).sum())
    pool = order[: max(n, min(2 * n, good))]
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:n]
    return [pool[int(i)] for i in drawn]


def random_directions(
    direction: DirectionLike | tuple[SiteLike, Tensor], n: int, *, seed: int = 0
) -> list[tuple[Site, Float[Tensor, "d"]]]:
    """`n` directions at the same site, of the same length, uniform on the sphere: what does *any* direction do?"""
    site, vector = site_and_vector(direction)
    drawn = torch.randn(n, len(vector), generator=torch.Generator().manual_seed(seed))
    return [(site, one / one.norm() * vector.float().cpu().norm()) for one in drawn]
