"""What the tensors of a SAELens folder mean, folded into the canonical form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile, BadInput
from ...reading import read_object, read_safetensors
from ..folds import (
    fold_activation_scale,
    fold_centring,
    fold_decoder_bias,
    fold_decoder_norm,
    fold_gate,
    fold_scale,
    fold_whitening,
)
from ..parts import DictionaryTensors, check_shapes
from .common import number, take
from .saelens_config import ARCHITECTURES, BY_A_NUMBER, CONFIG, SCALED, WHITENED

WEIGHTS = "sae_weights.safetensors"
# where the activations of a model with centred writing weights have no mean
CENTRED = {"embed", "pos_embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}


def stored(
    tensors: dict[str, Tensor], cfg: dict[str, Any], kind: str, transcoder: bool, path: Path
) -> DictionaryTensors:
    """The tensors as they are on disk (nothing folded), checked, and in float64 where matrices will be folded."""
    width, d_in = cfg["d_sae"], cfg["d_in"]
    d_out = (cfg.get("d_out") or d_in) if transcoder else d_in
    names = ("b_enc", "threshold", "log_threshold", "b_gate", "b_mag", "r_mag")
    vectors = {"b_dec": (d_out,), **dict.fromkeys((*names, *_FACTORS), (width,))}
    check_shapes(tensors, {"W_enc": (d_in, width), "W_dec": (width, d_out), "W_skip": (d_out, d_in), **vectors})
    gated, held = cfg["architecture"] == "gated", [name for name in _FACTORS if name in tensors]
    W_enc, b_enc, W_dec, b_dec = (
        t.to(torch.float64 if gated or _refolded(cfg) or held else torch.float32)
        for t in take(tensors, ["W_enc", "b_mag" if gated else "b_enc", "W_dec", "b_dec"], path / WEIGHTS)
    )
    threshold = None
    if kind == "jumprelu" and not gated:
        name = "log_threshold" if "log_threshold" in tensors else "threshold"
        threshold = take(tensors, [name], path / WEIGHTS)[0].double()
        threshold = threshold.exp() if name == "log_threshold" else threshold
    elif kind == "batchtopk":
        (threshold,) = take(tensors, ["topk_threshold"], path / WEIGHTS)
        if threshold.numel() != 1:
            raise BadFile(f"{path / WEIGHTS}: topk_threshold has shape {list(threshold.shape)}, expected one number")
        threshold = threshold.double().reshape(1).expand(width)
        if cfg.get("rescale_acts_by_decoder_norm", True):  # it is compared with pre * norm; thresholds here with pre
            norm = W_dec.norm(dim=-1)
            threshold = threshold / torch.where(norm > 0, norm, 1)
    skip = take(tensors, ["W_skip"], path / WEIGHTS)[0].double() if "skip" in cfg["architecture"] else None
    weights = DictionaryTensors(W_enc, b_enc, W_dec, b_dec, threshold, skip)
    if gated:
        weights = fold_gate(weights, *(t.double() for t in take(tensors, ["b_gate", "r_mag"], path / WEIGHTS)))
    return _finetuned(weights, held, tensors, cfg, path)


def _finetuned(
    weights: DictionaryTensors, held: list[str], tensors: dict[str, Tensor], cfg: dict[str, Any], path: Path
) -> DictionaryTensors:
    """Older files may hold a factor that multiplies the activations."""
    factor = take(tensors, held[:1], path / WEIGHTS)[0] if held else None
    if factor is None or bool((factor == 1).all()):
        return weights
    if not cfg.get("finetuning_scaling_factor") or not bool((factor > 0).all()):
        raise BadFile(
            f"{path / WEIGHTS}: its scaling_factor is not flagged in {CONFIG} or not positive; refusing to guess"
        )
    return fold_activation_scale(weights, factor.double())


_FACTORS = ("finetuning_scaling_factor", "scaling_factor")
Normalisation = Callable[[DictionaryTensors], DictionaryTensors]


def stream_scale(cfg: dict[str, Any], path: Path, told: float | None) -> float:
    """What the whole stream is multiplied by before it is encoded.

    Raises:
        BadInput: told, and not needed. BadFile: a scale that the folder does not hold, or a normalisation of this
        architecture that SAELens does not have.
    """
    norm = cfg["normalize_activations"]
    if told is not None and norm != SCALED:
        raise BadInput(f"norm_scaling_factor was given, but {path} has normalize_activations {norm!r}; leave it out")
    special = cfg["architecture"] in ("temporal", "matching_pursuit")
    if (norm == BY_A_NUMBER and cfg["architecture"] != "temporal") or (norm == WHITENED and special):
        raise BadFile(f"{path}: a {cfg['architecture']} dictionary has no normalize_activations {norm!r}")
    if norm == BY_A_NUMBER:
        return number({"activation_normalization_factor": 1.0} | cfg, "activation_normalization_factor", path / CONFIG)
    if norm != SCALED:
        return 1.0
    scaler, scale = path / "activation_scaler.json", told
    if scale is None:
        scale = read_object(scaler).get("scaling_factor") if scaler.is_file() else cfg.get("norm_scaling_factor")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise BadFile(
            f"{path} expects inputs scaled to norm sqrt(d_in), and does not hold the scale; give "
            "load_dictionary(..., norm_scaling_factor=sqrt(d_in) / mean norm of its training activations)"
        )
    return float(scale)


def normalisation(cfg: dict[str, Any], path: Path, told: float | None) -> Normalisation | None:
    """The fold that takes away the normalisation of the whole stream; None where tokens are normalised or nothing."""
    norm, scale = cfg["normalize_activations"], stream_scale(cfg, path, told)
    if norm == SCALED:
        return lambda weights: fold_scale(weights, scale)
    if norm == WHITENED:
        file, size = path / "activation_whitening.safetensors", cfg["d_in"]
        tensors = read_safetensors(file)
        check_shapes(tensors, {"mean": (size,), "matrix": (size, size), "inverse_matrix": (size, size)})
        mean, matrix, inverse = (t.double() for t in take(tensors, ["mean", "matrix", "inverse_matrix"], file))
        return lambda weights: fold_whitening(weights, mean, matrix, inverse)
    return None


def _centred(cfg: dict[str, Any]) -> bool:
    """Whether it reads the stream of a model whose writing weights TransformerLens has centred (GPT-2 small's
    `gpt2-small-res-jb`): each token's vector, and what each branch adds, without its mean."""
    kwargs, place = cfg["metadata"].get("model_from_pretrained_kwargs"), str(cfg["metadata"].get("hook_name") or "")
    asked = isinstance(kwargs, dict) and kwargs.get("center_writing_weights") is True
    return asked and place.rpartition(".")[2].removeprefix("hook_") in CENTRED


def _rescales(cfg: dict[str, Any]) -> bool:
    """Whether it selects by pre times the norm of the decoder row."""
    selects = ARCHITECTURES[cfg["architecture"]][0] in ("topk", "abstopk", "batchtopk")
    return selects and cfg.get("rescale_acts_by_decoder_norm", cfg["architecture"].endswith("batchtopk"))


def _refolded(cfg: dict[str, Any]) -> bool:
    """Whether more than biases will be folded."""
    return cfg["normalize_activations"] in (SCALED, WHITENED) or _rescales(cfg) or _centred(cfg)


def folded(weights: DictionaryTensors, cfg: dict[str, Any], normalisation: Normalisation | None) -> DictionaryTensors:
    # Whitening changes row norms in a way that selection must not see, so norms go first. A scale goes before them, as
    # when SAELens itself folds it: activations are then in raw units.
    folds = [normalisation, fold_decoder_norm if _rescales(cfg) else None]
    if cfg["normalize_activations"] == WHITENED:
        folds.reverse()
    folds.append(fold_centring if _centred(cfg) else None)
    for fold in (fold_decoder_bias if cfg["apply_b_dec_to_input"] else None, *folds):
        weights = weights if fold is None else fold(weights)
    return weights
