"""What eai-delphi's cache holds of latents: every activation, with the tokens that were read, as pages.

The examples are drawn here from the cached activations: the ones that delphi makes of them repeat between train and
test, and its centred ones carry activations of other windows.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..errors import BadFile, BadInput, UnknownName
from ..models import Model
from ..reading import read_object, regular_file
from .dashboards import Dashboards
from .delphi_labels import label_of
from .latent_page import LatentPage
from .layout import BINS, EDGES, bins_of
from .spelling import readable, token_text

SHARD = re.compile(r"(\d+)_(\d+)\.safetensors")  # first and last latent, both in it
INTERVALS, DRAWN = 5, 2
UNRELIABLE = (
    "activations are float16, and what is 1e-5 or smaller was dropped",
    "which tokens the dictionary was trained on is not known: first and special tokens count here",
    "rows of text that filled no whole batch were left out when it was made",
)


def read_delphi(
    folder: str | os.PathLike[str],
    model: Model,
    latents: Sequence[int],
    *,
    examples: int = 20,
    left: int = 24,
    right: int = 8,
) -> Dashboards:
    """Read latents from what delphi cached at one hook point.

    Args:
        folder: with `config.json` and `0_4095.safetensors`, ...; explanations and scores are read from the run's folder
            around it (`RUN/explanations`, `RUN/scores`, where `folder` is `RUN/latents/HOOK`).
        model: whose tokens they are. latents: which.
        examples: the strongest, one a row of text. left, right: tokens around the strongest one.

    Raises:
        BadFile: missing, damaged, without tokens, or something else. UnknownName: latents in no file.
        BadInput: no latents.
    """
    home = Path(folder)
    if not len(latents):
        raise BadInput("give at least one latent to read")
    shards = [(file, found) for file in sorted(home.glob("*.safetensors")) if (found := SHARD.fullmatch(file.name))]
    if not shards:
        raise BadFile(f"{home} holds no shards of delphi's cache (0_4095.safetensors, ...)")
    about = read_object(home / "config.json") if (home / "config.json").is_file() else {}
    pages: dict[int, LatentPage] = {}
    for file, found in shards:
        start, end = int(found[1]), int(found[2])
        if own := [latent for latent in latents if start <= latent <= end]:
            held = _held(file)
            for latent in own:
                pages[latent] = _page(home, latent, held, latent - start, about, model, (examples, left, right))
    if missing := [latent for latent in latents if latent not in pages]:
        raise UnknownName(f"latent {missing[0]} is in no shard of {home}")
    return Dashboards({latent: pages[latent] for latent in latents}, about)


def _held(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a shard. Raises `BadFile` for what does not fit together."""
    try:
        held = load_file(regular_file(file))
        where, values, tokens = (held[name] for name in ("locations", "activations", "tokens"))
    except KeyError as error:
        raise BadFile(f"{file} has no {error}; delphi writes it unless it is told not to") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise BadFile(f"{file} is damaged ({error})") from error
    whole = where.ndim == 2 and where.shape[1] == 3 and tokens.ndim == 2 and where.dtype.kind in "iu"
    if not whole or tokens.dtype.kind not in "iu" or values.shape != where.shape[:1] or values.dtype.kind != "f":
        raise BadFile(
            f"{file} is no shard of delphi's cache: it needs locations n × 3, activations n, tokens row × pos"
        )
    if len(where) and ((where[:, :2].max(0) >= tokens.shape).any() or where.min() < 0):
        raise BadFile(f"{file} is damaged: it names places outside its {tokens.shape[0]} × {tokens.shape[1]} tokens")
    if not np.isfinite(values).all():
        raise BadFile(f"{file} is damaged: activations that are not finite")
    return {"where": where.astype(np.int64), "values": values.astype(np.float32), "tokens": tokens.astype(np.int64)}


