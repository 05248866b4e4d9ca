"""circuit-tracer 0.5.0's per-layer transcoders, one `layer_{i}.safetensors` a layer; also mwhanna's for Qwen 3.

    codes = pre where pre > threshold (relu without thresholds)        y = codes W_dec + b_dec (+ x W_skip^T)

A threshold below 0 lets negative codes through. Files keep no k: circuit-tracer reads what was a TopK as a relu, and so
does monosem. `config.yaml` beside the files says where they read and write; `wandb-config.yaml` is mwhanna's.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import BadFile
from ...reading import read_safetensors, read_yaml
from ..parts import DictionaryParts
from .common import Format, Hints, Place, canonical, keys_of, site_or_none

CONFIG = "config.yaml"
_NAMES = {
    "W_enc": "W_enc^T",
    "b_enc": "b_enc",
    "W_dec": "W_dec",
    "b_dec": "b_dec",
    "threshold": "activation_function.threshold?",
    "W_skip": "W_skip?",
}
_FILE = re.compile(r"layer_(\d{1,9})")
_WANDB = ("wandb-config.yaml", "wanb-config.yaml")  # the second spelling is published, too


def detect(place: Place) -> bool:
    path = place.path
    named = path.suffix == ".safetensors" and _FILE.fullmatch(path.stem) and path.is_file()
    keys = keys_of(path) if named else set()
    return bool(named) and (not keys or keys >= {"W_enc", "W_dec", "b_enc", "b_dec"})  # none: it is damaged


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for tensors that do not fit, or a config that is no such config."""
    path = place.path
    weights = canonical(read_safetensors(path), _NAMES, path, folds=False, also=())
    cfg = _config(path.parent)
    found = _FILE.fullmatch(path.stem)
    layer = int(found[1]) if found else 0
    hooks = {side: cfg.get(f"feature_{side}_hook") for side in ("input", "output")}
    names = {side: f"blocks.{layer}.{hook}" if isinstance(hook, str) else None for side, hook in hooks.items()}
    signed = weights.threshold is not None and bool((weights.threshold < 0).any())
    size = re.search(r"qwen3-(\d+(?:\.\d+)?)b", path.as_posix(), re.IGNORECASE)
    return DictionaryParts(
        weights,
        "relu" if weights.threshold is None else "jump" if signed else "jumprelu",
        site=site_or_none(names["input"]),
        site_out=site_or_none(names["output"]),
        transcoder=True,
        model_name=str(cfg.get("model_name") or (f"Qwen/Qwen3-{size[1]}B" if size else "")),
        name=f"{path.parent.name}/{path.stem}",
        metadata={
            "original_form": {"format": "circuit_tracer", **cfg},
            **({"hook_name": names["input"], "hook_name_out": names["output"]} if hooks["input"] else {}),
        },
    )


def _config(folder: Path) -> Mapping[str, Any]:
    """Where the transcoders of a folder read and write; nothing where no file says."""
    cfg: Any = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if not isinstance(cfg, dict):
        raise BadFile(f"{folder / CONFIG} holds a {type(cfg).__name__}, expected a table")
    if cfg.get("model_kind", "transcoder_set") != "transcoder_set":
        raise BadFile(f"{folder}: model_kind {cfg['model_kind']!r:.60} is not read; known: transcoder_set")
    if any((folder / name).is_file() for name in _WANDB):
        cfg = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"} | cfg
    elif cfg:
        cfg = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"} | cfg
    return cfg


FORMAT = Format(detect, read)
