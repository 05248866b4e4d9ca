"""Latents in Neuronpedia's formats: sae-dashboard's batch JSON, jsonl.gz as its public export has them, uploads, lists,
and rows as its API gives them.

The numbers are the index's own: shares are of all counted tokens, intervals hold no silent token, an example has its
first token and its anchor. `dashboards` reads such files.
"""

import gzip
import json
import os
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import BadInput, check_name
from ..files import json_value, replacing, writable_folder, write_json, write_text
from ..models import Model, Site
from .dashboards import OWN, TOP
from .geometry import neighbours
from .index import Index
from .latent_page import page
from .layout import EDGES

BATCH = 128  # latents a file, as many as one upload may have
LISTED = 3  # correlated latents
NEAREST = 25  # latents with the most similar decoder rows
UPLOADED = 20  # tokens a list of an upload
SITE = "https://www.neuronpedia.org"
CREATOR = "clkht01d40000jv08hvalcvly"  # of exports without an account there, as sae-dashboard's converter has it

Feature = dict[str, Any]


def write_dashboards(
    index: Index,
    latents: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    form: str = "batch",
    source: str = "monosem",
    model_id: str | None = None,
    model: Model | None = None,
) -> list[Path]:
    """Write latents for Neuronpedia and tools that read its files.

    Args:
        form: "batch": `batch-0.json`, ... as sae-dashboard writes them. "jsonl": what an import reads: in
            `features`, `activations` and `explanations` files `batch-0.jsonl.gz`, and beside these `release.jsonl`,
            `model.jsonl`, `sourceset.jsonl` and `source.jsonl`; the folder is the export's `{model}/{layer}-{source}`.
            "upload": `upload-0.json`, ..., bodies of `POST /api/feature/upload-batch`.
        source: the source set: a latent's source there is `{layer}-{source}`. It is the release's name, too.
        model_id: the model's name there; default: the index's.
        model: as in `page`.

    Returns:
        the files.

    Raises:
        UnknownName: no such latent, or form. BadInput: no latents, or an unwritable folder. BadFile: a damaged index.
    """
    check_name("form", form, FORMS)
    if not len(latents):
        raise BadInput("give at least one latent to write")
    home, written = writable_folder(folder), []
    about = {
        "model_id": model_id or index.meta["model"],
        "layer": layer_of(index),
        "sae_set": source,
        "sae_id_suffix": None,
    }
    if form == "jsonl":
        written += _described(home, about, index, latents)
    for number, start in enumerate(range(0, len(latents), BATCH)):
        features = [_feature(index, latent, model) for latent in latents[start : start + BATCH]]
        written += FORMS[form](home, number, about, features, index)
    return written


def neuron_row(index: Index, latent: int, *, model_id: str, source: str, model: Model | None = None) -> Feature:
    """A latent as `GET /api/feature/{model}/{source}/{index}` gives it: one object, its examples and labels inside.

    Args:
        source: with its layer, such as "6-res-jb".
        model: as in `page`.

    Raises:
        UnknownName: no such latent. BadFile: a damaged index.
    """
    feature = _feature(index, latent, model)
    named = {"modelId": model_id, "layer": source, "index": str(latent)}
    return {
        **_row(named, source.partition("-")[2], feature, index),
        "explanations": [*_explanations(named, index, latent)],
        "activations": [*_example_rows(named, feature)],
    }


def layer_of(index: Index) -> int:
    """The layer of its site; 0 where the site has none."""
    return Site.parse(str(index.meta["site"])).layer or 0


def quick_list_url(index: Index, latents: Sequence[int], name: str, *, source: str, model_id: str | None = None) -> str:
    """The address of a page of Neuronpedia that lists latents of a public source (such as "6-res-jb")."""
    own = model_id or index.meta["model"]
    features = [{"modelId": own, "layer": source, "index": str(index.checked(latent))} for latent in latents]
    return f"{SITE}/quick-list/?{urllib.parse.urlencode({'name': name, 'features': json.dumps(features)})}"


def _feature(index: Index, latent: int, model: Model | None) -> Feature:
    """A latent with sae-dashboard's names."""
    data = page(index, latent, model=model).to_json()
    statistics, logits = data["statistics"], data.get("logits") or {}
    histogram = data["histogram"]
    return {
        "feature_index": data["latent"],
        **_columns("neuron_alignment", data.get("neurons", {}).get("rows", []), ("neuron", "value", "share"), "values"),
        **_columns("correlated_neurons", [], ("neuron", "pearson", "cosine"), "pearson"),
        **_columns("correlated_features", _correlated(index, data), ("latent", "pearson", "cosine"), "pearson"),
        **{
            f"{key}_{name}": [one[field] for one in logits.get(side, [])]
            for side, key in (("suppressed", "neg"), ("promoted", "pos"))
            for name, field in (("str", "token"), ("values", "effect"))
        },
        "frac_nonzero": statistics["density"],
        "freq_hist_data_bar_values": [(one["low"] + one["high"]) / 2 for one in histogram],
        "freq_hist_data_bar_heights": [one["count"] for one in histogram],
        **_logit_bars(logits.get("histogram")),
        "n_prompts_total": index.meta["windows"],
        "n_tokens_in_prompt": index.meta["context"],
        "dataset": f"{OWN}{index.meta.get('corpus') or 'text given'}",
        "decoder_weights_dist": [one["share"] for one in data.get("heads", [])],
        "activations": [*_activations(data)],
        "vector": [],
    }


