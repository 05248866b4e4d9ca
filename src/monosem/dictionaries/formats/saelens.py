"""SAELens folders: `cfg.json` + `sae_weights.safetensors` (version 6; the flat config of older versions is read too).

What is on disk and what it means was taken from SAELens 6.54.12 (MIT); its training checkpoints are readable as well,
because their normalisation lies beside them in `activation_scaler.json` and `activation_whitening.safetensors`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...errors import BadFile, BadInput, did_you_mean
from ...files import replacing, writable_folder, write_json
from ...models.places.sites import Site
from ...reading import read_object, read_safetensors
from ..folds import (
    fold_activation_scale,
    fold_centring,
    fold_decoder_bias,
    fold_decoder_norm,
    fold_scale,
    fold_whitening,
)
from ..parts import DictionaryParts, DictionaryTensors, check_shapes
from ..token_norms import TOKEN_NORMS
from .common import Format, site_or_none, take

CONFIG, WEIGHTS, CARD = "cfg.json", "sae_weights.safetensors", "card.json"
LAYOUT_VERSION = "6.0.0"  # SAELens reads files without a version as the older, flat layout

# architecture on disk -> (encoder kind, is it a transcoder)
ARCHITECTURES = {
    "standard": ("relu", False),
    "jumprelu": ("jumprelu", False),
    "gated": ("jumprelu", False),  # the same function, see `_ungated`
    "topk": ("topk", False),
    "abstopk": ("abstopk", False),
    "batchtopk": ("batchtopk", False),
    "matryoshka_batchtopk": ("batchtopk", False),
    "transcoder": ("relu", True),
    "skip_transcoder": ("relu", True),
    "jumprelu_transcoder": ("jumprelu", True),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
# architectures of SAELens whose codes are no function of one token's pre-activations
OTHER_FORMS = {
    "temporal": "it predicts codes from earlier tokens",
    "matching_pursuit": "it finds one code after the other in what is left",
}
# (encoder kind, is it a transcoder, has it a skip connection) -> architecture to write
_WRITTEN = {
    (kind, out, "skip" in name): name
    for name, (kind, out) in ARCHITECTURES.items()
    if kind != "batchtopk" and name != "gated"
}
# the types of what is read, in a config, in its metadata and in flat configs
_TYPES: dict[str, type] = {
    **dict.fromkeys(
        ("architecture", "normalize_activations", "reshape_activations", "activation_fn", "model_name"), str
    ),
    **dict.fromkeys(("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor"), bool),
    **dict.fromkeys(("d_in", "d_sae", "d_out"), int),
    **dict.fromkeys(("metadata", "activation_fn_kwargs"), dict),
}
_SCALED, _WHITENED = "expected_average_only_in", "covariance_whitening"
# options of SAELens and what they can be; another one would be another function
_OPTIONS = {
    "normalize_activations": [_SCALED, _WHITENED, *TOKEN_NORMS],
    "reshape_activations": ["none", "hook_z"],
    "activation_fn": ["relu", "topk"],
}
# the parts of a config that folding changes; kept in metadata["original_form"]
_FORM = ("architecture", "apply_b_dec_to_input", "normalize_activations", "rescale_acts_by_decoder_norm", "dtype")
# where the activations of a model with centred writing weights have no mean
CENTRED = {"embed", "pos_embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}
# flat configs of versions before 6: older name -> name
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


def detect(path: Path) -> bool:
    """By its files: sparsify and latentsae have a cfg.json too, beside sae.safetensors."""
    own, other = (path / WEIGHTS).is_file(), (path / "sae.safetensors").is_file()
    return (path / CONFIG).is_file() and (own or not other)


def read(path: Path, norm_scaling_factor: float | None = None) -> DictionaryParts:
    """Read a folder and fold it into the canonical form.

    Raises:
        BadFile: missing or broken files, an unknown architecture, tensors of the wrong shape, or a normalisation whose
            scale is not in the folder (the message says how to give it).
    """
    cfg = _modern(read_object(path / CONFIG), path)
    if reason := OTHER_FORMS.get(cfg["architecture"]):
        raise BadFile(f"{path}: SAELens dictionaries of architecture {cfg['architecture']!r} are not read: {reason}")
    if cfg["architecture"] not in ARCHITECTURES:
        near = did_you_mean(cfg["architecture"], ARCHITECTURES)
        raise BadFile(f"{path}: unknown architecture {cfg['architecture']!r}{near}; known: {', '.join(ARCHITECTURES)}")
    kind, transcoder = ARCHITECTURES[cfg["architecture"]]
    if transcoder and cfg["apply_b_dec_to_input"]:
        raise BadFile(
            f"{path}: apply_b_dec_to_input is true, but a transcoder's b_dec belongs to its output; fix {CONFIG}"
        )
    weights = _weights(read_safetensors(path / WEIGHTS), cfg, kind, transcoder, path)
    metadata = dict(cfg["metadata"])
    metadata.setdefault("original_form", {key: cfg[key] for key in _FORM if key in cfg})
    norm = cfg["normalize_activations"]
    card = path / CARD
    return DictionaryParts(
        _folded(weights, cfg, _normalisation(cfg, path, norm_scaling_factor)),
        kind,
        k=cfg["k"] if kind in ("topk", "abstopk") else None,
        token_norm=norm if norm in TOKEN_NORMS else "none",
        site=site_or_none(metadata.get("hook_name"), metadata.get("hf_hook_name")),
        site_out=site_or_none(metadata.get("hook_name_out"), metadata.get("hf_hook_name_out")) if transcoder else None,
        transcoder=transcoder,
        per_head=cfg["reshape_activations"] == "hook_z",
        model_name=metadata.get("model_name") or "",
        name=str(metadata.pop("name", None) or path.name),
        metadata=metadata,
        card=read_object(card) if card.is_file() else {},
    )


def write(parts: DictionaryParts, folder: Path, dtype: torch.dtype) -> None:
    """Write the version 6 layout, readable by SAELens and by `read`.

    The folded weights are written, with `apply_b_dec_to_input: false` and no foldable normalisation: the same function
    as the original file, said more simply. A BatchTopK dictionary is a `jumprelu`, as SAELens itself saves it.

    Raises:
        BadInput: SAELens has no architecture for this dictionary, or the folder cannot be written to.
    """
    form = (parts.kind, parts.is_transcoder, parts.tensors.W_skip is not None)
    if form not in _WRITTEN:
        skip = " with a skip connection" if form[2] else ""
        raise BadInput(f"SAELens has no architecture for a {form[0]} {'transcoder' if form[1] else 'SAE'}{skip}")
    target = writable_folder(folder)
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in parts.tensors.present().items()}
    with replacing(target / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_json(target / CONFIG, _config(parts, _WRITTEN[form], dtype))
    if parts.card:
        write_json(target / CARD, dict(parts.card))


def _config(parts: DictionaryParts, architecture: str, dtype: torch.dtype) -> dict[str, Any]:
    metadata = {"sae_lens_version": LAYOUT_VERSION, **json.loads(json.dumps(dict(parts.metadata), default=str))}
    metadata |= {"model_name": parts.model_name, **({"name": parts.name} if parts.name else {})}
    site = None if parts.site is None else Site.parse(parts.site)
    for suffix, place in {"": parts.site, "_out": parts.site_out if parts.is_transcoder else None}.items():
        if place is not None:
            metadata[f"hook_name{suffix}"] = Site.parse(place).hook_name
            if site_or_none(None, metadata.get(f"hf_hook_name{suffix}")) not in (None, Site.parse(place)):
                del metadata[f"hf_hook_name{suffix}"]  # it says another place than the caller
    flattens_z = parts.per_head and (site is None or site.name == "z")
    (d_in, width), d_out = parts.tensors.W_enc.shape, parts.tensors.W_dec.shape[1]
    cfg: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": width,
        "dtype": "float64" if dtype == torch.float64 else "float32",  # SAELens computes in it; weights may be narrower
        "device": "cpu",
        "architecture": architecture,
        "apply_b_dec_to_input": False,
        "normalize_activations": parts.token_norm,
        "reshape_activations": "hook_z" if flattens_z else "none",
        "metadata": metadata,
    }
    if parts.k is not None:
        cfg |= {"k": parts.k, "rescale_acts_by_decoder_norm": False}
    if parts.is_transcoder:
        cfg["d_out"] = d_out
    return cfg


def _modern(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """A config with every key that `read` uses; flat ones of before version 6 are rearranged.

    Raises:
        BadFile: a value of another type, or an option that SAELens does not have.
    """
    if "metadata" not in cfg:
        cfg = {_RENAMED.get(key, key): value for key, value in cfg.items()}
        _check_types(cfg, path)
        if isinstance(cfg.get("normalize_activations"), bool):
            cfg["normalize_activations"] = "expected_average_only_in" if cfg["normalize_activations"] else "none"
        if cfg.get("activation_fn") == "topk":
            cfg |= {"architecture": "topk", "k": (cfg.get("activation_fn_kwargs") or {}).get("k")}
        if "hook_z" in str(cfg.get("hook_name")):
            cfg.setdefault("reshape_activations", "hook_z")
        cfg["metadata"] = {
            key: cfg[key] for key in cfg if key not in ("d_in", "d_sae", "device", "dtype", "architecture")
        }
    cfg.setdefault("architecture", "standard")
    _check_types(cfg, path)
    _check_types(cfg["metadata"], path)
    kind, transcoder = ARCHITECTURES.get(cfg["architecture"], ("", False))
    cfg.setdefault("apply_b_dec_to_input", not transcoder)
    for key in ("normalize_activations", "reshape_activations"):
        cfg[key] = cfg.get(key) or "none"
    for key in ("d_in", "d_sae", "k") if kind in ("topk", "abstopk") else ("d_in", "d_sae"):
        if type(cfg.get(key)) is not int:
            raise BadFile(f"{path / CONFIG}: {key!r} must be a whole number, not {cfg.get(key)!r:.80}")
    for key, known in _OPTIONS.items():
        if cfg.get(key) not in (None, *known):
            near = did_you_mean(cfg[key], known)
            raise BadFile(f"{path}: unknown {key} {cfg[key]!r:.80}{near}; known: {', '.join(known)}")
    return cfg


def _check_types(cfg: dict[str, Any], path: Path) -> None:
    """Raises `BadFile` for a value of another type than SAELens writes. None is no value."""
    for key, kind in _TYPES.items():
        value = cfg.get(key)
        if value is None and key not in ("metadata", "architecture"):
            continue
        flag = isinstance(value, bool) and key == "normalize_activations"  # before version 6
        if key in cfg and not flag and type(value) is not kind:
            words = {str: "a text", dict: "an object", bool: "true or false", int: "a whole number"}
            raise BadFile(f"{path / CONFIG}: {key!r} must be {words[kind]}, not {value!r:.80}")


def _weights(
    tensors: dict[str, Tensor], cfg: dict[str, Any], kind: str, transcoder: bool, path: Path
) -> DictionaryTensors:
    """The tensors as they are on disk (nothing folded), checked, in float64."""
    width, d_in = cfg["d_sae"], cfg["d_in"]
    d_out = cfg.get("d_out", d_in) if transcoder else d_in
    names = ("b_enc", "threshold", "log_threshold", "b_gate", "b_mag", "r_mag")
    vectors = {"b_dec": (d_out,), **dict.fromkeys((*names, *_FACTORS), (width,))}
    check_shapes(tensors, {"W_enc": (d_in, width), "W_dec": (width, d_out), "W_skip": (d_out, d_in), **vectors})
    if cfg["architecture"] == "gated":
        tensors = tensors | _ungated(tensors, path)
    W_enc, b_enc, W_dec, b_dec = (
        t.double() for t in take(tensors, ["W_enc", "b_enc", "W_dec", "b_dec"], path / WEIGHTS)
    )
    threshold = None
    if kind == "jumprelu":
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
    return _finetuned(DictionaryTensors(W_enc, b_enc, W_dec, b_dec, threshold, skip), tensors, cfg, path)


def _ungated(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Gated encoders (Rajamanoharan et al. 2024, arXiv 2404.16014) with tied weights are exactly a JumpReLU:

    codes = relu(pre) where x W_enc + b_gate > 0, pre being x W_enc exp(r_mag) + b_mag; that gate is open where
    pre > b_mag - exp(r_mag) b_gate.
    """
    names = ["W_enc", "b_gate", "b_mag", "r_mag"]
    W_enc, b_gate, b_mag, r_mag = (t.double() for t in take(tensors, names, path / WEIGHTS))
    gain = r_mag.exp()
    return {"W_enc": W_enc * gain, "b_enc": b_mag, "threshold": b_mag - gain * b_gate}


