"""Cross-layer transcoders: circuit-tracer 0.5.0's folders, and Gemma Scope 2's, one file a layer.

circuit-tracer: `W_enc_{i}.safetensors` with W_enc_i [F, d], b_enc_i, b_dec_i and sometimes threshold_i,
`W_dec_{i}.safetensors` with W_dec_i [F, L - i, d]; `config.yaml` says the sites. Codes are pre where pre > threshold, a
ReLU without thresholds; skip connections are not stored. A `config.yaml` written here may say `k`: the k largest of
each layer and token (its `model_kind` is then one that circuit-tracer refuses). Gemma Scope 2: w_enc [d, F], w_dec
[F, L, d], of which layers before i are left out, b_enc, b_dec, threshold, affine_skip_connection [d, d].

Large decoders stay in their files, of which rows are read when they are needed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadFile, cause
from ...models.places.sites import Site
from ...reading import read_object, read_safetensors, read_yaml, regular_file
from ..several_parts import CrossLayerParts, Facts, RowFiles
from .common import Format, Hints, Place, checked, keys_of, module_site, number, site_or_none, take

CONFIG = "config.yaml"
KIND, TOPK = "cross_layer_transcoder", "topk_cross_layer_transcoder"  # model_kind; the second has `k`, too
IN_MEMORY = 2**30  # bytes of decoders; larger ones stay in their files
_HOOKS = {
    "feature_input_hook": "hook_resid_mid",
    "feature_output_hook": "hook_mlp_out",
}  # its defaults
_PART = re.compile(r"W_(?:enc|dec)_(\d{1,4})\.safetensors")
_LAYER = re.compile(r"(?:.*_)?layer_(\d{1,4})\.safetensors")
_KEYS = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}


def detect(place: Place) -> bool:
    return place.path.is_dir() and any(_PART.fullmatch(one.name) for one in place.path.glob("W_*_*.safetensors"))


def read(place: Place, hints: Hints) -> CrossLayerParts:
    """Raises `BadFile` for a layer that is missing, tensors that do not fit, or a config of something else."""
    path = place.path
    cfg = _config(path)
    numbers = {int(found[1]) for one in path.glob("W_*_*.safetensors") if (found := _PART.fullmatch(one.name))}
    layers = max(numbers) + 1
    files = {kind: [path / f"W_{kind}_{layer}.safetensors" for layer in range(layers)] for kind in ("enc", "dec")}
    if missing := [one for one in (*files["enc"], *files["dec"]) if not one.is_file()]:
        raise BadFile(f"{missing[0]} is missing: this cross-layer transcoder has layers 0 to {layers - 1}")
    held: dict[str, list[Tensor]] = {"W_enc": [], "b_enc": [], "b_dec": [], "threshold": []}
    width = d = 0
    gated = "threshold_0" in keys_of(files["enc"][0])
    for layer, file in enumerate(files["enc"]):
        tensors = read_safetensors(file)
        if not layer:
            width, d = _matrix(tensors, "W_enc_0", file)
        shapes: dict[str, tuple[int, ...]] = {f"W_enc_{layer}": (width, d)}
        shapes |= {f"b_enc_{layer}": (width,), f"b_dec_{layer}": (d,)}
        shapes |= {f"threshold_{layer}": (width,)} if gated or f"threshold_{layer}" in tensors else {}
        if len(shapes) != 3 + gated:
            raise BadFile(f"{file} has thresholds, and the files of the layers before have none")
        W, *others = checked(tensors, shapes, file)
        for name, tensor in zip(held, (W.T, *others)):
            held[name].append(tensor)
    names = [f"W_dec_{layer}" for layer in range(layers)]
    decoders = _decoders(files["dec"], names, [0] * layers, [(width, layers - s, d) for s in range(layers)])
    threshold = torch.stack(held["threshold"]) if gated else None
    k = number(cfg, "k", path / CONFIG, int) if cfg["model_kind"] == TOPK else None
    kind = "topk" if k else "relu" if threshold is None else "jump" if bool((threshold < 0).any()) else "jumprelu"
    sites, out = ([site_or_none(f"blocks.{i}.{cfg[hook]}") for i in range(layers)] for hook in _HOOKS)
    name = str(cfg.get("scan") or path.name)
    told = {"original_form": {"format": "circuit_tracer_clt", **cfg}}
    facts = Facts(kind, sites, out, k=k, model_name=str(cfg.get("model_name") or ""), name=name, metadata=told)
    W_enc, b_enc, b_dec = (torch.stack(held[name]) for name in ("W_enc", "b_enc", "b_dec"))
    return CrossLayerParts(facts=facts, W_enc=W_enc, b_enc=b_enc, W_dec=decoders, b_dec=b_dec, threshold=threshold)


def _config(folder: Path) -> dict[str, Any]:
    cfg: Any = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if not isinstance(cfg, dict):
        raise BadFile(f"{folder / CONFIG} holds a {type(cfg).__name__}, expected a table")
    cfg = {"model_kind": KIND} | cfg
    if cfg["model_kind"] not in (KIND, TOPK):
        raise BadFile(
            f"{folder / CONFIG} says model_kind {cfg['model_kind']!r:.60}, and its files a cross-layer transcoder"
        )
    return _HOOKS | {str(key): value for key, value in cfg.items()}


def _matrix(tensors: Mapping[str, Tensor], name: str, file: Path) -> tuple[int, int]:
    (W,) = take(tensors, [name], file)
    if W.ndim != 2 or 0 in W.shape:
        raise BadFile(f"{file}: {name} has shape {list(W.shape)}, expected a matrix")
    return W.shape[0], W.shape[1]


def _decoders(
    files: list[Path], names: list[str], first: list[int], shapes: list[tuple[int, ...]]
) -> RowFiles | list[Tensor]:
    """Decoders of all layers, whose shapes are checked: in memory, or in their files where they are large.

    Raises:
        BadFile: one is missing, damaged or of another shape.
    """
    sizes = [_size(file, name, shape) for file, name, shape in zip(files, names, shapes)]
    if sum(sizes) > IN_MEMORY:
        return RowFiles(files, names, first)
    made = []
    for file, name, start, shape in zip(files, names, first, shapes):
        (tensor,) = checked(read_safetensors(file), {name: shape}, file)
        made.append(tensor[:, start:])
    return made


def _size(file: Path, name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a file, whose tensor has this shape."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular_file(file), "pt") as held:
            if name not in held.keys():  # noqa: SIM118 (it is no mapping)
                raise BadFile(f"{file} lacks the tensor {name}; it has {', '.join(held.keys()) or 'none'}")
            found = held.get_slice(name).get_shape()
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"{file} is truncated or not a safetensors file ({cause(error)}); download it again") from error
    if tuple(found) != shape:
        raise BadFile(f"{file}: {name} has shape {found}, expected {list(shape)}")
    return file.stat().st_size


# ---------------------------------------------------------------------- Gemma Scope 2
def _layers(folder: Path) -> dict[int, Path]:
    """The files of a folder that are a layer each."""
    found = {one: _LAYER.fullmatch(one.name) for one in sorted(folder.glob("*layer_*.safetensors"))}
    return {int(match[1]): one for one, match in found.items() if match and keys_of(one) >= _KEYS}


def detect_gemma(place: Place) -> bool:
    return place.path.is_dir() and bool(_layers(place.path))


def read_gemma(place: Place, hints: Hints) -> CrossLayerParts:
    """Raises `BadFile` for a layer that is missing, or tensors that do not fit."""
    path, files = place.path, _layers(place.path)
    layers = max(files) + 1
    if missing := sorted(set(range(layers)) - set(files)):
        raise BadFile(
            f"{path}: layer {missing[0]} of a cross-layer transcoder with layers 0 to {layers - 1} is missing"
        )
    held: dict[str, list[Tensor]] = {"w_enc": [], "b_enc": [], "b_dec": [], "threshold": []}
    skips, width, d = [], 0, 0
    affine = "affine_skip_connection" in keys_of(files[0])
    for layer in range(layers):
        tensors = read_safetensors(files[layer])
        if not layer:
            d, width = _matrix(tensors, "w_enc", files[0])
        shapes: dict[str, tuple[int, ...]] = {"w_enc": (d, width), "b_enc": (width,), "b_dec": (d,)}
        shapes |= {"threshold": (width,)} | ({"affine_skip_connection": (d, d)} if affine else {})
        read_in = checked(tensors, shapes, files[layer])
        for name, tensor in zip(held, read_in):
            held[name].append(tensor)
        skips += [tensor.T for tensor in read_in[4:]]
    ordered = [files[layer] for layer in range(layers)]
    decoders = _decoders(ordered, ["w_dec"] * layers, list(range(layers)), [(width, layers, d)] * layers)
    config = path / "config.json"
    cfg = read_object(config) if config.is_file() else {}
    release = re.search(r"gemma-scope-2-(\w+-(?:pt|it))", path.as_posix())
    W_enc, b_enc, b_dec, threshold = (torch.stack(one) for one in held.values())
    facts = Facts(
        "jump" if bool((threshold < 0).any()) else "jumprelu",
        _gemma_sites(cfg, "in", "ln2_output", layers),
        _gemma_sites(cfg, "out", "mlp_out", layers),
        model_name=f"google/gemma-3-{release[1].removesuffix('-pt') if '270m' in release[1] else release[1]}"
        if release
        else "",
        name=path.name,
        metadata={"original_form": {"format": "gemma_scope_2_clt", **cfg}},
    )
    skip = torch.stack(skips) if skips else None
    made = {"W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}
    return CrossLayerParts(facts=facts, W_dec=decoders, W_skip=skip, **made)


def _gemma_sites(cfg: Mapping[str, Any], side: str, usual: str, layers: int) -> list[Site | None]:
    """By the config's module path of one layer, or where all of Gemma Scope 2's transcoders read and write."""
    hook = cfg.get(f"hf_hook_point_{side}")
    name = usual if hook is None else getattr(module_site(hook), "name", None)
    return [None if name is None else Site(name, layer) for layer in range(layers)]


FORMAT = Format(detect, read)
FORMAT_GEMMA = Format(detect_gemma, read_gemma)
