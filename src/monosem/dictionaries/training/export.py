"""From the form in which a dictionary is trained to the canonical one, which reads and writes raw activations."""

from typing import Any

import torch

from ..dictionary import Dictionary
from ..folds import fold_decoder_bias, fold_decoder_norm, fold_scale
from ..parts import DictionaryParts, DictionaryTensors
from .config import TrainConfig
from .form import TrainingForm
from .kinds import KINDS


def export(
    form: TrainingForm, config: TrainConfig, scale: float, threshold: float | None, run: str, metadata: dict[str, Any]
) -> Dictionary:
    """The canonical dictionary, which reads and writes raw activations.

    Training saw x·scale; that and the subtracted b_dec are folded into the weights, and then the norm 1/scale that all
    decoder rows get by it (the same for all latents, so TopK chooses the same). Rows end with unit norm; codes and
    threshold are in units of the raw activation. The name ends in a part of the weights' fingerprint.

    Args:
        threshold: of a kind with one for all latents, in the form's units; None for the others.

    Raises:
        BadInput: weights that are not finite.
    """
    weights = {name: p.detach().to("cpu", torch.float64) for name, p in form.named_parameters()}
    canonical = DictionaryTensors(
        W_enc=weights["W_enc"].T,
        b_enc=weights["b_enc"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        threshold=None if threshold is None else torch.full((form.width,), threshold, dtype=torch.float64),
    )
    canonical = fold_decoder_norm(fold_scale(fold_decoder_bias(canonical), scale)).to(torch.float32)
    kind = KINDS[config.kind]
    parts = DictionaryParts(
        canonical,
        kind.saved,
        k=config.k if threshold is None else None,
        site=config.site,
        model_name=config.model,
        metadata=metadata | {"training_architecture": kind.architecture} | kind.metadata(config),
    )
    dictionary = Dictionary(parts)
    dictionary.name = f"{config.model}/{config.site}/{run}-{dictionary.fingerprint[:6]}"
    return dictionary
