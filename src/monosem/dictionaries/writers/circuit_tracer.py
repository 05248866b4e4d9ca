"""circuit-tracer (0.5.0): a set of transcoders, `layer_{i}.safetensors` for each layer and one `config.yaml`.

    codes = pre where pre > threshold        y = codes W_dec + b_dec (+ x W_skip^T)

Its files keep no k: a topk would be read as a relu, so it is refused.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from ...errors import BadInput, Mismatch
from ...files import writable_folder, write_text
from ...models.places.sites import Site, SiteLike
from ...reading import read_yaml
from ..formats.circuit_tracer import CONFIG
from ..parts import DictionaryParts
from .common import held_by, write_tensors


def write(parts: DictionaryParts, folder: Path, dtype: torch.dtype) -> None:
    """Write one layer into a folder; the others of the set are written into the same folder.

    Raises:
        BadInput: circuit-tracer has no such dictionary, or it is not known where it reads and writes.
        Mismatch: the folder is a set of another model or of other sites.
    """
    parts = held_by("circuit-tracer", parts, ["relu", "jump"], square=True)
    site, out = _known(parts.site, ""), _known(parts.site_out if parts.is_transcoder else parts.site, "_out")
    if out.layer != site.layer:
        raise BadInput(f"circuit-tracer's transcoders read and write in one layer, this one at {site} and {out}")
    weights, target = parts.tensors, writable_folder(folder)
    tensors = {"W_enc": weights.W_enc.T, "W_dec": weights.W_dec, "b_enc": weights.b_enc, "b_dec": weights.b_dec}
    if weights.threshold is not None:
        tensors["activation_function.threshold"] = weights.threshold
    if weights.W_skip is not None:
        tensors["W_skip"] = weights.W_skip
    config = {
        "model_name": parts.model_name,
        "model_kind": "transcoder_set",
        "feature_input_hook": _within(site),
        "feature_output_hook": _within(out),
        "scan": parts.name or None,
    }
    if (target / CONFIG).is_file():
        _check_same(config, read_yaml(target / CONFIG), target)
    else:
        write_text(target / CONFIG, yaml.safe_dump(config, sort_keys=False))
    write_tensors(target / f"layer_{site.layer}.safetensors", tensors, dtype)


def _known(place: SiteLike | None, suffix: str) -> Site:
    site = None if place is None else Site.parse(place)
    if site is None or site.layer is None or site.per_head:
        raise BadInput(
            f"circuit-tracer names the layer and a hook of whole vectors there; {site or 'an unknown place'} is none: "
            f"give load_dictionary(..., site{suffix}=)"
        )
    return site


def _within(site: Site) -> str:
    """The hook's name within its block."""
    return site.hook_name.removeprefix(f"blocks.{site.layer}.")


def _check_same(new: dict[str, Any], old: Any, target: Path) -> None:
    old = old if isinstance(old, dict) else {}
    for name, value in new.items():
        if name != "scan" and old.get(name) != value:
            raise Mismatch(f"{target} is a set with {name} {old.get(name)!r}, not {value!r}; give another folder")
