"""Loading a dictionary by name: shipped with the package, a folder, a file, or a hub id."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from ..activations import SkipRule
from ..errors import BadFile, BadInput, UnknownName, did_you_mean
from ..files import ASSETS
from ..models.loading.precision import DtypeLike, choose_device, choose_dtype
from ..models.places.sites import SiteLike
from ..reading import existing, read_object
from .cross_layer import CrossLayer
from .crosscoder import Crosscoder
from .dictionary import Dictionary
from .formats import CONFIGS, FORMATS, OTHER_FORMATS
from .formats.common import PYTORCH, Hints, Place
from .formats.saelens import CARD
from .parts import DictionaryParts
from .published import Published, fetched, named
from .published.registry import NEURONPEDIA, near
from .published.repository import fetched_from
from .several import SeveralSites
from .several_parts import CrosscoderParts, CrossLayerParts, SeveralParts
from .trained_on import KEY, written

METRICS = "metrics.jsonl"  # what a training run writes beside its dictionary


def shipped_dictionaries() -> list[str]:
    """Names of the dictionaries inside the package, such as `smollm2/resid_post.15`."""
    return sorted(str(cfg.parent.relative_to(ASSETS).as_posix()) for cfg in ASSETS.glob("*/*/cfg.json"))


def shipped_dictionary_folder(name: str) -> Path:
    """Where a shipped dictionary lies (weights, card, index). Raises `UnknownName`."""
    if name not in shipped_dictionaries():
        raise UnknownName(
            f"no shipped dictionary {name!r}{did_you_mean(name, shipped_dictionaries())}; shipped: {_shipped_names()}"
        )
    return ASSETS / name


def load_dictionary(
    name: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: DtypeLike = None,
    *,
    site: SiteLike | None = None,
    site_out: SiteLike | None = None,
    model_name: str | None = None,
    norm_scaling_factor: float | None = None,
    kind: str | None = None,
    k: int | None = None,
    skip: SkipRule | None = None,
) -> Dictionary | SeveralSites:
    """Load a dictionary into the canonical form: a `Dictionary`, or a `CrossLayer` or `Crosscoder` of several sites.

    Args:
        name: a shipped name (`shipped_dictionaries()`), a folder or file on disk, the folder of a training run (also of
            one that goes on or was killed: its latest state), the name of a published one (`releases()`: release/id, or
            Neuronpedia's id), or `owner/repo[/folder]` on the hub.
        dtype: of the weights; default float32 (of several sites: the file's). Arithmetic is in float32 in any case.
        site, site_out, model_name: where it belongs, where the file does not say or says it wrongly.
        norm_scaling_factor: sqrt(d_in) / mean input norm, for SAELens files with `expected_average_only_in` that lack
            it.
        kind, k: its encoder (a name of `ENCODERS`) and its places a token, for files that do not say.
        skip: which tokens it was not trained on, where the file does not say; `SkipRule()`, the default: the first of a
            text, special tokens and norm outliers. `SkipRule.none()`: it was trained on every token.

    Raises:
        UnknownName: nothing of that name (shipped names are listed), or no such dtype.
        BadFile: the checkpoint is broken, hostile, of an unknown format, or incomplete; the message says what to do.
    """
    device = device if device is None else choose_device(device)
    dtype = dtype if dtype is None else choose_dtype(dtype, torch.device(device or "cpu"))
    path, published = _find(os.fspath(name))
    if (path / METRICS).is_file() and (path / "dictionary").is_dir():
        path = path / "dictionary"
    known = published.config if published else {}
    place, hints = Place(path), Hints(norm_scaling_factor, kind, k, known)
    checkpoint = next((one for one in FORMATS.values() if one.detect(place)), None)
    if checkpoint is None:
        raise BadFile(_unknown_format(place))
    told: dict[str, Any] = {"site": site, "site_out": site_out, "model_name": model_name}
    try:
        hints.check(checkpoint.hints)
        parts = checkpoint.read(place, hints)
        if isinstance(parts, SeveralParts):
            several = _of_several(parts, path, published, told, skip)
            _warn_unfinished(path, several.card)
            return several.to(device=device, dtype=dtype)
        hints.check_used(parts)
        parts = parts if published is None else _with_facts(parts, published)
        told["metadata"] = {**parts.metadata, KEY: written(skip)} if skip else None
        dictionary = Dictionary(replace(parts, **{key: value for key, value in told.items() if value}))
    except BadInput as error:
        raise BadFile(f"{path}: {error}") from error
    _warn_unfinished(path, dictionary.card)
    dictionary.folder = path if path.is_dir() else path.parent
    if path.is_relative_to(ASSETS):
        dictionary.name = path.relative_to(ASSETS).as_posix()
    return dictionary.to(device=device, dtype=dtype)


def one_site(name: str | os.PathLike[str], **told: Any) -> Dictionary:
    """`load_dictionary` of what takes a dictionary of one site. Raises `BadInput` for one of several."""
    dictionary = load_dictionary(name, **told)
    if isinstance(dictionary, SeveralSites):
        raise BadInput(f"{name} is {dictionary.what}; this takes a dictionary of one site")
    return dictionary


def _of_several(
    parts: SeveralParts, path: Path, published: Published | None, told: Mapping[str, Any], skip: SkipRule | None
) -> SeveralSites:
    """With what the caller and the registry say. Raises `BadInput` for what only a dictionary of one site is told."""
    if given := [name for name in ("site", "site_out") if told[name]] + (["skip"] if skip else []):
        raise BadInput(f"{given[0]} is of one site, and this is {parts.what} of {len(parts.facts.sites)}; leave it out")
    read = CrossLayer(parts) if isinstance(parts, CrossLayerParts) else Crosscoder(cast(CrosscoderParts, parts))
    if published is not None:
        read.name, read.model_name = published.name, published.model
        read.metadata |= {"release": published.release}
    read.model_name = told["model_name"] or read.model_name
    read.folder = path if path.is_dir() else path.parent
    if (card := path / CARD).is_file():
        read.card = read_object(card)
        made_of = read.card.get("metadata")
        read.metadata |= made_of if isinstance(made_of, dict) else {}
    return read


def _find(name: str) -> tuple[Path, Published | None]:
    """Where a dictionary lies, downloaded where it is not here, and what the registry says about it."""
    if name in shipped_dictionaries():
        return ASSETS / name, None
    if not name.startswith(NEURONPEDIA) and (path := existing(name) or existing(f"{name}.safetensors")) is not None:
        return path.resolve(), None  # or folder/layer_5, of layer_5.safetensors
    if (published := named(name)) is not None:
        return fetched(published), published
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") < 1:
        raise UnknownName(f"no dictionary {name!r}{_near(name)}; no such path; shipped: {_shipped_names()}")
    owner, repo, *rest = name.split("/")
    lead = (
        f"no dictionary {name!r}{_near(name)}: not shipped (shipped: {_shipped_names()}), "
        "no published name (monosem list dictionaries), no such path, and "
    )
    return fetched_from(f"{owner}/{repo}", "/".join(rest), lead), None


def _with_facts(parts: DictionaryParts, published: Published) -> DictionaryParts:
    """The parts of a checkpoint, with what the registry knows and its files do not say."""
    facts = {"release": published.release, "sae_id": published.id, "neuronpedia_id": published.neuronpedia}
    return replace(
        parts,
        site=parts.site or published.site,
        site_out=parts.site_out or published.site_out,
        model_name=published.model,
        name=published.name,
        metadata={**parts.metadata, **{key: value for key, value in facts.items() if value}},
    )


def _unknown_format(place: Place) -> str:
    """What it holds, whose it looks like, or which folder near it is meant."""
    path = place.path
    if path.is_file() and _readable(path.parent):
        return f"{path} is a part of a dictionary; give the folder, {path.parent}"
    if alone := next((name for name in CONFIGS if place.has(name) or (path.name == name and path.is_file())), None):
        return f"{path} lacks the config that belongs beside {alone}: {CONFIGS[alone]}"
    known = f"known: {', '.join(FORMATS)}"
    if place.is_pytorch:
        held = ", ".join(map(str, place.state)) or "nothing"
        return f"{path} is not a dictionary in a known format; it holds {held:.300} ({known})"
    inside = sorted(path.glob("*")) if path.is_dir() else []
    if readable := [one for one in inside if _readable(one)]:
        return f"{path} holds {len(readable)} dictionaries; give one, such as {readable[0]}"
    if files := [one for one in inside if one.suffix in PYTORCH]:
        return f"{path} is a folder of PyTorch files; give one, such as {files[0]}"
    tool = next((tool for one in (path, *inside[:1]) if (tool := _tool(one))), None)
    looks = f"looks like one of {tool}, which is not read" if tool else "is not a dictionary in a known format"
    return f"{path} {looks} ({known})"


def _readable(path: Path) -> bool:
    """Whether a dictionary lies there; PyTorch files, which can be large, are not opened for it."""
    return path.suffix not in PYTORCH and any(one.detect(Place(path)) for one in FORMATS.values())


def _tool(path: Path) -> str | None:
    """Whose format a folder looks like, of those that are not read."""
    found = (tool for names, tool in OTHER_FORMATS.items() if all(any(path.glob(name)) for name in names))
    return next(found, None) if path.is_dir() else None


def _warn_unfinished(path: Path, card: Mapping[str, Any]) -> None:
    if card.get("finished") is False:
        warnings.warn(f"{path} is of a training run that is not finished: {_unfinished(card)}", stacklevel=3)


def _unfinished(card: Mapping[str, Any]) -> str:
    return "; ".join(card.get("problems") or ()) or f"step {card.get('step')} of {card.get('steps')}"


def _shipped_names() -> str:
    return ", ".join(shipped_dictionaries()) or "none"


def _near(name: str) -> str:
    return did_you_mean(name, shipped_dictionaries()) or near(name)
