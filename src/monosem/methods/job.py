"""`compare_methods`: concepts one after the other, each part kept as soon as it is done, and one report."""

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from .. import __version__
from ..dictionaries import Dictionary
from ..directions import Directions
from ..directions.direction import write_directions
from ..errors import BadInput, check_name, require
from ..files import check_writable, json_value, write_json
from ..jobs import claim, module_fingerprint
from ..models import Model
from ..plots import Figure
from ..progress import Meter
from ..reading import read_object
from ..results import Result
from . import report, verdicts
from .concept import Concept, concepts_of
from .config import MethodsConfig
from .detection import Detection, Scene, detect
from .parts import Material
from .steered import steer

DETECTING, STEERING = 35, 65  # of a concept's work, as progress counts it


@dataclass(frozen=True)
class MethodsReport(Result):
    """A finished comparison: `results` is what `results.json` holds, `folder` is where the report is.

    `table` has a row a method: means over the concepts of its test AUROC, of how far it moves the judge's chance at the
    same KL (`shift`), and of its score at the strength that the other half of the openings chooses; with intervals.
    """

    results: dict[str, Any]
    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", {"analysis": "methods.compare_methods", **self.results["config"]})

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.results["summary"])

    @property
    def detection(self) -> pd.DataFrame:
        """A row a concept and method: the place that the choose part chooses, and the test AUROC there."""
        return report.detection_table(self.results)

    @property
    def steering(self) -> pd.DataFrame:
        """A row a concept, method and budget."""
        return report.steering_table(self.results)

    @property
    def blind_judges(self) -> dict[str, dict[str, float]]:
        """Concepts whose judge is not shown to tell the test texts apart, with its AUROC and interval: how far methods
        steer is not known there."""
        facts = {name: (one["steering"] or {}).get("facts") for name, one in self.results["concepts"].items()}
        return {name: one["judge"] for name, one in facts.items() if one is not None and one["judge"]["low"] <= 0.5}

    @property
    def predict_control(self) -> pd.DataFrame:
        """Spearman's correlation of detection with steering: of each concept, and of all together."""
        return report.correlation_table(self.results)

    def directions(self, concept: str, method: str) -> Directions:
        """What a method found for a concept, at every layer. Raises `UnknownName`, `BadFile`."""
        check_name("concept", concept, self.results["concepts"])
        return Directions.load(self.folder / "concepts" / concept / f"{method}.safetensors")

    @property
    def html(self) -> Path:
        return self.folder / "report.html"

    def plot(self, name: str = "detection") -> Figure:
        """One figure of the report. Raises `UnknownName` for another name."""
        figures = report.figures(self.results)
        check_name("figure", name, figures)
        return figures[name][0]


def compare_methods(
    model: Model,
    concepts: Any,
    *,
    folder: str | os.PathLike[str],
    dictionary: Dictionary | None = None,
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> MethodsReport:
    """All methods of finding a concept side by side: how well each detects it on held-out texts, and how far it steers.

    Each concept's texts are split once, by groups, into parts for the judge, to fit on, to choose by and to measure on.
    States of all layers and positions are read in one pass. Strengths are matched by KL on half of the openings, and
    measured on the other half. What is done is taken from the folder when the same is asked again, and concepts may be
    added to it. Directions are kept as `concepts/NAME/METHOD.safetensors`.

    Args:
        concepts: files, folders of files, shipped studies' names, plain values, or several of these.
        dictionary: its best latent takes part.
        settings: fields of `MethodsConfig` that differ from the defaults.
        fresh: forget what the folder holds.

    Raises:
        BadInput: a setting or a concept that is wrong, or too few texts. UnknownName: no such concept, method or layer.
        Mismatch: the folder holds a comparison with other settings, or a dictionary of another model.
        MissingExtra: plotly is not there (checked before anything is computed).
    """
    require("plotly", "plots")
    chosen = concepts_of(concepts)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in (settings or {}).items()}
    config = MethodsConfig.parse({"concepts": tuple(one.name for one in chosen), **given})
    config.layers_of(model)
    if dictionary is not None:
        dictionary.check(model)
    home = Path(folder)
    check_writable(home / "report.html")
    origin = provenance(model, dictionary)
    with claim(home, config, work="concepts/**/*.json", made_with=origin, fresh=fresh):
        found = {}
        total = (DETECTING + STEERING) * len(chosen)
        with Meter("comparison", total=total, unit="%", quiet=quiet) as meter:
            for concept in chosen:
                found[concept.name] = _concept(home, model, dictionary, concept, config, meter)
        results: dict[str, Any] = {"config": config.model_dump(mode="json"), "origin": origin, "concepts": found}
        results["summary"] = verdicts.summary(found, config.budget)
        results["predict_control"] = verdicts.predict_control(found, config.budget)
        results = dict(json_value(results))
        report.write(results, home)
    return MethodsReport(results, home)


