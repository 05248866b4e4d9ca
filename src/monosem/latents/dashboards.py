"""Dashboards that other tools wrote: sae-dashboard's batch files, Neuronpedia's jsonl.gz and sae_vis' HTML, as pages.

What such a file says keeps its meaning, in the units it was written in, and each page says what of it cannot be relied
on (`parts["unreliable"]`). `neuronpedia` writes such files.
"""

import contextlib
import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import BadFile
from ..reading import parse_json, read_json, regular_file
from ..results import Result
from .latent_page import LatentPage
from .layout import bars_around
from .sae_vis import rows_of
from .spelling import alone, byte_alphabet, readable

MOST = 2**30  # characters of an unpacked file: a small file of zeros unpacks to any size
OWN = "monosem: "  # how the field `dataset` begins in files that `neuronpedia` wrote
TOP = -1  # `bin_min` and `bin_contains` of the examples that are the strongest, not of an interval
ABOUT = ("file", "model_id", "layer", "sae_set", "dataset", "n_prompts_total", "n_tokens_in_prompt")
ENDS = {" ": 0x20, "\n": 0x0A, "\t": 0x09, "\r": 0x0D}  # what sae-dashboard writes plainly in a byte-level vocabulary
# names in Neuronpedia's files that sae-dashboard spells otherwise
SPELLED = {
    "index": "feature_index",
    "modelId": "model_id",
    "binMin": "bin_min",
    "binMax": "bin_max",
    "binContains": "bin_contains",
    "qualifyingTokenIndex": "qualifying_token_index",
}

Row = Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Dashboards(Result):
    """Pages of files of dashboards.

    Attributes:
        pages: latent -> its page. settings: `run_settings.json` beside the file, where there is one.
    """

    pages: dict[int, LatentPage]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """One row a latent: latent, density, maximum, active (tokens in the histogram), examples, remarks (how many
        things about it are unreliable)."""
        rows = [
            {
                "latent": latent,
                "density": page.parts["statistics"]["density"],
                "maximum": page.parts["statistics"]["maximum"],
                "active": page.parts["statistics"]["count"],
                "examples": len(page.parts["examples"]),
                "remarks": len(page.parts["unreliable"]),
            }
            for latent, page in self.pages.items()
        ]
        return pd.DataFrame(rows)


def read_dashboards(path: str | os.PathLike[str]) -> Dashboards:
    """Read what sae-dashboard, sae_vis or a Neuronpedia export wrote.

    Args:
        path: `batch-0.json`, a folder of such files, a `batch-0.jsonl.gz` of features, a folder with `features/`,
            `activations/` and `explanations/` of them, or an `.html` of sae_vis 0.3.

    Raises:
        BadFile: missing, damaged, or something else; the message says what.
    """
    place = Path(path)
    files = sorted(place.rglob("batch-*.json*")) if place.is_dir() else [place]
    if not files:
        raise BadFile(f"{place} holds no batch-*.json or batch-*.jsonl.gz")
    found: dict[int, dict[str, Any]] = {}
    apart: dict[int, dict[str, list[dict[str, Any]]]] = {}  # rows of activations/ and explanations/
    for file in files:
        for row in _rows(file):
            latent = _whole(file, row, "feature_index")
            kind = "activations" if "tokens" in row else "explanations" if "description" in row else None
            if kind is not None:
                apart.setdefault(latent, {}).setdefault(kind, []).append(row)
            else:
                found[latent] = row
    for latent, kinds in apart.items():
        found.setdefault(latent, {"feature_index": latent}).update(kinds)
    beside = (place if place.is_dir() else place.parent) / "run_settings.json"
    settings = read_json(beside) if beside.is_file() else {}
    with _damaged(place):
        byte_level = _is_byte_level(one["tokens"] for row in found.values() for one in row.get("activations") or [])
        pages = {latent: _page(latent, row, byte_level) for latent, row in sorted(found.items())}
    return Dashboards(pages, settings if isinstance(settings, dict) else {})


def read_row(held: Any, where: str) -> LatentPage:
    """One latent as Neuronpedia's API gives it. Raises `BadFile` for something else; `where` is named."""
    if not isinstance(held, dict) or "index" not in held:
        raise BadFile(f"{where} holds no latent: it needs an object with `index`")
    (row,) = _named([held], {})
    latent = _whole(Path(where), row, "feature_index")
    with _damaged(where):
        return _page(latent, row, _is_byte_level(one["tokens"] for one in row.get("activations") or []))


