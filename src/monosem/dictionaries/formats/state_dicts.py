"""Published files that are a state dict and nothing else: Goodfire, Qwen Scope, DeepSeek-R1 (qresearch), mistral-sae,
deeplens-sae and Connor Kissane's attention SAEs. Layer and model stand in the file's path.

Rows of `STATE_DICTS`: the tensors of each, and what is done with them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import BadFile
from ...models.places.sites import Site
from ...reading import read_object
from ..folds import fold_decoder_bias, fold_gain
from ..parts import DictionaryParts, DictionaryTensors
from .common import Format, Hints, Place, canonical, site_or_none, take

Found = re.Match[str] | None


@dataclass(frozen=True)
class StateDict:
    """One such format.

    Attributes:
        names: our tensors -> the file's.
        path: what the path must look like; None for any. about: match to site and model's name.
        kind: of the encoder; None where the caller must say. k: match to places a token, where the path says it.
        subtracts: b_dec, before encoding. only: the file has no other tensors than these.
        further: other tensors that it has.
        configured: a config named after the file lies beside it.
    """

    names: Mapping[str, str]
    path: str | None = None
    about: Callable[[re.Match[str]], tuple[Site, str]] | None = None
    kind: str | None = "relu"
    k: Callable[[str], int | None] = lambda path: None
    token_norm: str = "none"
    subtracts: bool = False
    only: bool = False
    further: tuple[str, ...] = ()
    configured: bool = False

    def match(self, path: Path) -> Found:
        return re.search(self.path or r"$", path.as_posix())

    def detect(self, place: Place) -> bool:
        keys = {name.removesuffix("^T") for name in self.names.values()} | {*self.further}
        if not place.is_pytorch or not place.state.keys() >= keys or (self.path and not self.match(place.path)):
            return False
        alone = not self.only or len(place.state) == len(self.names)
        return alone and (not self.configured or _config(place.path).is_file())

    def hints(self) -> tuple[str, ...]:
        return ("kind", "k") if self.kind is None else ("k",) if self.kind == "topk" else ()


def _config(path: Path) -> Path:
    return path.with_name(f"{path.stem}_cfg.json")


def _qwen_k(path: str) -> int | None:
    found = re.search(r"SAE-Res-.+-W\d+K-L0_(\d{1,9})", path)
    return int(found[1]) if found else None


_LINEAR = {"W_enc": "encoder.weight^T", "b_enc": "encoder.bias", "W_dec": "decoder.weight^T", "b_dec": "decoder.bias"}
STATE_DICTS = {
    "goodfire": StateDict(
        {name: theirs.replace("coder.", "coder_linear.") for name, theirs in _LINEAR.items()},
        r"(?P<model>Llama-[\w.-]+B-Instruct)-SAE-l(?P<layer>\d{1,9})|$",
        lambda found: (Site("resid_post", int(found["layer"])), f"meta-llama/{found['model']}"),
    ),
    "qresearch": StateDict(
        _LINEAR,
        r"(?P<model>DeepSeek-R1-Distill-[\w.-]+B)-SAE-l(?P<layer>\d{1,9})|$",
        lambda found: (Site("resid_post", int(found["layer"])), f"deepseek-ai/{found['model']}"),
        only=True,
    ),
    "qwen_scope": StateDict(
        {"W_enc": "W_enc^T", "b_enc": "b_enc", "W_dec": "W_dec^T", "b_dec": "b_dec"},
        r"(?:SAE-Res-(?P<model>[^/]+)-W\d+K-L0_\d+/(?:.*/)?)?layer(?P<layer>\d{1,9})\.sae\.pt$",
        lambda found: (Site("resid_post", int(found["layer"])), f"Qwen/{found['model']}" if found["model"] else ""),
        "topk",
        _qwen_k,
    ),
    "mistral_sae": StateDict(
        {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_pre"},
        kind="topk",
        token_norm="layer_norm",
        subtracts=True,
    ),
    "deeplens": StateDict(
        {name: theirs for name, theirs in _LINEAR.items() if name != "b_dec"},
        kind=None,
        token_norm="layer_norm_in",
        further=("norm.weight", "norm.bias"),
    ),
    "attention_sae": StateDict(
        {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")},
        subtracts=True,
        configured=True,
    ),
}


def _reader(name: str, one: StateDict) -> Callable[[Place, Hints], DictionaryParts]:
    def read(place: Place, hints: Hints) -> DictionaryParts:
        path, held = place.path, place.state
        default = {"b_dec": lambda width, d_in: torch.zeros(d_in)} if "b_dec" not in one.names else {}
        weights = canonical(held, one.names, path, folds=name == "deeplens", default=default)
        weights = fold_decoder_bias(weights) if one.subtracts else weights
        found, site, model = one.match(path), None, ""
        if found and one.about and found.groupdict().get("layer"):
            site, model = one.about(found)
        kind, k = _encoder(one, hints, path)
        if name == "deeplens":
            weights = _with_gain(weights, held, path)
        metadata: dict[str, Any] = {"original_form": {"format": name}}
        if one.configured:
            cfg = read_object(_config(path))
            site, model = site_or_none(cfg.get("act_name")), str(cfg.get("model_name") or "gpt2")
            metadata["original_form"] |= cfg
        return DictionaryParts(
            weights.to(torch.float32),
            kind,
            k=k,
            token_norm=one.token_norm,
            site=site,
            model_name=model,
            name=path.stem,
            metadata=metadata,
        )

    return read


def _encoder(one: StateDict, hints: Hints, path: Path) -> tuple[str, int | None]:
    """Its kind and k, of which the file says nothing. Raises `BadFile` that says what to give."""
    kind = hints.kind or one.kind
    if kind not in ("relu", "topk"):
        raise BadFile(f"{path} does not say its activation: give kind='relu', or kind='topk' and k=")
    k = hints.k or one.k(path.as_posix())
    if kind == "topk" and k is None:
        raise BadFile(f"{path} does not say how many latents a token has: give k=")
    return kind, k if kind == "topk" else None


def _with_gain(weights: DictionaryTensors, held: Mapping[str, Any], path: Path) -> DictionaryTensors:
    gain, bias = (t.double() for t in take(held, ["norm.weight", "norm.bias"], path))
    if not gain.shape == bias.shape == weights.W_enc.shape[:1]:
        raise BadFile(
            f"{path}: norm.weight and norm.bias have shapes {list(gain.shape)}, {list(bias.shape)}, not [d_in]"
        )
    return fold_gain(weights, gain, bias)


FORMATS = {name: Format(one.detect, _reader(name, one), hints=one.hints()) for name, one in STATE_DICTS.items()}
