"""`benchmark`: every task for every dictionary, each kept as soon as it is done, and one report that compares them."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field

from .. import __version__
from ..dictionaries import Dictionary
from ..errors import BadInput, check_name, require
from ..files import check_writable, write_json
from ..jobs import JobConfig, claim, module_fingerprint
from ..models import Model
from ..plots import Figure
from ..progress import say
from ..reading import read_object
from ..results import Result
from . import report
from .rows import BENCHMARKS
from .task import Scores, Task, TaskConfig


class BenchmarkConfig(JobConfig):
    """What a folder of benchmarks was made with; dictionaries and tasks may be added to it later."""

    job: ClassVar[str] = "benchmark"
    not_decisive: ClassVar[frozenset[str]] = frozenset({"dictionaries", "tasks", "settings"})

    dictionaries: tuple[str, ...] = Field(min_length=1, description="names, as the report shows them")
    tasks: tuple[str, ...] = Field(min_length=1, description="rows of BENCHMARKS")
    settings: dict[str, dict[str, Any]] = Field({}, description="task -> fields of its config that differ")


@dataclass(frozen=True)
class BenchmarkReport(Result):
    """Finished benchmarks: `results` is what `results.json` holds, `folder` is where the report is."""

    results: dict[str, Any]
    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", {"analysis": "benchmarks.benchmark", **self.results["config"]})

    @property
    def scores(self) -> dict[str, dict[str, Scores]]:
        """dictionary -> task -> scores."""
        return report.scores_of(self.results)

    @property
    def table(self) -> pd.DataFrame:
        """The main number of each task: dictionary, task, measure, n, arm, value, low, high."""
        return report.headlines(self.results)

    def plot(self, name: str = "pareto_fve") -> Figure:
        """One figure of the report. Raises `UnknownName` for another name."""
        figures = report.figures(self.results)
        check_name("figure", name, figures)
        return figures[name][0]

    @property
    def html(self) -> Path:
        return self.folder / "report.html"


def benchmark(
    model: Model,
    dictionaries: Mapping[str, Dictionary],
    *,
    folder: str | os.PathLike[str],
    tasks: Sequence[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> BenchmarkReport:
    """Run tasks on dictionaries of one model, and write `report.html`, `report.md` and `results.json`.

    What is done is taken from the folder when the same is asked again, so an interrupted run goes on, and a folder can
    be given more dictionaries and tasks.

    Args:
        dictionaries: name in the report -> dictionary.
        tasks: rows of `BENCHMARKS`; default: all. One that is not defined for a dictionary is left out, and the report
            names it.
        settings: task -> fields of its config that differ from the defaults.
        fresh: forget what the folder holds.

    Raises:
        UnknownName: no such task. BadInput: no dictionary, a setting that the task does not have, or a task that was
            asked for and is defined for none of the dictionaries (both before anything is computed).
        Mismatch: a dictionary of another model, or a folder made with another model.
        MissingExtra: plotly is not there (checked before anything is computed).
    """
    require("plotly", "plots")
    given = {name: dict(fields) for name, fields in (settings or {}).items()}
    configs = task_configs(tasks, given)
    names = list(configs)
    if not dictionaries:
        raise BadInput("give at least one dictionary")
    for dictionary in dictionaries.values():
        dictionary.check(model)
    asked = names if tasks is not None else list(given)
    undefined = _undefined(dictionaries, configs, asked)
    config = BenchmarkConfig(dictionaries=tuple(dictionaries), tasks=tuple(names), settings=given)
    home = Path(folder)
    check_writable(home / "report.html")
    origin = provenance(model)
    with claim(home, config, work="scores/*.json", made_with=origin, fresh=fresh):
        (home / "scores").mkdir(exist_ok=True)
        found, left_out = _all(home, dictionaries, model, configs, undefined, asked, quiet)
        results = {"config": config.model_dump(mode="json"), "origin": origin, "scores": found, "left_out": left_out}
        report.write(results, home)
    return BenchmarkReport(results, home)


def _undefined(
    dictionaries: Mapping[str, Dictionary], configs: Mapping[str, TaskConfig], asked: Sequence[str]
) -> dict[tuple[str, str], BadInput]:
    """(dictionary, task) -> why the task is not defined for it. Raises `BadInput` for a task that was asked for and is
    for none of them, before the others are computed."""
    found: dict[tuple[str, str], BadInput] = {}
    for name, config in configs.items():
        for called, dictionary in dictionaries.items():
            try:
                BENCHMARKS[name].check(dictionary, config)
            except BadInput as error:
                found[called, name] = error
        if name in asked and all((called, name) in found for called in dictionaries):
            first, whose = next(iter(dictionaries)), "any of the dictionaries" if len(dictionaries) > 1 else "it"
            raise BadInput(f"{name} is not defined for {whose}: {found[first, name]}")
    return found


def _all(
    home: Path,
    dictionaries: Mapping[str, Dictionary],
    model: Model,
    configs: Mapping[str, TaskConfig],
    undefined: Mapping[tuple[str, str], BadInput],
    asked: Sequence[str],
    quiet: bool,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The scores of every dictionary and task, and what was left out."""
    found: dict[str, dict[str, Any]] = {called: {} for called in dictionaries}
    last, left_out = list(dictionaries)[-1], list[str]()
    for called in dictionaries:
        for name, config in configs.items():
            able = {other: one for other, one in dictionaries.items() if (other, name) not in undefined}
            try:
                if called not in able:
                    raise undefined[called, name]
                found[called][name] = _scores(home, called, able, model, name, config, quiet)
            except BadInput as error:
                if name in asked and called == last and not any(name in scores for scores in found.values()):
                    raise  # no dictionary has it
                left_out.append(f"{called}, {name}: {error}")
                say(f"left out: {left_out[-1]}", quiet)
    return found, left_out


