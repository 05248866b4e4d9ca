"""Neel Nanda's crosscoders, also of two models: `{version}.pt` beside `{version}_cfg.json`.

    codes = relu(sum over sites of x[l] W_enc[l] + b_enc)        y[l] = codes W_dec[:, l] + b_dec[l]

x is what its training divided by a number of each layer, which the files do not keep: `Crosscoder.scaled`. Files that
are written here read raw activations, name their sites, and may have a `threshold` [width] more, a jumprelu, or `k`, a
topk: of each token, the k largest of its one code.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import BadFile
from ...models.places.sites import Site
from ...reading import read_object
from ..several_parts import CrosscoderParts, Facts
from .common import Format, Hints, Place, check_sizes, checked, scalar, site_or_none

WEIGHTS, CONFIG = "crosscoder.pt", "crosscoder_cfg.json"  # in a folder, as they are written here
KINDS = ("relu", "jumprelu", "topk")


def _file(place: Place) -> Place:
    return Place(place.path / WEIGHTS) if place.has(WEIGHTS, CONFIG) else place


def _config(path: Path) -> Path:
    return path.with_name(f"{path.stem}_cfg.json")


def detect(place: Place) -> bool:
    place = _file(place)
    if not place.is_pytorch or not place.holds("W_enc", "b_enc", "W_dec", "b_dec"):
        return False
    W = place.state["W_enc"]
    return isinstance(W, Tensor) and W.ndim == 3 and _config(place.path).is_file()


def read(place: Place, hints: Hints) -> CrosscoderParts:
    """Raises `BadFile` for tensors that do not fit."""
    place = _file(place)
    path, W = place.path, place.state["W_enc"]
    if 0 in W.shape:
        raise BadFile(f"{path}: W_enc has shape {list(W.shape)}, expected [site, d, width]")
    parts, d, width = W.shape
    shapes = {"W_enc": (parts, d, width), "b_enc": (width,), "W_dec": (width, parts, d), "b_dec": (parts, d)}
    if "threshold" in place.state:
        shapes["threshold"] = (width,)
    tensors = dict(zip(shapes, checked(place.state, shapes, path)))
    k = scalar(place.state, "k", path) if "k" in place.state else None
    if k is not None and (not k.is_integer() or "threshold" in tensors):
        raise BadFile(f"{path}: k is {k:g}; a topk has a whole number of places, and no thresholds")
    cfg = read_object(_config(path))
    check_sizes(cfg, {"dict_size": width}, _config(path))
    sites = _sites(cfg, parts)
    facts = Facts(
        "topk" if k is not None else "jumprelu" if "threshold" in tensors else "relu",
        sites,
        sites,
        k=None if k is None else int(k),
        model_name=str(cfg.get("model_name") or ""),
        name=str(cfg.get("name") or path.stem),
        metadata={"original_form": {"format": "crosscoder", **cfg}},
    )
    return CrosscoderParts(facts=facts, **tensors)


def _sites(cfg: dict[str, Any], parts: int) -> list[Site | None]:
    """The sites that it names, or one site a layer; none where the parts are models, which have one `hook_point`."""
    if isinstance(named := cfg.get("sites"), list):
        if len(named) != parts:
            raise BadFile(f"its config names {len(named)} sites, and its tensors are of {parts}")
        return [site_or_none(one) for one in named]
    name = cfg.get("site")
    if "hook_point" in cfg or not isinstance(name, str):
        return [None] * parts
    return [site_or_none(f"blocks.{layer}.hook_{name}") for layer in range(parts)]


FORMAT = Format(detect, read)
