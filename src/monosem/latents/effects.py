"""What a latent's decoder row writes into the next-token logits, directly."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..dictionaries import Dictionary
from ..models import Model

CHUNK = 256  # latents whose effect on the whole vocabulary is held at once

CONVENTION = "decoder row × gain of the final norm, through the unembedding with its mean over the vocabulary removed"


def logit_effects(
    model: Model, dictionary: Dictionary, latents: Int[Tensor, "n"] | None = None
) -> Iterator[Float[Tensor, "chunk vocab"]]:
    """Direct effect of each latent on every token's logit, per unit of activation before the final norm's division.

    Only the direct path: what later layers make of the row is not in it. The mean over the vocabulary, which no
    probability depends on, is removed. Dictionaries of sites whose output is not in the stream (z, mlp_post) have no
    such row.
    """
    W_U = model.W_U.float()
    W_U = (W_U - W_U.mean(1, keepdim=True)) * model.final_gain.float()[:, None]
    wanted = torch.arange(dictionary.width) if latents is None else latents
    for chunk in wanted.split(CHUNK):
        yield dictionary.decoder_rows(chunk).float().to(W_U.device) @ W_U


def extreme_tokens(
    model: Model, dictionary: Dictionary, n: int = 10, latents: Int[Tensor, "m"] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(promoted ids, their effects, suppressed ids, their effects), each `latents n`, strongest first."""
    parts: list[tuple[Tensor, ...]] = []
    for effects in logit_effects(model, dictionary, latents):
        up, down = effects.topk(n), effects.topk(n, largest=False)
        parts.append((up.indices.cpu(), up.values.cpu(), down.indices.cpu(), down.values.cpu()))
    ids_up, up_values, ids_down, down_values = (torch.cat(column) for column in zip(*parts))
    return ids_up, up_values, ids_down, down_values