@contextlib.contextmanager
def _damaged(where: str | Path) -> Iterator[None]:
    """What a file of another shape brings about is one error."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise BadFile(f"{where} is not a file of dashboards or is damaged ({type(error).__name__}: {error})") from error


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """One object a latent (or, in `activations/`, an example), with the names that sae-dashboard uses."""
    rows: Any
    about: dict[str, Any] = {}
    if file.suffix in (".html", ".htm"):
        with _damaged(file):
            rows = list(rows_of(file))
    elif file.suffix == ".gz":
        rows = [_parsed(file, line) for line in _unpacked(file).splitlines() if line.strip()]
    else:
        held = read_json(file)
        rows = held.get("features") if isinstance(held, dict) else None
        if isinstance(held, dict) and "features" not in held and "index" in held:
            rows = [held]  # one latent, as Neuronpedia's API gives it
        about = {key: held[key] for key in ABOUT if key in held} if isinstance(held, dict) else {}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadFile(f"{file} is no file of dashboards: it needs a list `features` of objects")
    yield from _named(rows, about)


def _named(rows: list[dict[str, Any]], about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows with sae-dashboard's names for everything."""
    for row in rows:
        whole = about | {SPELLED.get(key, key): value for key, value in row.items()}
        if isinstance(listed := whole.get("activations"), list) and all(isinstance(one, dict) for one in listed):
            whole["activations"] = [{SPELLED.get(key, key): value for key, value in one.items()} for one in listed]
        yield whole


def _unpacked(file: Path) -> str:
    try:
        with gzip.open(regular_file(file), "rt", encoding="utf-8") as lines:
            text = lines.read(MOST + 1)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadFile(f"{file} is damaged ({error})") from error
    if len(text) > MOST:
        raise BadFile(f"{file} unpacks to more than {MOST:,} characters")
    return text


