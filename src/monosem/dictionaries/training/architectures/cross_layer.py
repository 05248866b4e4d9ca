"""Cross-layer transcoders (Ameisen et al. 2025, Circuit Tracing): latents of a layer write to it and to all later ones.

    codes[s] = phi(x[s] W_enc[s] + b_enc[s])        y[t] = b_dec[t] + sum over s <= t of codes[s] W_dec[s][:, t - s]

Each layer is a transcoder from its input to the outputs of its own and all later layers side by side; what they write
is summed up, and the loss is the error of all outputs together. Each layer has an encoder of the run's kind, with k,
target and thresholds of its own. A decoder row has unit norm over all layers that it writes to, so that sparsity counts
a latent by all that it writes.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ....models import Site
from ...codes import Codes
from ...cross_layer import CrossLayer
from ...formats.common import Hints, Place
from ...formats.cross_layer import read
from ...several_parts import CrossLayerParts
from ..export import About
from ..form import CrossLayerForm, TrainingForm
from ..kinds import KINDS
from ..settings import DictionarySettings
from ..starts import write_along
from .architecture import Architecture
from .several import code_sizes, facts_of, in_raw_units, one_width


def form(settings: DictionarySettings, centres: Sequence[Float[Tensor, "d"]]) -> CrossLayerForm:
    """Raises `BadInput` for sites of different widths."""
    layers, widths = len(settings.reads), one_width(settings, centres, "a cross-layer transcoder")
    forms = []
    for layer in range(layers):
        written = centres[layers + layer :]
        b_dec = torch.cat([*written]) if layer == 0 else torch.zeros_like(torch.cat([*written]))
        own, seed = KINDS[settings.kind].own_parameters(settings), settings.seed + 1_000_003 * layer
        forms.append(TrainingForm(settings.width, b_dec, seed, b_in=centres[layer], own=own))
    return CrossLayerForm(forms, widths[:layers], widths[layers:])


def _start(
    form: CrossLayerForm,
    settings: DictionarySettings,
    scales: Sequence[float],
    rows: Sequence[Float[Tensor, "n d"]],
) -> None:
    x, y = (torch.cat([*side], 1) for side in (rows[: len(form.d_in)], rows[len(form.d_in) :]))
    for layer in form.layers:
        write_along(layer.form, x[:, layer.reads], y[:, layer.writes], form.b_dec[layer.writes])


def _exported(
    form: CrossLayerForm,
    settings: DictionarySettings,
    scales: Sequence[float],
    thresholds: Sequence[float] | None,
    about: About,
) -> CrossLayer:
    layers = len(form.d_in)
    read, written, made = scales[:layers], scales[layers:], []
    for s, layer in enumerate(form.layers):
        threshold = None if thresholds is None else thresholds[s]
        raw = in_raw_units(layer.form, settings, read[s : s + 1], written[s:], threshold)
        sizes = code_sizes(settings, raw.W_dec.norm(dim=1))
        own = None if raw.threshold is None else raw.threshold * sizes
        W_dec = (raw.W_dec / sizes[:, None]).view(layer.form.width, layers - s, -1)
        made.append((raw.W_enc.T * sizes, raw.b_enc * sizes, W_dec, own))
    b_dec = in_raw_units(form.layers[0].form, settings, read[:1], written, None).b_dec.view(layers, -1)
    W_enc, b_enc, decoders, own_thresholds = zip(*made)
    return CrossLayer(
        CrossLayerParts(
            facts=facts_of(settings, settings.reads, settings.writes, about, layers),
            W_enc=torch.stack(W_enc).float(),
            b_enc=torch.stack(b_enc).float(),
            W_dec=[rows.float() for rows in decoders],
            b_dec=b_dec.float(),
            threshold=None if own_thresholds[0] is None else torch.stack(own_thresholds).float(),
        )
    )


def _load(folder: Path) -> CrossLayer:
    return CrossLayer(read(Place(folder), Hints()))


def _rebuild(clt: CrossLayer, rows: Sequence[Float[Tensor, "n d"]]) -> tuple[Tensor, Sequence[Codes]]:
    codes = clt.encode(torch.stack([*rows]))
    return torch.cat([*clt.decode(codes)], 1), codes


def _complaint(settings: DictionarySettings) -> str | None:
    for name, sites in (("site", settings.reads), ("site_out", settings.writes)):
        found = [Site.parse(site) for site in sites]
        if [site.layer for site in found] != list(range(len(settings.reads))) or len({one.name for one in found}) > 1:
            return (
                f"{name}: files of cross-layer transcoders hold one place in each layer from 0 on, as many where it "
                f"reads as where it writes, such as mlp_input.0-5 and mlp_out.0-5; not {getattr(settings, name)}"
            )
    return None


CROSS_LAYER = Architecture(
    what="a cross-layer transcoder",
    use="several layers in --site and --site-out: latents of a layer write to it and to all later ones",
    form=form,
    start=_start,
    exported=_exported,
    load=_load,
    rebuild=_rebuild,
    holds=("relu", "jumprelu", "topk"),
    layered=True,
    complaint=_complaint,
)
