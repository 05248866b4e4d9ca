"""What a latent's decoder row writes into the next-token logits, directly."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import BadInput
from ..models import Model

CHUNK = 256  # latents whose effect on the whole vocabulary is held at once

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
    W_U = model.W_U.float()
    W_U = (W_U - W_U.mean(1, keepdim=True)) * model.final_gain.float()[:, None] * model.logit_slope
    if model.final_norm.centres:
        W_U = W_U - W_U.mean(0)  # the same as taking the mean out of every row
    if (branch := model.branch_of(dictionary.site_out)) is not None and dictionary.site_out == branch.inner:
        W_U = branch.scale * branch.weight().flatten(0, 1).float() @ W_U
    wanted = torch.arange(dictionary.width) if latents is None else latents
    for chunk in wanted.split(CHUNK):
        yield dictionary.decoder_rows(chunk).float().to(W_U.device) @ W_U


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