def _columns(key: str, rows: list[dict[str, Any]], names: tuple[str, ...], second: str) -> Feature:
    ends = ("indices", second, "l1")
    return {f"{key}_{end}": [row[name] for row in rows] for end, name in zip(ends, names)}


def _correlated(index: Index, data: dict[str, Any]) -> list[dict[str, Any]]:
    """The most correlated latents of the whole dictionary, with the cosine of their decoder rows."""
    rows = [row for row in data.get("coactive", []) if row["pearson"] is not None]
    best = sorted(rows, key=lambda row: -row["pearson"])[:LISTED]
    if not best or index.dictionary is None:
        return []
    cosines = dict(neighbours(index.dictionary, data["latent"], n=index.width))
    return [{**row, "cosine": cosines[row["latent"]]} for row in best]


def _logit_bars(histogram: dict[str, Any] | None) -> Feature:
    edges, counts = (histogram["edges"], histogram["counts"]) if histogram else ([], [])
    values = [(low + high) / 2 for low, high in pairwise(edges)]
    return {"logits_hist_data_bar_heights": counts, "logits_hist_data_bar_values": values}


def _activations(data: dict[str, Any]) -> Iterator[Feature]:
    statistics = data["statistics"]
    for example in data["examples"]:
        yield _activation(example, TOP, statistics["maximum"], TOP)
    for band in data["intervals"]:
        # an interval begins above 0: the lowest at the weakest bin with an active token
        low = band["low"] or max(data["histogram"][0]["low"], float(EDGES[0]))
        for example in band["examples"]:
            yield _activation(example, low, band["high"], band["share"] * statistics["density"])


def _activation(example: dict[str, Any], low: float, high: float, share: float) -> Feature:
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "tokens": example["tokens"],
        "values": example["activations"],
        "qualifying_token_index": example["anchor"],
        "dfa_values": [],
        "dfa_maxValue": 0,
        "dfa_targetIndex": -1,
    }


# --- forms ----------------------------------------------------------------------------------------------------------


def _batch(home: Path, number: int, about: Feature, features: list[Feature], index: Index) -> list[Path]:
    write_json(home / f"batch-{number}.json", json_value(about | {"features": features}))
    return [home / f"batch-{number}.json"]


def _jsonl(home: Path, number: int, about: Feature, features: list[Feature], index: Index) -> list[Path]:
    source = f"{about['layer']}-{about['sae_set']}"
    rows: dict[str, list[Feature]] = {"features": [], "activations": [], "explanations": []}
    for feature in features:
        named = {"modelId": about["model_id"], "layer": source, "index": str(feature["feature_index"])}
        rows["features"].append(_row(named, about["sae_set"], feature, index))
        rows["activations"] += _example_rows(named, feature)
        rows["explanations"] += _explanations(named, index, feature["feature_index"])
    written = []
    for kind, listed in rows.items():
        if not listed and kind == "explanations":
            continue
        path = writable_folder(home / kind) / f"batch-{number}.jsonl.gz"
        text = "".join(json.dumps(json_value(row), ensure_ascii=False) + "\n" for row in listed)
        with replacing(path) as temporary:
            temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
        written.append(path)
    return written


def _row(named: Feature, source_set: str, feature: Feature, index: Index) -> Feature:
    """The line of a latent in `features/`, without its examples."""
    kept = {key: value for key, value in feature.items() if key not in ("feature_index", "activations")}
    highest = max((max(one["values"]) for one in feature["activations"]), default=0.0)
    near = [] if index.dictionary is None else neighbours(index.dictionary, feature["feature_index"], n=NEAREST)
    return {
        **named,
        "creatorId": CREATOR,
        "sourceSetName": source_set,
        "maxActApprox": highest,
        "hasVector": False,
        "vectorLabel": None,
        "vectorDefaultSteerStrength": 10,
        "hookName": Site.parse(str(index.meta["site"])).hook_name,
        "topkCosSimIndices": [latent for latent, _ in near],
        "topkCosSimValues": [cosine for _, cosine in near],
        **kept,
    }