def _parsed(file: Path, line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise BadFile(f"{file} is damaged ({error})") from error


def _whole(file: Path, row: Row, key: str) -> int:
    value = row.get(key)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or value < 0:
        raise BadFile(f"{file}: {key} is a whole number, not {value!r:.50}")
    return value


# --- tokens ---------------------------------------------------------------------------------------------------------


def _bytes(token: str) -> bytes | None:
    """The bytes of a token in GPT-2's alphabet, in which blanks may have been written plainly already."""
    spelled = byte_alphabet() | ENDS
    return bytes(spelled[c] for c in token) if all(c in spelled for c in token) else None


def _is_byte_level(lists: Iterable[list[str]]) -> bool:
    """Whether tokens are spelled in GPT-2's byte alphabet: read as bytes, all texts are UTF-8 (but for cut ends)."""
    seen = False
    for tokens in lists:
        if all(token.isascii() for token in tokens):
            continue
        parts = [_bytes(token) for token in tokens]
        text = b"".join(part or b"" for part in parts)
        start = next((i for i, byte in enumerate(text) if byte & 0xC0 != 0x80), len(text))
        try:
            text[start:].decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return False
        if any(part is None for part in parts):
            return False
        seen = True
    return seen


def _text(tokens: list[str], byte_level: bool) -> list[str]:
    return readable((_bytes(token) or b"") if byte_level else token for token in tokens)


# --- a page ---------------------------------------------------------------------------------------------------------


def _page(latent: int, row: Row, byte_level: bool) -> LatentPage:
    rows = row.get("activations") or []
    density, heights = row.get("frac_nonzero"), row.get("freq_hist_data_bar_heights") or []
    dead = _is_dead(row, rows)
    kept = [] if dead else _distinct(rows)
    top, others = ([one for one in kept if _is_top(one) is wanted] for wanted in (True, False))
    said = [float(one["bin_max"]) for one in top if one.get("bin_max") is not None]
    highest = max(said or (float(value) for one in kept for value in one["values"]), default=0.0)
    parts: dict[str, Any] = {
        "statistics": {"count": int(sum(heights)), "density": density, "maximum": highest, "dead": dead},
        "histogram": _bars(row, "freq_hist_data"),
        "logits": {side: _tokens(row, key, byte_level) for side, key in (("promoted", "pos"), ("suppressed", "neg"))}
        | {"histogram": _bars(row, "logits_hist_data")},
        "examples": [_shown(one, byte_level) for one in (top or kept)],
        "intervals": _intervals(others, byte_level, 1.0 if row.get("sae_vis") else density),
        "neurons": {"rows": _listed(row, "neuron_alignment", ("neuron", "value", "share"), "values")},
        "coactive": _listed(row, "correlated_features", ("latent", "pearson", "cosine"), "pearson"),
        "correlated_neurons": _listed(row, "correlated_neurons", ("neuron", "pearson", "cosine"), "pearson"),
        "provenance": {key: row[key] for key in ABOUT if key in row},
        **_nearest(row),
        **_label(row),
        "unreliable": [remark for remark, holds in REMARKS.items() if holds(row, rows)],
    }
    named = [str(row[key]) for key in ("model_id", "layer", "sae_set") if row.get(key) is not None]
    name = "/".join(named) or str(row.get("file", ""))
    return LatentPage(latent, name, f"latent {latent} of {name or 'a file of dashboards'}, as its file says", parts)


def _nearest(row: Row) -> dict[str, Any]:
    """Latents with the most similar decoder rows; Neuronpedia's files have them, without the latent itself or with."""
    own = row.get("feature_index")
    pairs = zip(row.get("topkCosSimIndices") or [], row.get("topkCosSimValues") or [])
    near = [{"latent": latent, "cosine": cosine, "label": None} for latent, cosine in pairs if latent != own]
    return {"neighbours": {"decoder": near, "encoder": []}} if near else {}


def _label(row: Row) -> dict[str, Any]:
    """The first explanation; who wrote it is in `by`, its scores in `scores`, by their names."""
    listed = [one for one in row.get("explanations") or [] if one.get("description")]
    if not listed:
        return {}
    by = [str(listed[0][key]) for key in ("typeName", "explanationModelName") if listed[0].get(key)]
    scores = {
        str(one.get("explanationScoreTypeName") or one.get("type") or "score"): one.get("value")
        for one in listed[0].get("scores") or []
    }
    others = [str(one["description"]) for one in listed[1:]]
    label = {"label": str(listed[0]["description"]), "by": ", ".join(by), "scores": scores, "others": others}
    return {"explanation": label}


def _is_top(one: Row) -> bool:
    return one.get("bin_min") == TOP or one.get("bin_contains") == TOP


def _distinct(rows: list[Row]) -> list[Row]:
    """Each text once in a group; a text may be both among the strongest and in an interval."""
    first: dict[Any, Row] = {}
    for one in rows:
        first.setdefault((one.get("bin_min"), tuple(one["tokens"]), tuple(one["values"])), one)
    return list(first.values())


def _shown(one: Row, byte_level: bool) -> dict[str, Any]:
    """`anchor` is None where the token that the example is for is not among those that are written."""
    tokens, values = _text(list(one["tokens"]), byte_level), [float(value) for value in one["values"]]
    if len(tokens) != len(values):
        raise ValueError(f"{len(tokens)} tokens with {len(values)} values")
    anchor = one.get("qualifying_token_index")
    inside = type(anchor) is int and 0 <= anchor < len(values)
    return {
        "tokens": tokens,
        "activations": values,
        "anchor": anchor if inside else None,
        "maximum": values[anchor] if inside else None,  # type: ignore[index]
        "document": "",
        "position": anchor,
    }


def _intervals(rows: list[Row], byte_level: bool, density: float | None) -> list[dict[str, Any]]:
    """`said` is the share that the file has; `share` is of active tokens. The lowest interval holds the zeros in the
    file: its share is what is left without them. `density` is 1 where the file's shares are of active tokens."""
    groups: dict[tuple[float, float], list[Row]] = {}
    for one in rows:
        groups.setdefault((float(one.get("bin_min") or 0.0), float(one.get("bin_max") or 0.0)), []).append(one)
    found = []
    for (low, high), members in sorted(groups.items(), reverse=True):
        said, share = members[0].get("bin_contains"), None
        if said is not None and density:
            share = min(max((said - (1 - density if low == 0 else 0)) / density, 0.0), 1.0)
        shown = [_shown(one, byte_level) for one in members]
        active = [one for one in shown if one["maximum"] != 0]
        found.append({"low": low, "high": high, "share": share, "said": said, "examples": active})
    return found


def _bars(row: Row, key: str) -> list[dict[str, float]]:
    """Bars around their centres, empty ones left out: of equal width, or (monosem's own) of equal width in log2."""
    centres, heights = (row.get(f"{key}_bar_{name}") or [] for name in ("values", "heights"))
    half = (centres[-1] - centres[0]) / (len(centres) - 1) / 2 if len(centres) > 1 else 0.0
    edges = [(c - half, c + half) for c in centres]
    if key == "freq_hist_data" and str(row.get("dataset", "")).startswith(OWN):
        edges = bars_around(centres)
    return [{"low": low, "high": high, "count": n} for (low, high), n in zip(edges, heights) if n]


def _tokens(row: Row, key: str, byte_level: bool) -> list[dict[str, Any]]:
    pairs = zip(row.get(f"{key}_str") or [], row.get(f"{key}_values") or [])
    return [{"token": _single(token) if byte_level else token, "effect": effect} for token, effect in pairs]


def _single(token: str) -> str:
    """A token in the byte alphabet by itself; bytes that are no whole character in hexadecimal."""
    spelled = _bytes(token)
    try:
        return token if spelled is None else spelled.decode()
    except UnicodeDecodeError:
        return alone(spelled)  # type: ignore[arg-type]


def _listed(row: Row, key: str, names: tuple[str, ...], second: str) -> list[dict[str, Any]]:
    columns = (row.get(f"{key}_{name}") or [] for name in ("indices", second, "l1"))
    return [dict(zip(names, entry)) for entry in zip(*columns)]


# --- what cannot be relied on ---------------------------------------------------------------------------------------


def _of_sae_dashboard(row: Row, rows: list[Row]) -> bool:
    """Whether sae-dashboard computed it, not monosem, which writes where its numbers are from."""
    return "n_prompts_total" in row and not str(row.get("dataset", "")).startswith(OWN)


def _of_sae_vis(row: Row, rows: list[Row]) -> bool:
    return bool(row.get("sae_vis"))


def _lowest_has_zeros(row: Row, rows: list[Row]) -> bool:
    return not _of_sae_vis(row, rows) and any(one.get("bin_min") == 0 and not _is_top(one) for one in rows)


def _repeats(row: Row, rows: list[Row]) -> bool:
    return len(_distinct(rows)) < len(rows)


def _hidden(row: Row, rows: list[Row]) -> bool:
    return any(one.get("qualifying_token_index") == -1 for one in rows)


def _off_the_maximum(row: Row, rows: list[Row]) -> bool:
    marked = [(one["values"], one.get("qualifying_token_index")) for one in rows if _is_top(one)]
    return any(type(i) is int and 0 <= i < len(values) and values[i] < max(values) for values, i in marked)


def _in_one_batch(row: Row, rows: list[Row]) -> bool:
    return bool(row.get("correlated_features_indices")) and _of_sae_dashboard(row, rows)


def _is_dead(row: Row, rows: list[Row]) -> bool:
    return row.get("frac_nonzero") == 0 and not any(row.get("freq_hist_data_bar_heights") or []) and bool(rows)


# what a page says of its file -> whether it applies
REMARKS: dict[str, Callable[[Row, list[Row]], bool]] = {
    "activations are times the norm of the decoder row, and rounded to 3 decimals": _of_sae_dashboard,
    "density: tokens that do not count are in the denominator, so that it is too low": _of_sae_dashboard,
    "logit effects are of a model with folded norms and a centred unembedding, unless the run was told otherwise": (
        _of_sae_dashboard
    ),
    "each example lacks the first token of its prompt": _of_sae_dashboard,
    "the token that an example is for may be the one that is missing; then there is no anchor": _hidden,
    "the lowest interval holds tokens at which the latent is silent; its share here is without them": _lowest_has_zeros,
    "borders and shares of intervals were read from titles with 3 decimals": _of_sae_dashboard,
    "density, borders and shares of intervals were read from titles; special tokens count in them": _of_sae_vis,
    "effects on the loss (of a norm without its square root) and attention sources are left out": _of_sae_vis,
    "a text is there more than once; it is shown once a group": _repeats,
    "the marked token of an example is not always its strongest": _off_the_maximum,
    "correlated latents are the nearest in one batch of the run, not in the dictionary": _in_one_batch,
    "the latent never fired; the examples that the file has for it are left out": _is_dead,
}
