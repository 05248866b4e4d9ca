"""sparsify (eai-sparsify 1.3.3): a folder named after a module, with `cfg.json` and `sae.safetensors`.

    codes = topk(relu((x - b_dec) encoder.weight^T + encoder.bias))        y = codes W_dec + b_dec (+ x W_skip^T)

A transcoder does not subtract b_dec. `normalize_decoder` and `multi_topk` say how it was trained: they change nothing.
"""

from pathlib import Path
from typing import Any

from ...models.places.sites import Site
from ...reading import read_object, read_safetensors
from ..folds import fold_decoder_bias
from ..parts import DictionaryParts
from .common import Format, Hints, Place, canonical, check_sizes, choice, flag, module_site, number, site_or_none

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
OWN = "monosem"  # of its config: what monosem wrote of a dictionary and sparsify has no place for
NAMES = {"W_enc": "encoder.weight^T", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
ACTIVATIONS = {"topk": "topk", "groupmax": "groupmax"}


def detect(place: Place) -> bool:
    return place.has(CONFIG, WEIGHTS) and "sae_type" not in read_object(place.path / CONFIG)


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for another activation, or a config that does not fit the tensors."""
    path, file = place.path, place.path / CONFIG
    cfg, held = read_object(file), read_safetensors(place.path / WEIGHTS)
    kind = choice({"activation": "topk"} | cfg, "activation", ACTIVATIONS, file)
    if flag(cfg, "signed", False, file):  # of versions before 1.0
        kind = "abstopk"
    transcode, skips = flag(cfg, "transcode", False, file), flag(cfg, "skip_connection", False, file)
    weights = canonical(held, NAMES | ({"W_skip": "W_skip"} if skips else {}), path / WEIGHTS, folds=False, also=())
    check_size(cfg, weights.W_enc.shape, file)
    site, site_out = sites(path, transcode)
    own = cfg.pop(OWN, None)
    own = own if isinstance(own, dict) else {}
    return DictionaryParts(
        weights if transcode else fold_decoder_bias(weights),
        kind,
        k=number({"k": 32} | cfg, "k", file, int),
        site=site_or_none(own.get("site")) or site,
        site_out=site_or_none(own.get("site_out")) or site_out,
        transcoder=transcode,
        model_name=str(own.get("model_name") or ""),
        name=str(own.get("name") or path.name),
        metadata={"original_form": {"format": "sparsify", **cfg}, "hookpoint": path.name},
    )


def check_size(cfg: dict[str, Any], shape: tuple[int, ...], path: Path) -> None:
    """Raises `BadFile` where the config has another size than the tensors."""
    d_in, width = shape
    check_sizes({"d_in": None} | cfg, {"d_in": d_in}, path)
    if cfg.get("num_latents") in (None, 0):  # then it is d_in times the factor
        cfg = cfg | {"num_latents": d_in * number({"expansion_factor": 32} | cfg, "expansion_factor", path, int)}
    check_sizes(cfg, {"num_latents": width}, path)


def sites(path: Path, transcode: bool) -> tuple[Site | None, Site | None]:
    """Where it reads and writes, by the folder's name: `layers.3.mlp`, also above `seed0`."""
    name = path.parent.name if path.name.startswith("seed") else path.name
    out = module_site(name)
    return (module_site(name, "input") if transcode else out), out


FORMAT = Format(detect, read)
