"""dictionary_learning 0.1.0: a folder with `ae.pt` and `config.json`, or an `ae_{step}.pt` below it; seven classes.

    codes = act((x - bias) encoder.weight^T + encoder.bias)        y = codes decoder.weight^T + bias

Its own loader rescales AutoEncoder, and it alone, to unit columns (codes times the norm); here codes stay as the file
has them: the function is the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import BadFile
from ...models.places.sites import Site
from ...reading import read_object, read_torch
from ..folds import fold_decoder_bias, fold_gate
from ..parts import DictionaryParts, check_shapes
from .common import Format, Hints, Place, canonical, check_sizes, choice, module_site, number, scalar, take

WEIGHTS, CONFIG = "ae.pt", "config.json"
_LINEAR = {"W_enc": "encoder.weight^T", "b_enc": "encoder.bias", "W_dec": "decoder.weight^T"}
_PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


@dataclass(frozen=True)
class DictClass:
    """kind: ours; "batchtopk" has one threshold. names: our tensors -> the file's. subtracts: b_dec before encoding.
    also: its other tensors."""

    kind: str
    names: Mapping[str, str]
    subtracts: bool = True
    also: tuple[str, ...] = ()


CLASSES = {
    "AutoEncoder": DictClass("relu", _LINEAR | {"b_dec": "bias"}),
    "AutoEncoderNew": DictClass("relu", _LINEAR | {"b_dec": "decoder.bias"}, subtracts=False),
    "GatedAutoEncoder": DictClass(
        "gated", _LINEAR | {"b_enc": "mag_bias", "b_dec": "decoder_bias"}, also=("gate_bias", "r_mag")
    ),
    "JumpReluAutoEncoder": DictClass("jumprelu", _PLAIN | {"threshold": "threshold"}, subtracts=False),
    "AutoEncoderTopK": DictClass("topk", _LINEAR | {"b_dec": "b_dec"}, also=("k", "threshold")),
    "BatchTopKSAE": DictClass("batchtopk", _LINEAR | {"b_dec": "b_dec"}, also=("k", "threshold")),
    "MatryoshkaBatchTopKSAE": DictClass("batchtopk", _PLAIN, also=("k", "threshold", "group_sizes")),
}
# a tensor that one class alone has
_MARKS = {"bias": "AutoEncoder", "group_sizes": "MatryoshkaBatchTopKSAE"}


def detect(place: Place) -> bool:
    if not place.is_pytorch:
        return place.has(WEIGHTS)
    own = {name.removesuffix("^T") for name in _LINEAR.values()} | {"bias"}
    return bool(re.fullmatch(r"ae(_\d+)?", place.path.stem)) or place.holds(*own)


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for a class that is not one of the seven, or that the files do not tell."""
    file = place.path if place.is_pytorch else place.path / WEIGHTS
    state = read_torch(file)
    state = state["ae"] if isinstance(state.get("ae"), dict) else state  # of a backup in the middle of training
    found = _config_path(file)
    cfg = read_object(found) if found else {}
    trainer = cfg.get("trainer", {})
    if not isinstance(trainer, dict):
        raise BadFile(f"{found}: 'trainer' must be an object, not {trainer!r:.80}")
    name = choice(trainer, "dict_class", CLASSES, found) if found else _class_of(state, file)
    known = CLASSES[name]
    weights = canonical(state, known.names, file, folds=known.kind == "gated", also=known.also)
    check_sizes(trainer, dict(zip(("activation_dim", "dict_size"), weights.W_enc.shape)), found or file)
    kind, k = known.kind, None
    if kind == "gated":
        b_gate, r_mag = (t.double() for t in take(state, ["gate_bias", "r_mag"], file))
        check_shapes({"gate_bias": b_gate, "r_mag": r_mag}, dict.fromkeys(("gate_bias", "r_mag"), weights.b_enc.shape))
        kind, weights = "jumprelu", fold_gate(weights, b_gate, r_mag)
    elif kind == "batchtopk":
        threshold = scalar(state, "threshold", file)  # below 0 it is unset, and nothing but the ReLU counts
        kind = "jumprelu" if threshold >= 0 else "relu"
        weights = replace(weights, threshold=torch.full_like(weights.b_enc, threshold) if threshold >= 0 else None)
    elif kind == "topk":
        k = hints.k or number({"k": _own_k(state)} if "k" in state else trainer, "k", file, int)
    weights = fold_decoder_bias(weights) if known.subtracts else weights
    return DictionaryParts(
        weights.to(torch.float32),
        kind,
        k=k,
        site=_site(trainer, cfg.get("buffer")),
        model_name=str(trainer.get("lm_name") or ""),
        name=file.parent.name if file.name == WEIGHTS else f"{file.parent.name}/{file.stem}",
        metadata={"original_form": {"format": "dictionary_learning", "dict_class": name}, "trainer": trainer},
    )


def _own_k(state: Mapping[str, Any]) -> Any:
    k = state["k"]
    return int(k) if isinstance(k, torch.Tensor) and k.numel() == 1 and not k.is_complex() else k


def _config_path(file: Path) -> Path | None:
    """Beside `ae.pt`, or one above `checkpoints/ae_1000.pt`."""
    return next((path for path in (file.parent / CONFIG, file.parent.parent / CONFIG) if path.is_file()), None)


def _class_of(state: Mapping[str, Any], file: Path) -> str:
    """The one class that has these tensors."""
    held = [
        name
        for name, one in CLASSES.items()
        if {theirs.removesuffix("^T") for theirs in one.names.values()} <= state.keys()
    ]
    for mark, name in _MARKS.items():
        held = [one for one in held if (one == name) == (mark in state)]
    if len(held) != 1:
        which = (
            f"it can be a {' or a '.join(held)}" if held else f"no class has its tensors: {', '.join(map(str, state))}"
        )
        raise BadFile(f"{file}: {CONFIG} is needed, which says the class; {which:.300}")
    return held[0]


def _site(trainer: Mapping[str, Any], buffer: Any) -> Site | None:
    """`submodule_name` is "resid_post_layer_3" or a module's path; without one it is the stream after the layer."""
    name, layer = trainer.get("submodule_name"), trainer.get("layer")
    side = "input" if isinstance(buffer, dict) and buffer.get("io") == "in" else "output"
    if isinstance(name, str):
        found = re.fullmatch(r"(resid_pre|resid_mid|resid_post|attn_out|mlp_out)_layer_(\d{1,9})", name)
        return Site(found[1], int(found[2])) if found else module_site(name, side)
    return Site("resid_post", layer) if name is None and type(layer) is int and layer >= 0 else None


FORMAT = Format(detect, read, hints=("k",))
