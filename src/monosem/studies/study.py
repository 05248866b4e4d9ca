"""Run a concept study: section by section, each kept as soon as it is done, then the report."""

import hashlib
import math
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import yaml

from .. import __version__
from ..dictionaries import Dictionary, load_dictionary
from ..errors import Mismatch, require
from ..files import read_json, writable_folder, write_json, write_text
from ..latents.index import index_of
from ..models import Model, load_model
from . import report
from .config import StudyConfig, load
from .context import Context, Say
from .sections import SECTIONS, Section

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SAMPLED = 4096  # at least so many values of each weight go into the fingerprint of a model, at most twice as many


@dataclass(frozen=True)
class StudyResult:
    """A finished study: `results` is what `results.json` holds, `folder` is where the report is."""

    results: dict[str, Any]
    config: StudyConfig
    folder: Path

    @property
    def table(self) -> pd.DataFrame:
        """One row an arm: what was done, and its effect on test and control prompts."""
        return report.arms_table(self.results)

    @property
    def headline(self) -> str:
        return str(self.results["sections"]["conclusion"]["headline"])

    @property
    def html(self) -> Path:
        return self.folder / "report.html"

    def plot(self) -> dict[str, "Figure"]:
        """The report's figures by name."""
        return report.figures_of(self.results)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the report once more, elsewhere."""
        report.write(self.results, Path(folder))


def run(
    concept: StudyConfig | str | os.PathLike[str] | dict[str, Any],
    folder: str | os.PathLike[str] | None = None,
    say: Say | None = print,
    quiet: bool = False,
    fresh: bool = False,
    model: Model | None = None,
    dictionary: Dictionary | None = None,
) -> StudyResult:
    """A concept study from its config to its report.

    Each section is saved when it is done and taken from there when the same study is run again in the same folder, so
    Ctrl-C loses the section that was running and nothing else.

    Args:
        concept: a config, a concept file, or the name of a shipped one.
        folder: where the report goes; default `runs/NAME`.
        say: called with each line of the findings as they come; None for silence.
        quiet: no progress bars.
        fresh: forget earlier sections in the folder.
        model, dictionary: already loaded ones, instead of those that the config names.

    Raises:
        BadInput, BadFile, UnknownName: the config is wrong (the message names the field), or the folder not writable.
        Mismatch: dictionary and model do not belong together, or the folder holds another study.
        MissingExtra: plotly is not there (checked before anything is computed).
    """
    require("plotly", "plots")
    config = load(concept)
    tell: Say = say or (lambda line: None)
    home = writable_folder(folder or Path("runs") / config.name)
    loaded = dictionary if dictionary is not None else load_dictionary(config.dictionary)
    lm = model if model is not None else load_model(config.model, dtype=config.dtype)
    context = Context(config, lm, loaded, index_of(loaded), home, tell, quiet)
    context.check()
    origin = provenance(lm, loaded, config)
    _claim(home, config, origin, fresh)
    sections: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        sections[section.name] = _section(section, context, sections)
    results = {"config": config.model_dump(), "provenance": origin, "sections": sections}
    write_json(home / "results.json", results)
    report.write(results, home)
    tell(f"report: {home / 'report.html'}")
    return StudyResult(results, config, home)


def open_study(folder: str | os.PathLike[str]) -> StudyResult:
    """A study that was finished before."""
    results = read_json(Path(folder) / "results.json")
    return StudyResult(results, load(results["config"]), Path(folder))


def provenance(model: Model, dictionary: Dictionary, config: StudyConfig) -> dict[str, Any]:
    """What made the numbers: versions, seeds and hashes. A folder's study is only continued with the same ones."""
    packages = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {
        "monosem": __version__,
        "python": platform.python_version(),
        **packages,
        "seed": config.seed,
        "config": config.fingerprint,
        "model": model.name,
        "model_weights": _fingerprint(model.hf),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "dictionary": dictionary.name,
        "dictionary_weights": _fingerprint(dictionary),
    }


def _fingerprint(module: torch.nn.Module) -> str:
    """Hash of every parameter's name, shape and some thousand evenly spaced values: quick, and notices training."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // SAMPLED)].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:16]


def _claim(home: Path, config: StudyConfig, origin: dict[str, Any], fresh: bool) -> None:
    """Make the folder this study's, or continue in it."""
    kept, marker = home / "sections", home / "sections" / "provenance.json"
    if marker.exists() and not fresh:
        held = read_json(marker)
        other = [name for name, value in origin.items() if held.get(name) != value]
        if other:
            raise Mismatch(
                f"{home} holds a study with another {', '.join(other)}; choose another folder or start it afresh "
                "(fresh=True, --fresh)"
            )
    else:
        for old in kept.glob("*.json"):
            old.unlink()
    writable_folder(kept)
    write_json(marker, origin)
    header = "".join(f"# {name}: {value}\n" for name, value in origin.items())
    write_text(home / "config.yaml", header + yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    """As JSON holds it (tuples are lists, keys strings) and NaN None, so that a resumed study holds the same values."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _section(section: Section, context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    path = context.folder / "sections" / f"{section.letter}-{section.name}.json"
    context.say(f"\n{section.letter}. {section.title}")
    if path.exists():
        result: dict[str, Any] = read_json(path)
    else:
        began = time.monotonic()
        made = section.make(context, earlier)
        result = _plain(made | {"seconds": round(time.monotonic() - began, 1)})
        write_json(path, result)
    for line in section.findings(result):
        context.say(f"   {line}")
    return result
