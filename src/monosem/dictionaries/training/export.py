"""From the form in which a dictionary is trained to the canonical one, which reads and writes raw activations."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..dictionary import Dictionary
from ..encoders import ENCODERS
from ..folds import fold_decoder_norm, fold_scale
from ..parts import DictionaryParts, DictionaryTensors
from .form import TrainingForm
from .kinds import KINDS, Kind
from .settings import DictionarySettings


class About(NamedTuple):
    """What a file says of a dictionary beside its weights: its model, the name of its run, and more."""

    model: str
    run: str
    metadata: Mapping[str, Any]


def export(
    form: TrainingForm,
    settings: DictionarySettings,
    scales: tuple[float, float],
    threshold: float | None,
    about: About,
) -> Dictionary:
    """The canonical dictionary, which reads and writes raw activations.

    Training saw x·scale; that and the subtracted centre are folded into the weights, and then the norm 1/scale that all
    decoder rows get by it (the same for all latents, so TopK chooses the same). Rows end with unit norm; codes and
    threshold are in units of the raw activation. The name ends in a part of the weights' fingerprint.

    Args:
        scales: of what is read and of what is rebuilt.
        threshold: of a kind with one for all latents, in the form's units; None for the others.

    Raises:
        BadInput: weights that are not finite.
    """
    kind = KINDS[settings.kind]
    canonical = fold_decoder_norm(fold_scale(_tensors(form, kind, threshold), *scales)).to(torch.float32)
    parts = DictionaryParts(
        canonical,
        kind.saved,
        k=settings.k if "k" in ENCODERS[kind.saved].needs else None,
        options=kind.options(settings),
        site=settings.reads[0],
        site_out=None if settings.site_out is None else settings.writes[0],
        transcoder=settings.site_out is not None,
        model_name=about.model,
        metadata={**about.metadata} | {"training_architecture": kind.architecture} | kind.metadata(settings),
    )
    dictionary = Dictionary(parts)
    dictionary.name = f"{about.model}/{settings.site}/{about.run}-{dictionary.fingerprint[:6]}"
    return dictionary


def _tensors(form: TrainingForm, kind: Kind, threshold: float | None) -> DictionaryTensors:
    """In the form's units, for inputs that are not centred."""
    weights = {name: p.detach().to("cpu", torch.float64) for name, p in form.state_dict().items()}
    weights |= kind.canonical(weights)
    if threshold is not None:
        weights["threshold"] = torch.full((form.width,), threshold, dtype=torch.float64)
    centre, skip = weights.get("b_in", weights["b_dec"]), weights.get("W_skip")
    W_enc = weights["W_enc"].T
    return DictionaryTensors(
        W_enc=W_enc,
        b_enc=weights["b_enc"] - centre @ W_enc,
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"] if skip is None else weights["b_dec"] - skip @ centre,
        threshold=weights.get("threshold"),
        W_skip=skip,
    )