def _example_rows(named: Feature, feature: Feature) -> Iterator[Feature]:
    """The lines of a latent's examples in `activations/`."""
    for place, one in enumerate(feature["activations"]):
        values = one["values"]
        yield {
            **named,
            "id": f"{named['layer']}-{named['index']}-{place}",
            "creatorId": CREATOR,
            "tokens": one["tokens"],
            "values": values,
            "maxValue": max(values),
            "maxValueTokenIndex": values.index(max(values)),
            "minValue": min(values),
            "binMin": one["bin_min"],
            "binMax": one["bin_max"],
            "binContains": one["bin_contains"],
            "qualifyingTokenIndex": one["qualifying_token_index"],
            "dataIndex": None,
            "dataSource": None,
            "dfaValues": [],
            "dfaTargetIndex": None,
            "dfaMaxValue": None,
            "lossValues": [],
            "logitContributions": None,
        }


def _explanations(named: Feature, index: Index, latent: int) -> Iterator[Feature]:
    """The lines of its labels in `explanations/`: one, or none."""
    held = index.explanations
    if held is not None and latent in held.all:
        one = held.all[latent]
        score = {"value": one.score, "explanationScoreTypeName": "monosem held-out balanced accuracy"}
        about = {"id": f"{named['layer']}-{latent}", "authorId": CREATOR, "description": one.label}
        scores = [score] if one.fires.of and one.quiet.of else []
        yield {**named, **about, "typeName": "monosem", "explanationModelName": held.method, "scores": scores}


def _described(home: Path, about: Feature, index: Index, latents: Sequence[int]) -> list[Path]:
    """The files that say what the export is of: one line each."""
    model, name = about["model_id"], about["sae_set"]
    when, owned = datetime.now(UTC).isoformat(), {"creatorId": CREATOR, "visibility": "PUBLIC"}
    words = f"{len(latents):,} latents of {index.meta['dictionary']} at {index.meta['site']}, written by monosem"
    rows: dict[str, Feature] = {
        "release": {
            "name": name,
            "description": words,
            "descriptionShort": name,
            "creatorName": "monosem",
            "creatorNameShort": "monosem",
            "urls": [],
            "isNewUi": False,
            "featured": False,
        },
        "model": {
            "id": model,
            "displayName": model,
            "displayNameShort": model,
            "instruct": False,
            "owner": "",
            "layers": 0,
            "neuronsPerLayer": 0,
            "inferenceEnabled": False,
            "updatedAt": when,
        },
        "sourceset": {
            "modelId": model,
            "name": name,
            "description": words,
            "type": "",
            "creatorName": "monosem",
            "releaseName": name,
            "hasDashboards": True,
            "urls": [],
        },
        "source": {
            "id": f"{about['layer']}-{name}",
            "modelId": model,
            "setName": name,
            "hasDashboards": True,
            "num_prompts": index.meta["windows"],
            "num_tokens_in_prompt": index.meta["context"],
            "dataset": index.meta.get("corpus") or "text given",
            "inferenceEnabled": False,
            "notes": words,
        },
    }
    for kind, row in rows.items():
        write_text(home / f"{kind}.jsonl", json.dumps(row | owned | {"createdAt": when}) + "\n")
    return [home / f"{kind}.jsonl" for kind in rows]


def _upload(home: Path, number: int, about: Feature, features: list[Feature], index: Index) -> list[Path]:
    def tokens(feature: Feature, key: str) -> list[Feature]:
        pairs = zip(feature[f"{key}_str"], feature[f"{key}_values"])
        return [{"token": token, "value": value} for token, value in pairs][:UPLOADED]

    source = f"{about['layer']}-{about['sae_set']}"
    listed = [
        {
            "index": feature["feature_index"],
            "density": feature["frac_nonzero"],
            "topLogits": tokens(feature, "pos"),
            "bottomLogits": tokens(feature, "neg"),
            "explanations": [
                {"text": one["description"][:512], "methodName": one["typeName"]}
                for one in _explanations({"layer": source}, index, feature["feature_index"])
            ],
            "activations": [
                {
                    "tokens": one["tokens"],
                    "values": one["values"],
                    "quantileMin": None if one["bin_min"] == TOP else one["bin_min"],
                    "quantileMax": one["bin_max"],
                    "quantileFraction": None if one["bin_contains"] == TOP else one["bin_contains"],
                }
                for one in feature["activations"]
            ],
        }
        for feature in features
    ]
    body = {"modelId": about["model_id"], "source": source, "features": listed}
    write_json(home / f"upload-{number}.json", json_value(body))
    return [home / f"upload-{number}.json"]


FORMS: dict[str, Callable[[Path, int, Feature, list[Feature], Index], list[Path]]] = {
    "batch": _batch,
    "jsonl": _jsonl,
    "upload": _upload,
}
