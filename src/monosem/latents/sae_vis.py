"""Pages that sae_vis wrote (0.3, a single HTML file), as rows with the names that sae-dashboard has for the same.

What is wrong there is left out: effects on the loss (sae_vis divides by the mean square of the final norm's input, not
by its root) and attention sources (it takes the encoder of the latent's number in the batch).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadFile
from ..reading import parse_json, read_text

START = re.compile(r"function\s+defineData\(\)\s*\{\s*return\s*")  # the data follow, on one line
SHARE = re.compile(r"(?:DENSITY =|CONTAINS) (\d+(?:\.\d+)?)%")
INTERVAL = re.compile(r"INTERVAL (-?\d+(?:\.\d+)?) - (-?\d+(?:\.\d+)?)")
HIGHEST = re.compile(r"MAX(?: ACT)? = (-?\d+(?:\.\d+)?)")
BREAKS = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}  # it writes them as two characters
TABLES = {
    "neuronAlignment": "neuron_alignment",
    "correlatedNeurons": "correlated_neurons",
    "correlatedFeatures": "correlated_features",
}
SIDES = {"posLogits": "pos", "negLogits": "neg"}
CHARTS = {"actsHistogram": "freq_hist_data", "logitsHistogram": "logits_hist_data"}

Held = Mapping[str, Any]


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """One object a latent. Raises `BadFile` where the page holds none, `TypeError` and the like where it is damaged."""
    text = read_text(file)
    found = START.search(text)
    if found is None:
        raise BadFile(f"{file} is no page of sae_vis 0.3 (it has no `defineData`)")
    line = text[found.end() :].partition("\n")[0].strip().removesuffix(";")
    try:
        held = parse_json(line)
    except ValueError as error:
        raise BadFile(f"{file} is damaged ({error})") from error
    if not isinstance(held, dict) or not held:
        raise BadFile(f"{file} holds no latents")
    for latent, parts in held.items():
        yield {"feature_index": latent, "sae_vis": True, "file": file.name, **_row(parts)}


def _row(parts: Held) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, key in CHARTS.items():
        if name in parts:
            row |= {f"{key}_bar_values": parts[name]["x"], f"{key}_bar_heights": parts[name]["y"]}
    if "actsHistogram" in parts:
        row["frac_nonzero"] = _number(SHARE, parts["actsHistogram"]["title"], 100)
    for name, key in SIDES.items():
        listed = parts.get("logitsTable", {}).get(name, [])
        row |= {
            f"{key}_str": [_plain(one["symbol"]) for one in listed],
            f"{key}_values": [one["value"] for one in listed],
        }
    for name, key in TABLES.items():
        listed = parts.get("featureTables", {}).get(name, [])
        second = "values" if key == "neuron_alignment" else "pearson"
        row[f"{key}_indices"] = [one["index"] for one in listed]
        row[f"{key}_{second}"] = [float(one["value"]) for one in listed]
        row[f"{key}_l1"] = [_share(one["percentageL1"]) for one in listed]
    row["activations"] = [one for group in parts.get("seqMultiGroup", []) for one in _examples(group)]
    return row


def _examples(group: Held) -> Iterator[dict[str, Any]]:
    """Examples of a group; boards of a game have no tokens and are left out."""
    title = group["seqGroupMetadata"]["title"]
    interval = INTERVAL.search(title)
    ends = {"bin_min": -1, "bin_max": _number(HIGHEST, title), "bin_contains": -1}
    if interval is not None:
        ends = {
            "bin_min": float(interval[1]),
            "bin_max": float(interval[2]),
            "bin_contains": _number(SHARE, title, 100),
        }
    for one in group["seqGroupData"]:
        if isinstance(tokens := one["seqData"], list):
            values = [float(token.get("featAct", 0.0)) for token in tokens]
            bold = [i for i, token in enumerate(tokens) if token.get("isBold")]
            words = [_plain(token["tok"]) for token in tokens]
            yield {"tokens": words, "values": values, "qualifying_token_index": bold[0] if bold else None, **ends}


def _number(pattern: re.Pattern[str], title: str, by: float = 1) -> float | None:
    found = pattern.search(title)
    return None if found is None else float(found[1]) / by


def _share(text: str) -> float:
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)


def _plain(token: str) -> str:
    for written, meant in BREAKS.items():
        token = token.replace(written, meant)
    return token
