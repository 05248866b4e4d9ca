"""What architectures of several sites share: weights that read and write raw activations, and what a file says."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ....errors import BadInput
from ....models import Site
from ...encoders import ENCODERS
from ...several_parts import Facts
from ..export import About
from ..form import TrainingForm
from ..kinds import KINDS
from ..settings import DictionarySettings


class Raw(NamedTuple):
    """Weights in float64 for inputs that are neither scaled nor centred; codes are as in training."""

    W_enc: Float[Tensor, "width d_in"]
    b_enc: Float[Tensor, "width"]
    W_dec: Float[Tensor, "width d_out"]
    b_dec: Float[Tensor, "d_out"]
    threshold: Float[Tensor, "width"] | None


def in_raw_units(
    form: TrainingForm,
    settings: DictionarySettings,
    scales: Sequence[float],
    scales_out: Sequence[float],
    threshold: float | None,
) -> Raw:
    """The weights of a form that reads and writes sites of one width.

    Args:
        scales, scales_out: of each site that the form reads and writes, side by side. threshold: of all latents, where
            the kind has one of no latent's own.
    """
    weights = {name: p.detach().to("cpu", torch.float64) for name, p in form.state_dict().items()}
    weights |= KINDS[settings.kind].canonical(weights)
    reads = _columns(scales, weights["W_enc"].shape[1])
    writes = _columns(scales_out, weights["W_dec"].shape[1])
    own = weights.get("threshold")
    theta = own if threshold is None else torch.full((form.width,), threshold, dtype=torch.float64)
    return Raw(
        weights["W_enc"] * reads,
        weights["b_enc"] - weights["W_enc"] @ weights.get("b_in", weights["b_dec"]),
        weights["W_dec"] / writes,
        weights["b_dec"] / writes,
        theta,
    )


def one_width(settings: DictionarySettings, centres: Sequence[Float[Tensor, "d"]], what: str) -> list[int]:
    """Widths of the sites. Raises `BadInput` where they differ, which the files do not hold."""
    widths = [len(centre) for centre in centres]
    if len(set(widths)) > 1:
        sites = settings.site if settings.site_out is None else f"{settings.site} and {settings.site_out}"
        raise BadInput(f"{what} needs sites of one width; {sites} have {widths}")
    return widths


def code_sizes(settings: DictionarySettings, norms: Float[Tensor, "width"]) -> Float[Tensor, "width"]:
    """What codes are multiplied by when they are saved: what a latent writes to all sites together, of raw rows with
    these norms; where latents compete for places, one number for all, which keeps their order."""
    return norms if ENCODERS[KINDS[settings.kind].saved].select is None else norms.mean().expand_as(norms)


def facts_of(
    settings: DictionarySettings, sites: Sequence[str] | None, out: Sequence[str] | None, about: About, parts: int
) -> Facts:
    """`sites`, `out`: None where they are of several models."""
    kind = KINDS[settings.kind]
    return Facts(
        kind.saved,
        [None] * parts if sites is None else [Site.parse(site) for site in sites],
        [None] * parts if out is None else [Site.parse(site) for site in out],
        model_name=about.model,
        k=settings.k if "k" in ENCODERS[kind.saved].needs else None,
        name=f"{about.model}/{settings.site}/{about.run}",
        metadata={**about.metadata, "training_architecture": kind.architecture, **kind.metadata(settings)},
    )


def _columns(scales: Sequence[float], width: int) -> Tensor:
    """The scale of each column, for sites of one width."""
    return torch.tensor([*scales], dtype=torch.float64).repeat_interleave(width // len(scales))