def _finetuned(
    weights: DictionaryTensors, tensors: dict[str, Tensor], cfg: dict[str, Any], path: Path
) -> DictionaryTensors:
    """Older files may hold a factor that multiplies the activations."""
    held = [name for name in _FACTORS if name in tensors]
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


def _normalisation(cfg: dict[str, Any], path: Path, scale: float | None) -> Normalisation | None:
    """The fold that takes away the normalisation of the whole stream; None where tokens are normalised or nothing."""
    norm = cfg["normalize_activations"]
    if scale is not None and norm != _SCALED:
        raise BadInput(f"norm_scaling_factor was given, but {path} has normalize_activations {norm!r}; leave it out")
    if norm == _SCALED:
        scaler = path / "activation_scaler.json"
        if scale is None and scaler.is_file():
            scale = read_object(scaler).get("scaling_factor")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise BadFile(
                f"{path} expects inputs scaled to norm sqrt(d_in), and does not hold the scale; give "
                "load_dictionary(..., norm_scaling_factor=sqrt(d_in) / mean norm of its training activations)"
            )
        factor = float(scale)
        return lambda weights: fold_scale(weights, factor)
    if norm == _WHITENED:
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


def _folded(weights: DictionaryTensors, cfg: dict[str, Any], normalisation: Normalisation | None) -> DictionaryTensors:
    rescales = ARCHITECTURES[cfg["architecture"]][0] in ("topk", "abstopk", "batchtopk")
    rescales = rescales and cfg.get("rescale_acts_by_decoder_norm", cfg["architecture"].endswith("batchtopk"))
    # Whitening changes row norms in a way that selection must not see, so norms go first. A scale goes before them, as
    # when SAELens itself folds it: activations are then in raw units.
    folds = [normalisation, fold_decoder_norm if rescales else None]
    if cfg["normalize_activations"] == _WHITENED:
        folds.reverse()
    folds.append(fold_centring if _centred(cfg) else None)
    for fold in (fold_decoder_bias if cfg["apply_b_dec_to_input"] else None, *folds):
        weights = weights if fold is None else fold(weights)
    return weights.to(torch.float32)


FORMAT = Format("a folder with cfg.json and sae_weights.safetensors", detect, read, write)
