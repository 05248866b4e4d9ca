"""What a dictionary's weights alone say about its latents: norms, angles, neighbours, neurons, heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..dictionaries import Dictionary
from ..dictionaries.codes import latent_ids
from ..errors import check_name
from ..models import Model
from ..results import Tabled, analysis
from .effects import logit_effects, logit_moments, reaches_logits

Side = Literal["decoder", "encoder"]
ALIGNED = 3  # neurons that are named


@dataclass(frozen=True)
class WeightStatistics(Tabled):
    """`table`, one row a latent: encoder_norm, decoder_norm, cosine (between both; NaN where they are of different
    lengths), bias, threshold (NaN where the kind has none), decoder_bias (its decoder row · b_dec); and with a model
    logit_sd, logit_skew, logit_kurtosis of its direct effects on all tokens (`effects.logit_moments`)."""

    ranked_by: ClassVar[str | None] = "decoder_norm"


@analysis
@torch.no_grad()
def weight_statistics(
    dictionary: Dictionary, latents: Sequence[int] | Tensor | None = None, *, model: Model | None = None
) -> WeightStatistics:
    """What the weights alone say of all latents (or some), without a corpus.

    Raises:
        Mismatch: a model that the dictionary is not of. UnknownName: no such latent.
    """
    ids = torch.arange(dictionary.width) if latents is None else latent_ids(latents, dictionary.width)
    encoder, decoder = (_rows(dictionary, side)[ids.to(dictionary.W_dec.device)].float() for side in SIDES)
    columns = {
        "latent": ids,
        "encoder_norm": encoder.norm(dim=1),
        "decoder_norm": decoder.norm(dim=1),
        "cosine": _cosine(encoder, decoder),
        "bias": dictionary.b_enc[ids],
        "threshold": torch.full((len(ids),), torch.nan) if dictionary.threshold is None else dictionary.threshold[ids],
        "decoder_bias": decoder @ dictionary.b_dec.float(),
    }
    if model is not None:
        dictionary.check(model)
        if reaches_logits(model, dictionary):
            moments = torch.cat([logit_moments(chunk).cpu() for chunk in logit_effects(model, dictionary, ids)], 1)
            columns |= dict(zip(("logit_sd", "logit_skew", "logit_kurtosis"), moments))
    return WeightStatistics(pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()}))


SIDES = ("encoder", "decoder")


def neighbours(
    dictionary: Dictionary, latent: int, *, n: int = 10, side: Side = "decoder", other: Dictionary | None = None
) -> list[tuple[int, float]]:
    """(latent, cosine) of the n latents with the most similar row, most similar first; of `other` where it is given.

    Raises:
        UnknownName: no such latent, or side.
    """
    check_name("side", side, SIDES)
    (number,) = latent_ids(latent, dictionary.width).tolist()
    rows = _rows(other or dictionary, side).float()
    row = _rows(dictionary, side)[number].float().to(rows.device)
    cosines = (rows @ row) / (_norms(other or dictionary, side) * row.norm()).clamp_min(1e-30)
    if other is None:
        cosines[number] = -torch.inf
    best = cosines.topk(min(n, len(cosines) - (other is None)))
    return list(zip(best.indices.tolist(), best.values.tolist()))


def aligned_neurons(dictionary: Dictionary, latent: int, n: int = ALIGNED) -> list[tuple[int, float, float]]:
    """(dimension, value, share) of the n largest signed entries of a decoder row; share is |value| / Σ|row|.

    The dimensions are neurons only where the site has a basis of its own (`mlp_post`); in the stream they are not.
    """
    row = dictionary.decoder_rows(latent)[0].float()
    largest = row.topk(min(n, len(row)))
    shares = largest.values.abs() / row.abs().sum().clamp_min(1e-30)
    return list(zip(largest.indices.tolist(), largest.values.tolist(), shares.tolist()))


def head_shares(dictionary: Dictionary, latent: int, heads: int) -> list[float]:
    """Norm of a decoder row inside each head, as shares of their sum (dictionaries of `z`, `q`, `k`, `v`)."""
    norms = dictionary.decoder_rows(latent)[0].float().view(heads, -1).norm(dim=1)
    return (norms / norms.sum().clamp_min(1e-30)).tolist()  # type: ignore[no-any-return]


def _rows(dictionary: Dictionary, side: str) -> Float[Tensor, "width d"]:
    return dictionary.W_dec if side == "decoder" else dictionary.W_enc.T


def _norms(dictionary: Dictionary, side: str) -> Float[Tensor, "width"]:
    return dictionary.remembered(f"{side} norms", lambda: _rows(dictionary, side).float().norm(dim=1))


def _cosine(one: Float[Tensor, "n a"], other: Float[Tensor, "n b"]) -> Float[Tensor, "n"]:
    if one.shape != other.shape:
        return torch.full((len(one),), torch.nan)
    return torch.nn.functional.cosine_similarity(one, other, dim=1)