def provenance(model: Model, dictionary: Dictionary | None) -> dict[str, Any]:
    """What made the numbers."""
    packages = {name: version(name) for name in ("torch", "transformers")}
    return {
        "monosem": __version__,
        "python": platform.python_version(),
        **packages,
        "model": model.name,
        "model_weights": module_fingerprint(model.hf),
        "dtype": str(model.dtype).removeprefix("torch."),
        "dictionary": None if dictionary is None else dictionary.name,
        "dictionary_weights": None if dictionary is None else dictionary.fingerprint,
    }


def _concept(
    home: Path, model: Model, dictionary: Dictionary | None, concept: Concept, config: MethodsConfig, meter: Meter
) -> dict[str, Any]:
    """Both parts of a concept, from the folder where they were made before."""
    place = home / "concepts" / concept.name
    place.mkdir(parents=True, exist_ok=True)
    sizes = (config.fit, config.choose, config.test)
    material = Material.of(model, concept, sizes, config.longest, config.seed)
    scene = Scene(model, concept, config, material, dictionary)
    told = {"concept": concept.fingerprint}
    after = meter.done
    for file, work in (("detection.json", DETECTING), ("steering.json", STEERING)):
        if (place / file).exists():
            meter.first += work  # takes no time, and says nothing of the rate
    detection, directions, spent = _detected(place, replace(scene, meter=meter, work=DETECTING), told)
    meter.advance(after + DETECTING - meter.done)
    steering = _steered(place, replace(scene, meter=meter, work=STEERING), told, Detection(detection, directions))
    meter.advance(after + DETECTING + STEERING - meter.done)
    about = {"title": concept.called, "source": concept.source, "paired": concept.paired, "scorer": concept.scorer}
    asked = {"instruction": concept.asks_for_it, "question": concept.asks_about_it}
    parts = {"texts": material.counts, "detection": detection, "steering": steering}
    seconds = spent + (0.0 if steering is None else steering["facts"]["processor_seconds"])
    return about | asked | parts | {"processor_seconds": round(seconds, 1)}


def _detected(place: Path, scene: Scene, told: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
    """Rows, directions by method and site, and the processor's seconds."""
    path = place / "detection.json"
    if (held := _held(path, told)) is not None:
        kept = {name: Directions.load(place / f"{name}.safetensors") for name in held["directions"]}
        found = {name: {str(one.site): one for one in some} for name, some in kept.items()}
        return held["rows"], found, float(held["processor_seconds"])
    began = time.process_time()
    made = detect(scene)
    for name, sites in made.directions.items():
        write_directions(place / f"{name}.safetensors", list(sites.values()))
    rows: list[dict[str, Any]] = json_value(made.rows)
    spent = round(time.process_time() - began, 1)
    write_json(path, {"told": told, "rows": rows, "directions": list(made.directions), "processor_seconds": spent})
    return rows, dict(made.directions), spent


def _steered(place: Path, scene: Scene, told: dict[str, Any], detection: Detection) -> dict[str, Any] | None:
    """None for a concept without openings."""
    if not scene.concept.openings:
        return None
    path = place / "steering.json"
    if (held := _held(path, told)) is not None:
        return {"rows": held["rows"], "facts": held["facts"]}
    began = time.process_time()
    made = steer(scene, detection)
    found = {"rows": json_value(made.rows), "facts": json_value(made.facts)}
    found["facts"]["processor_seconds"] = round(time.process_time() - began, 1)
    write_json(path, {"told": told, **found})
    return found


def _held(path: Path, told: dict[str, Any]) -> dict[str, Any] | None:
    """What was kept of the same concept. Raises `BadInput` where the folder holds another one of its name."""
    if not path.exists():
        return None
    held = read_object(path)
    if held.get("told") != told:
        raise BadInput(
            f"{path.parent} holds another concept of the name {path.parent.name!r}: rename this one, remove that "
            "folder, or start afresh (fresh=True, --fresh)"
        )
    return held
