"""circuit-tracer (0.5.0): a cross-layer transcoder, two files a layer and one `config.yaml`.

    codes = pre where pre > threshold        y[t] = b_dec[t] + sum over s <= t of codes[s] W_dec[s][:, t - s]

Its files keep no skip connections, so these are refused, and no k: the config of a topk has one, and a `model_kind`
that circuit-tracer refuses, because it would take it for a relu.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from ...errors import BadInput
from ...files import replacing_folder, write_text
from ...models.places.sites import Site
from ..formats.cross_layer import CONFIG, KIND, TOPK
from ..several import SeveralSites
from .common import write_tensors


def write(clt: SeveralSites, folder: Path, dtype: torch.dtype) -> None:
    """Write all layers into a folder of their own.

    Raises:
        BadInput: circuit-tracer's files cannot hold it, or it does not read and write the same places of each layer.
    """
    if clt.kind not in ("relu", "jump", "jumprelu", "topk") or clt.W_skip is not None or clt.d_in != clt.d_out:
        skip = " with a skip connection" if clt.W_skip is not None else ""
        raise BadInput(
            "circuit-tracer's files hold a relu, jumprelu or topk without a skip connection, with outputs as wide as "
            f"inputs; this one is a {clt.kind}{skip} from {clt.d_in} to {clt.d_out}"
        )
    config: dict[str, Any] = {
        "model_name": clt.model_name,
        "model_kind": KIND if clt.k is None else TOPK,
        "feature_input_hook": _hook(clt.sites),
        "feature_output_hook": _hook(clt.sites_out),
        "scan": clt.name or None,
    }
    if clt.k is not None:
        config["k"] = clt.k
    with replacing_folder(folder) as target:
        write_text(target / CONFIG, yaml.safe_dump(config, sort_keys=False))
        for layer in range(len(clt.W_enc)):
            tensors = {"W_enc": clt.W_enc[layer].T, "b_enc": clt.b_enc[layer], "b_dec": clt.b_dec[layer]}
            if clt.threshold is not None:
                theta = clt.threshold[layer]
                tensors["threshold"] = theta.clamp(min=0) if clt.kind == "jumprelu" else theta
            named = {f"{name}_{layer}": tensor for name, tensor in tensors.items()}
            write_tensors(target / f"W_enc_{layer}.safetensors", named, dtype)
            rows = {f"W_dec_{layer}": clt.rows(layer, range(clt.width))}
            write_tensors(target / f"W_dec_{layer}.safetensors", rows, dtype)


def _hook(sites: tuple[Site, ...]) -> str:
    """The hook's name within its block, which must be the same in each."""
    names = {site.hook_name.removeprefix(f"blocks.{layer}.") for layer, site in enumerate(sites)}
    if len(names) > 1 or any(site.layer != layer for layer, site in enumerate(sites)):
        raise BadInput(
            f"circuit-tracer's read and write one place in each layer from 0 on, not {', '.join(map(str, sites))}"
        )
    return names.pop()
