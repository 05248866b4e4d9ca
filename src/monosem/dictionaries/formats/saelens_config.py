"""What a SAELens config says: every key that the reader uses, of the right type, whatever version wrote it."""

from pathlib import Path
from typing import Any

from ...errors import BadFile, did_you_mean
from .common import number

CONFIG = "cfg.json"

# architecture on disk -> (encoder kind, is it a transcoder)
ARCHITECTURES = {
    "standard": ("relu", False),
    "jumprelu": ("jumprelu", False),
    "gated": ("jumprelu", False),  # the same function, see `fold_gate`
    "topk": ("topk", False),
    "abstopk": ("abstopk", False),
    "batchtopk": ("batchtopk", False),
    "matryoshka_batchtopk": ("batchtopk", False),
    "transcoder": ("relu", True),
    "skip_transcoder": ("relu", True),
    "jumprelu_transcoder": ("jumprelu", True),
    "jumprelu_skip_transcoder": ("jumprelu", True),
    "matching_pursuit": ("matching_pursuit", False),
    "temporal": ("temporal", False),
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
SCALED, WHITENED, BY_A_NUMBER = "expected_average_only_in", "covariance_whitening", "constant_scalar_rescale"
TOKEN_NORMS = ("none", "layer_norm", "constant_norm_rescale")  # of ours, those that SAELens has
# options of SAELens and what they can be; another one would be another function
_OPTIONS = {
    "normalize_activations": [SCALED, WHITENED, BY_A_NUMBER, *TOKEN_NORMS],
    "reshape_activations": ["none", "hook_z"],
    "activation_fn": ["relu", "topk"],
}
# flat configs of versions before 6: older name -> name
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


def modern(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
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
    sizes = ["d_in", "d_sae"] + ["k"] * (kind in ("topk", "abstopk")) + ["d_out"] * (cfg.get("d_out") is not None)
    for key in sizes:
        number(cfg, key, path / CONFIG, int)
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