def task_configs(
    tasks: Sequence[str] | None, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, TaskConfig]:
    """The config of each task that is asked for (None: of all). Raises `UnknownName` and `BadInput` as `benchmark`."""
    names, given = list(tasks or BENCHMARKS), settings or {}
    for name in [*names, *given]:
        check_name("benchmark", name, BENCHMARKS)
    configs = {name: _settings(name, given.get(name, {})) for name in [*names, *given]}
    return {name: configs[name] for name in names}


def _settings(name: str, fields: Mapping[str, Any]) -> TaskConfig:
    try:
        return BENCHMARKS[name].config.parse(fields)
    except BadInput as error:
        raise BadInput(f"settings of {name}: {str(error).removeprefix('benchmark: ')}") from error


def provenance(model: Model) -> dict[str, Any]:
    """What made the numbers, beside the dictionaries."""
    packages = {name: version(name) for name in ("torch", "transformers")}
    return {
        "monosem": __version__,
        "python": platform.python_version(),
        **packages,
        "model": model.name,
        "model_weights": module_fingerprint(model.hf),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _scores(
    home: Path,
    called: str,
    dictionaries: Mapping[str, Dictionary],
    model: Model,
    name: str,
    config: TaskConfig,
    quiet: bool,
) -> dict[str, Any]:
    """From the folder where the same was measured before; kept there otherwise."""
    if (held := _held(home, called, dictionaries[called], name, config)) is not None:
        return held
    task, one, pending = BENCHMARKS[name], dictionaries[called], {called: dictionaries[called]}
    if task.each is not None:  # dictionaries of one site share passes
        pending |= {
            other: theirs
            for other, theirs in dictionaries.items()
            if (theirs.site, theirs.site_out) == (one.site, one.site_out)
            and _held(home, other, theirs, name, config) is None
        }
    began, worked = time.monotonic(), time.process_time()
    say(f"{', '.join(pending)}: {name}", quiet)
    found = _measured(task, called, pending, model, config, quiet)
    times = {"seconds": time.monotonic() - began, "processor_seconds": time.process_time() - worked}
    made = {other: scores.to_dict() for other, scores in found.items()}
    for other, scores in made.items():
        scores["config"] |= {kind: round(taken / len(made), 1) for kind, taken in times.items()}  # each its share
        path, told = _place(home, other, dictionaries[other], name, config)
        write_json(path, {"told": told, "scores": scores})
    return made[called]


def _measured(
    task: Task, called: str, pending: Mapping[str, Dictionary], model: Model, config: TaskConfig, quiet: bool
) -> dict[str, Scores]:
    """All that is pending, or the one that was asked for where another of them is refused."""
    if task.each is not None and len(pending) > 1:
        with suppress(BadInput):
            return task.each(model, pending, config, quiet=quiet)
    return {called: task.run(model, pending[called], config, quiet=quiet)}


def _held(home: Path, called: str, dictionary: Dictionary, name: str, config: TaskConfig) -> dict[str, Any] | None:
    """The scores that the folder has of this dictionary with these settings."""
    path, told = _place(home, called, dictionary, name, config)
    held = read_object(path) if path.exists() else {}
    return dict(held["scores"]) if held.get("told") == told else None


def _place(
    home: Path, called: str, dictionary: Dictionary, name: str, config: TaskConfig
) -> tuple[Path, dict[str, Any]]:
    """The file of these scores, and what it says that they were made with."""
    path = home / "scores" / f"{called.replace('/', '--').replace(os.sep, '--').strip('.')}--{name}.json"
    return path, {"dictionary": dictionary.fingerprint, "config": config.model_dump(mode="json")}
