"""What a latent's decoder row writes into the next-token logits, directly."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import BadInput
from ..models import Model

CHUNK = 256  # latents whose effect on the whole vocabulary is held at once
ROWS = 4  # of these that are worked on at once: as many as a processor's cache holds
LOGIT_BINS = 50  # of a histogram over the vocabulary

CONVENTION = (
    "decoder row (through W_O at z) × gain of the final norm (less the row's mean, if that is a LayerNorm), "
    "through the unembedding with its mean over the vocabulary removed"
)


def reaches_logits(model: Model, dictionary: Dictionary) -> bool:
    """Whether decoder rows of this dictionary have a direct effect on the logits."""
    if not dictionary.has_site_out:
        return False
    site = dictionary.site_out
    if site.name == "embed" or site.in_stream:
        return True
    branch = model.branch_of(site)
    if branch is None or site == branch.out:
        return branch is not None
    return site == branch.inner and branch.units == "head" and branch.norm_out is None  # W_O alone is linear


def stream_rows(model: Model, dictionary: Dictionary, latents: Int[Tensor, "n"]) -> Float[Tensor, "n d_model"]:
    """What latents write into the stream, for an activation of 1: their decoder rows, at z through W_O."""
    rows = dictionary.decoder_rows(latents).float()
    branch = model.branch_of(dictionary.site_out)
    if branch is None or dictionary.site_out != branch.inner:
        return rows
    return rows @ (branch.scale * branch.weight().flatten(0, 1).float())


def logit_effects(
    model: Model, dictionary: Dictionary, latents: Int[Tensor, "n"] | None = None
) -> Iterator[Float[Tensor, "chunk vocab"]]:
    """Direct effect of each latent on every token's logit, per unit of activation before the final norm's division.

    Only the direct path ("logit lens" of the row): what later layers make of it is not in it. The norm's division by
    the size of the stream is left out, and so is the mean over the vocabulary, which no probability depends on.
    Multipliers of a branch and of the logits (Granite, Cohere) are in it, a soft cap is not.

    Raises:
        BadInput: the dictionary's site does not write to the stream (mlp_post, q, k, ...), so there is no direct path.
    """
    if not reaches_logits(model, dictionary):
        raise BadInput(f"latents at {dictionary.site_out} have no direct effect on the logits: it is not in the stream")
    W_U, gain = model.W_U.float(), model.final_gain.float() * model.logit_slope
    wanted = torch.arange(dictionary.width) if latents is None else latents
    for chunk in wanted.split(CHUNK):
        rows = stream_rows(model, dictionary, chunk).to(W_U.device)
        if model.final_norm.centres:
            rows = rows - rows.mean(1, keepdim=True)
        effects = (rows * gain) @ W_U
        effects -= effects.mean(1, keepdim=True)
        yield effects


def extreme_tokens(
    model: Model, dictionary: Dictionary, latents: Int[Tensor, "m"] | None = None, *, n: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(promoted ids, their effects, suppressed ids, their effects), each `latents n`, strongest first.

    Raises:
        BadInput: as `logit_effects`.
    """
    n = min(n, model.cfg.d_vocab)
    parts: list[tuple[Tensor, ...]] = []
    for effects in logit_effects(model, dictionary, latents):
        up, down = effects.topk(n), effects.topk(n, largest=False)
        parts.append((up.indices.cpu(), up.values.cpu(), down.indices.cpu(), down.values.cpu()))
    ids_up, up_values, ids_down, down_values = (torch.cat(column) for column in zip(*parts))
    return ids_up, up_values, ids_down, down_values


def logit_moments(effects: Float[Tensor, "n vocab"]) -> Float[Tensor, "3 n"]:
    """sd, skew (E[z^3]) and kurtosis (E[z^4], 3 for a normal distribution) of each row over the vocabulary.

    Of the statistics of Bloom & Lin (2024, Understanding SAE features with the logit lens) the mean is missing: it is 0
    here, because the mean over the vocabulary is taken out.
    """
    return torch.cat([_moments(some) for some in effects.split(ROWS)], dim=1)


def _moments(effects: Float[Tensor, "n vocab"]) -> Float[Tensor, "3 n"]:
    deviations = effects - effects.mean(1, keepdim=True)
    sd = deviations.square().mean(1).sqrt()
    z = deviations / sd[:, None]
    squares = z.square()
    return torch.stack([sd, (squares * z).mean(1), squares.square().mean(1)])


def logit_histograms(effects: Float[Tensor, "n vocab"], bins: int = LOGIT_BINS) -> tuple[Tensor, Tensor]:
    """Ends `[n, 2]` and counts `[n, bins]` of bins of equal width from the smallest to the largest effect on any token.

    Of a row whose effects are all the same, all lie in the first bin.
    """
    ends, counts = [], []
    for some in effects.float().split(ROWS):
        low, high = some.amin(1, keepdim=True), some.amax(1, keepdim=True)
        spread = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
        cell = (some - low).mul_(bins).div_(spread).long()  # the largest lies on the upper edge of the last bin
        cell += (bins + 1) * torch.arange(len(some), device=cell.device)[:, None]
        found = cell.flatten().bincount(minlength=(bins + 1) * len(some)).view(-1, bins + 1)
        found[:, -2] += found[:, -1]
        counts.append(found[:, :-1])
        ends.append(torch.cat([low, high], dim=1))
    return torch.cat(ends), torch.cat(counts)


def logit_histogram(effects: Float[Tensor, "vocab"], bins: int = LOGIT_BINS) -> tuple[list[float], list[int]]:
    """Edges and counts of `logit_histograms` of one row."""
    ends, counts = logit_histograms(effects[None], bins)
    low, high = ends[0].tolist()
    return torch.linspace(low, high, bins + 1).tolist(), counts[0].tolist()
