"""Control arms: what does *any* latent do, and what does the dictionary's own error do?

An effect of one latent means little alone. Beside it belong the same intervention on random latents that fire about as
often, and the arm in which the activation is only replaced by its reconstruction (`monosem.edits.splice`).
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput


def random_latents(
    densities: Float[Tensor, "width"],
    latent: int,
    n: int,
    *,
    exclude: Iterable[int] = (),
    seed: int = 0,
    factor: float = 2.0,
) -> list[int]:
    """`n` latents drawn at random among those whose density lies within `factor` of the latent's.

    Where too few lie so near, the nearest in log density are drawn from instead (at least 2n of them), so that the
    answer always exists. Latents that never fired are left out, unless `latent` itself never fired.

    Args:
        densities: share of tokens at which each latent is active.
        exclude: latents that must not be drawn (the candidates); `latent` never is.

    Raises:
        BadInput: the dictionary has fewer than n other latents.
    """
    width = len(densities)
    logs = densities.double().clamp_min(1e-12).log()
    distance = (logs - logs[latent]).abs()
    usable = torch.ones(width, dtype=torch.bool) if densities[latent] == 0 else densities > 0
    usable[[latent, *exclude]] = False
    if int(usable.sum()) < n:
        usable = torch.ones(width, dtype=torch.bool)
        usable[latent] = False
    if int(usable.sum()) < n:
        raise BadInput(f"{n} random control latents wanted, but the dictionary has only {width}; ask for fewer")
    distance = torch.where(usable, distance, torch.inf)
    near = int((distance <= torch.tensor(factor).log()).sum())
    pool = distance.argsort(stable=True)[: min(max(near, 2 * n), int(usable.sum()))]
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return [int(i) for i in pool[order[:n]]]
