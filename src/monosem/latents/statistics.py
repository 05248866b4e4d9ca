"""Statistics of many latents at once: AUROC, permutation tests, consistency. Columns are latents."""

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK_ELEMENTS = 2**24  # elements of the largest temporary array (128 MB in float64)


def auroc(positive: Float[Tensor, "n latents"], negative: Float[Tensor, "m latents"]) -> Float[Tensor, "latents"]:
    """Probability that a random positive is above a random negative, ties counting half (Mann-Whitney U / nm)."""
    ranked = negative.T.contiguous().sort().values
    values = positive.T.contiguous()
    below = torch.searchsorted(ranked, values)  # negatives below each positive; `right` counts those that tie as well
    below_or_equal = torch.searchsorted(ranked, values, right=True)
    return ((below + below_or_equal).double().mean(1) / (2 * len(negative))).float()


def consistency(
    positive: Float[Tensor, "n latents"], negative: Float[Tensor, "m latents"], paired: bool
) -> Float[Tensor, "latents"]:
    """Share of pairs in which the positive is above its partner; unpaired: of positives above the negatives' mean."""
    other = negative if paired else negative.mean(0, keepdim=True)
    return (positive > other).float().mean(0)


def permutation_p(
    positive: Float[Tensor, "n latents"],
    negative: Float[Tensor, "m latents"],
    paired: bool,
    permutations: int = 1000,
    seed: int = 0,
) -> tuple[Float[Tensor, "latents"], Float[Tensor, "latents"]]:
    """One-sided p that positives are higher: for each latent alone, and corrected for having looked at all of them.

    Labels are exchanged within pairs, or (unpaired) among all prompts. The statistic is the difference of means. The
    second p compares each latent's difference, in standard deviations of its own null, with the largest such value over
    all latents in each permutation (max-statistic of Westfall & Young). Both are (1 + hits) / (1 + permutations), so
    they are never 0.
    """
    generator = torch.Generator().manual_seed(seed)
    n, m = len(positive), len(negative)
    together = torch.cat([positive, negative]).double()
    weights = torch.stack([_weights(n, m, paired, generator) for _ in range(permutations)])
    own = torch.cat([torch.full((n,), 1 / n), torch.full((m,), -1 / m)]).double()
    observed = own @ together
    width = max(1, CHUNK_ELEMENTS // max(permutations, 1))
    null = [weights @ part for part in together.split(width, dim=1)]
    spread = torch.cat([part.std(0) for part in null]).clamp_min(1e-12)
    edge = 1e-9 * together.abs().amax(0)  # a tie with the observed value is a hit, whatever the order of summation
    hits = torch.cat([(part >= (o - e)).sum(0) for part, o, e in zip(null, observed.split(width), edge.split(width))])
    highest = torch.stack([(part / s).amax(1) for part, s in zip(null, spread.split(width))]).amax(0)
    z = (observed - edge) / spread
    family_hits = len(highest) - torch.searchsorted(highest.sort().values, z)
    return ((1 + hits) / (1 + permutations)).float(), ((1 + family_hits) / (1 + permutations)).float()


def _weights(n: int, m: int, paired: bool, generator: torch.Generator) -> Float[Tensor, "prompts"]:
    """One relabelling, as the weights that turn all prompts into a difference of means."""
    own = torch.cat([torch.full((n,), 1 / n), torch.full((m,), -1 / m)]).double()
    if not paired:
        return own[torch.randperm(n + m, generator=generator)]
    sign = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    return own * torch.cat([sign, sign])


def bootstrap_auroc(
    positive: Float[Tensor, "n"], negative: Float[Tensor, "m"], paired: bool, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of one latent's AUROC, resampling pairs (or each side by itself)."""
    generator = torch.Generator().manual_seed(seed)
    n, m = len(positive), len(negative)
    first = torch.randint(0, n, (n, draws), generator=generator)
    second = first if paired else torch.randint(0, m, (m, draws), generator=generator)
    low, high = auroc(positive[first], negative[second]).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
