"""OpenAI's `.pt` autoencoders for GPT-2 small (v1, v4, v5), as published with Gao et al. 2024 (arXiv 2406.04093).

    latents = act((x - pre_bias) encoder.weight^T + latent_bias)        y = latents decoder.weight^T + pre_bias

TopK ones read a layer-normalised x and undo it on y; a file that names no activation is of a ReLU, as OpenAI's own
loader reads it. Which site a file is for stands in its path only:
`{location}[_v4|_v5_32k|_v5_128k]/autoencoders/{layer}.pt`.
"""

import re
from pathlib import Path
from typing import Any

from ...errors import BadFile
from ...models.places.sites import Site
from ..folds import fold_decoder_bias
from ..parts import DictionaryParts, DictionaryTensors, check_shapes
from .common import Format, Hints, Place, take

KEYS = ["pre_bias", "encoder.weight", "latent_bias", "decoder.weight"]
LOCATIONS = {
    "resid_delta_attn": "attn_out",
    "resid_post_attn": "resid_mid",
    "resid_delta_mlp": "mlp_out",
    "resid_post_mlp": "resid_post",
    "mlp_post_act": "mlp_post",
}


def detect(place: Place) -> bool:
    return bool({"pre_bias", "latent_bias"} & place.state.keys())


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for tensors that are missing or do not fit, or another activation."""
    path, loaded = place.path, place.state
    pre_bias, encoder, latent_bias, decoder = (t.float() for t in take(loaded, KEYS, path))
    if encoder.ndim != 2:
        raise BadFile(f"{path}: encoder.weight has shape {list(encoder.shape)}, expected [width, d_in]")
    width, d_in = encoder.shape
    shapes = {"pre_bias": (d_in,), "latent_bias": (width,), "decoder.weight": (d_in, width)}
    check_shapes({name: loaded[name] for name in shapes}, shapes)
    kind, k = _activation(loaded, path)
    site = _site(path)
    form = {"format": "openai", "activation": loaded.get("activation", "ReLU"), "apply_b_dec_to_input": True}
    return DictionaryParts(
        fold_decoder_bias(DictionaryTensors(encoder.T, latent_bias, decoder.T, pre_bias)),
        kind,
        k=k,
        token_norm="layer_norm" if kind == "topk" else "none",
        site=site,
        model_name="gpt2",
        name=path.stem if site is None else f"{path.parent.parent.name}/{path.stem}",
        metadata={"original_form": form},
    )


def _activation(loaded: dict[str, Any], path: Path) -> tuple[str, int | None]:
    name, layer_normed = loaded.get("activation", "ReLU"), re.search(r"_v5_\d+k$", path.parent.parent.name)
    if "activation" not in loaded and (layer_normed or loaded.get("activation_state_dict")):
        raise BadFile(
            f"{path} names no activation, which OpenAI's own loader takes for a ReLU, and is of a TopK by "
            f"{'its folder' if layer_normed else 'its activation_state_dict'}; add activation: 'TopK' to the file"
        )
    if name == "ReLU":
        return "relu", None
    if name != "TopK":
        raise BadFile(f"{path}: unknown activation {name!r}; known: ReLU, TopK")
    state = loaded.get("activation_state_dict")
    state = state if isinstance(state, dict) else {}
    if type(state.get("k")) is not int or state.get("postact_fn", "ReLU") != "ReLU":
        raise BadFile(
            f"{path}: a TopK activation needs a whole k and postact_fn ReLU; activation_state_dict is {state}"
        )
    return "topk", state["k"]


def _site(path: Path) -> Site | None:
    location = re.fullmatch(r"(.+?)(?:_v\d+(?:_\d+k)?)?", path.parent.parent.name)
    if location is None or location[1] not in LOCATIONS or not path.stem.isdigit():
        return None
    return Site(LOCATIONS[location[1]], int(path.stem))


FORMAT = Format(detect, read)
