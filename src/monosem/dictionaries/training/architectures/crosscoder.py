"""Crosscoders (Lindsey et al. 2024, Sparse Crosscoders): one code for several layers, or for several models.

A crosscoder is an SAE of the activations of all its sites side by side. Sparsity counts a latent by the sum over sites
of its decoder norms: Lindsey's penalty Σ a[f] Σ_l ‖W[f, l]‖, and BatchTopK's choice by a[f] Σ_l ‖W[f, l]‖ (Minder et
al. 2025, arXiv 2504.02922). Rows are kept so that these norms sum to 1, which takes nothing away (a code and its row
can be rescaled): the codes of the form are the weighted ones, for every kind.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...codes import Codes
from ...crosscoder import Crosscoder
from ...formats.common import Hints, Place
from ...formats.crosscoder import read
from ...several_parts import CrosscoderParts
from ..export import About
from ..form import TrainingForm
from ..kinds import KINDS
from ..settings import DictionarySettings
from ..sites import of_second
from .architecture import Architecture
from .several import code_sizes, facts_of, in_raw_units, one_width


def form(settings: DictionarySettings, centres: Sequence[Float[Tensor, "d"]]) -> TrainingForm:
    """Raises `BadInput` for sites of different widths."""
    widths = one_width(settings, centres, "a crosscoder")
    own = KINDS[settings.kind].own_parameters(settings)
    made = TrainingForm(settings.width, torch.cat([*centres]), settings.seed, own=own, parts=widths)
    with torch.no_grad():  # an encoder row times its decoder row is 1, as of an SAE
        made.W_enc.mul_(made.decoder_norms())
        made.normalise_decoder()
    return made


def _exported(
    form: TrainingForm,
    settings: DictionarySettings,
    scales: Sequence[float],
    thresholds: Sequence[float] | None,
    about: About,
) -> Crosscoder:
    raw = in_raw_units(form, settings, scales, scales, None if thresholds is None else thresholds[0])
    sites, d = len(scales), form.parts[0]
    W_dec = raw.W_dec.view(form.width, sites, d)
    sizes = code_sizes(settings, W_dec.norm(dim=-1).sum(1))
    threshold = None if raw.threshold is None else (raw.threshold * sizes).float()
    known = None if of_second(settings.reads) else settings.reads
    about = about._replace(metadata={**about.metadata, "scales": [*scales]})
    return Crosscoder(
        CrosscoderParts(
            facts=facts_of(settings, known, known, about, sites),
            W_enc=(raw.W_enc * sizes[:, None]).T.reshape(sites, d, form.width).float(),
            b_enc=(raw.b_enc * sizes).float(),
            W_dec=(W_dec / sizes[:, None, None]).float(),
            b_dec=raw.b_dec.view(sites, d).float(),
            threshold=threshold,
        )
    )


def _load(folder: Path) -> Crosscoder:
    return Crosscoder(read(Place(folder), Hints()))


def _rebuild(crosscoder: Crosscoder, rows: Sequence[Float[Tensor, "n d"]]) -> tuple[Tensor, Sequence[Codes]]:
    codes = crosscoder.encode(torch.stack([*rows]))
    return torch.cat([*crosscoder.decode(codes)], 1), [codes]


CROSSCODER = Architecture(
    what="a crosscoder",
    use="several layers in --site, or one site of two models: one code for all, which rebuilds all",
    form=form,
    exported=_exported,
    load=_load,
    rebuild=_rebuild,
    holds=("relu", "jumprelu", "topk"),
)