def _page(
    home: Path,
    latent: int,
    held: dict[str, np.ndarray],
    local: int,
    about: dict[str, Any],
    model: Model,
    shape: tuple[int, int, int],
) -> LatentPage:
    tokens, inside = held["tokens"], held["where"][:, 2] == local
    where, values = held["where"][inside, :2], held["values"][inside]
    dense: dict[int, dict[int, float]] = {}
    for (row, position), value in zip(where.tolist(), values.tolist()):
        dense.setdefault(row, {})[position] = value
    order = np.argsort(-np.abs(values), kind="stable")
    places = where[order].tolist()
    highest = float(np.abs(values).max()) if len(values) else 0.0
    shown = [_example(place, dense, tokens, model, shape) for place in _apart(places, tokens, shape)]
    label, remarks = label_of(home.absolute().parent.parent, home.name, latent)
    name = "/".join(str(part) for part in (about.get("model_name"), home.name) if part)
    parts: dict[str, Any] = {
        "statistics": {
            "count": len(values),
            "tokens": int(tokens.size),
            "density": len(values) / tokens.size if tokens.size else 0.0,
            "maximum": highest,
            "dead": not len(values),
        },
        "histogram": _bars(values),
        "examples": shown,
        "intervals": _intervals(places, np.abs(values[order]), highest, dense, tokens, model, shape),
        "provenance": {**about, "hook": home.name},
        "unreliable": [*UNRELIABLE, *remarks],
    }
    if label is not None:
        parts["explanation"] = label
    missing = {"logits": "delphi's cache holds no effects on logits"}
    return LatentPage(latent, name, f"latent {latent} of {name}, as delphi cached it", parts, missing)


def _apart(places: list[list[int]], tokens: np.ndarray, shape: tuple[int, int, int]) -> list[list[int]]:
    """The first places with a row of text and a wording of their own."""
    most, left, right = shape
    rows, wordings, kept = set[int](), set[bytes](), list[list[int]]()
    for row, position in places:
        wording = tokens[row, max(position - left, 0) : position + right + 1].tobytes()
        if row not in rows and wording not in wordings and len(kept) < most:
            kept.append([row, position])
            rows.add(row)
            wordings.add(wording)
    return kept


def _example(
    place: list[int], dense: dict[int, dict[int, float]], tokens: np.ndarray, model: Model, shape: tuple[int, int, int]
) -> dict[str, Any]:
    (row, position), (_, left, right) = place, shape
    span = range(max(position - left, 0), min(position + right + 1, tokens.shape[1]))
    ids = tokens[row, span.start : span.stop].tolist()
    if not all(0 <= one < model.cfg.d_vocab for one in ids):
        raise BadFile(
            f"tokens up to {max(ids)} are of another model than {model.name}, which has {model.cfg.d_vocab:,}"
        )
    return {
        "tokens": readable(token_text(model, one) for one in ids),
        "ids": ids,
        "activations": [dense[row].get(at, 0.0) for at in span],
        "anchor": position - span.start,
        "maximum": dense[row][position],
        "document": f"row {row}",
        "position": position,
    }


def _bars(values: np.ndarray) -> list[dict[str, float]]:
    counts = np.bincount(bins_of(values), minlength=BINS) if len(values) else np.zeros(BINS, int)
    return [{"low": float(EDGES[i]), "high": float(EDGES[i + 1]), "count": int(n)} for i, n in enumerate(counts) if n]


def _intervals(
    places: list[list[int]],
    sizes: np.ndarray,
    highest: float,
    dense: dict[int, dict[int, float]],
    tokens: np.ndarray,
    model: Model,
    shape: tuple[int, int, int],
) -> list[dict[str, Any]]:
    """Equal widths above 0, strongest first, each with examples drawn evenly from it."""
    found = []
    for number in reversed(range(INTERVALS)) if highest else []:
        low, high = highest * number / INTERVALS, highest * (number + 1) / INTERVALS
        inside = np.flatnonzero((sizes > low) & (sizes <= high))
        drawn = inside[np.linspace(0, len(inside) - 1, min(DRAWN, len(inside))).astype(int)] if len(inside) else inside
        examples = [_example(places[i], dense, tokens, model, shape) for i in drawn]
        found.append({"low": low, "high": high, "share": len(inside) / len(sizes), "examples": examples})
    return found
