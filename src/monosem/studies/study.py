"""Run a concept study: section by section, each kept as soon as it is done, then the report."""

import math
import os
import platform
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from .. import __version__
from ..dictionaries import Dictionary, one_site
from ..errors import BadFile, Mismatch, check_name, require
from ..files import check_writable, write_json
from ..jobs import claim, module_fingerprint
from ..latents.index import index_of
from ..models import Model
from ..plots import Figure
from ..reading import read_object
from ..results import Result
from . import report
from .config import StudyConfig
from .context import Context, Say
from .sections import SECTIONS, Section


@dataclass(frozen=True)
class StudyResult(Result):
    """A finished study: `results` is what `results.json` holds, `folder` is where the report is."""

    results: dict[str, Any]
    settings: StudyConfig
    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", {"analysis": "studies.run", **self.results["config"]})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "StudyResult":
        """A study that was finished before. Raises `BadFile` when the folder holds none."""
        results = read_object(Path(folder) / "results.json")
        if not isinstance(config := results.get("config"), dict):
            raise BadFile(f"{Path(folder) / 'results.json'} is damaged or no study's; run the study again")
        return cls(results, StudyConfig.parse(config), Path(folder))

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

    @property
    def figures(self) -> dict[str, Figure]:
        """The report's figures by name."""
        return report.figures_of(self.results)

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(what it shows, command) to see texts of the report again, in its precision, and to go on."""
        return report.commands(self.results)

    def plot(self, name: str = "dose_concept") -> Figure:
        """One figure of the report. Raises `UnknownName` for another name; `figures` has all."""
        figures = self.figures
        check_name("figure", name, figures)
        return figures[name]

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """As any result; a path without an ending is a folder, which gets the whole report once more."""
        if Path(path).suffix:
            return super().save(path, **plot)
        report.write(self.results, Path(path))
        return Path(path)


def run(
    concept: StudyConfig | str | os.PathLike[str] | dict[str, Any],
    *,
    folder: str | os.PathLike[str] | None = None,
    say: Say | None = print,
    quiet: bool = False,
    fresh: bool = False,
    model: Model | None = None,
    dictionary: Dictionary | None = None,
    trust_remote_code: bool = False,
) -> StudyResult:
    """A concept study from its config to its report.

    Each section is saved when it is done and taken from there when the same study is run again in the same folder, so
    Ctrl-C loses the section that was running and nothing else. The same study of another latent (`latent` in the
    config) in the same folder takes over the search; the report is then of that latent, and the first one's is kept.

    Args:
        concept: a config, a concept file, or the name of a shipped one.
        folder: where the report goes; default `runs/NAME`.
        say: called with each line of the findings as they come; None for silence.
        quiet: no progress bars.
        fresh: forget earlier sections in the folder.
        model, dictionary: already loaded ones, instead of those that the config names.
        trust_remote_code: as in `load_model`; a concept file cannot allow it.

    Raises:
        BadInput, BadFile, UnknownName: the config is wrong (the message names the field), or the folder not writable.
        Mismatch: dictionary and model do not belong together, or the folder holds another study.
        MissingExtra: plotly is not there (checked before anything is computed).
    """
    from ..models import load_model

    require("plotly", "plots")
    config = StudyConfig.load(concept)
    tell: Say = say or (lambda line: None)
    home = Path(folder or Path("runs") / config.name)
    check_writable(home / "report.html")  # which makes nothing: what fails below leaves no empty folder
    loaded = dictionary if dictionary is not None else one_site(config.dictionary, skip=config.skip)
    lm = model
    if lm is None:
        lm = load_model(config.model, dtype=config.dtype, trust_remote_code=trust_remote_code, quiet=quiet)
    context = Context(config, lm, loaded, index_of(loaded), home, tell, quiet)
    context.check()
    origin = provenance(lm, loaded, config)
    with _claimed(home, config, origin, fresh):
        (home / "sections").mkdir(exist_ok=True)
        config.write(home / "config.yaml", header="".join(f"# {name}: {value}\n" for name, value in origin.items()))
        sections: dict[str, dict[str, Any]] = {}
        for section in SECTIONS:
            sections[section.name] = _section(section, context, sections)
        results = {"config": config.model_dump(), "provenance": origin, "sections": sections}
        report.write(results, home)
    tell(f"report: {home / 'report.html'}")
    return StudyResult(results, config, home)


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
        "model_weights": module_fingerprint(model.hf),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "dictionary": dictionary.name,
        "dictionary_weights": module_fingerprint(dictionary),
    }


def _claimed(home: Path, config: StudyConfig, origin: dict[str, Any], fresh: bool) -> ExitStack:
    """The folder as this study's, until the returned context ends. Raises `Mismatch` where it holds another study."""
    made_with = {name: value for name, value in origin.items() if name not in ("seed", "config")}
    held = ExitStack()
    try:
        held.enter_context(claim(home, config, work="sections/**/*.json", made_with=made_with, fresh=fresh))
    except Mismatch as error:
        raise Mismatch(f"{error}, or start it afresh (fresh=True, --fresh)") from error
    return held


def _plain(value: Any) -> Any:
    """As JSON holds it (tuples are lists, keys strings) and NaN None, so that a resumed study holds the same values."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _section(section: Section, context: Context, earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
    path = _path(section, context, earlier)
    context.say(f"\n{section.letter}. {section.title}")
    if path.exists():
        result: dict[str, Any] = read_object(path)
    else:
        began = time.monotonic()
        data = section.make(context, earlier)
        result = _plain(data | {"seconds": round(time.monotonic() - began, 1)})
        path.parent.mkdir(exist_ok=True)
        write_json(path, result)
    for line in section.findings(result):
        context.say(f"   {line}")
    return result


def _path(section: Section, context: Context, earlier: dict[str, dict[str, Any]]) -> Path:
    """Where a section is kept: what is about the target latent in that latent's folder."""
    home, file = context.folder / "sections", f"{section.letter}-{section.name}.json"
    if not section.of_target:
        return home / file
    latent = context.config.latent
    return home / f"latent-{earlier['candidates']['target'] if latent is None else latent}" / file
