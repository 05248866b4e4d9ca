"""How a job takes a folder: alone, and only for the settings with which the work in it was begun."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import filelock

from ..errors import BadFile, BadInput, Mismatch
from ..files import remove_leftovers, writable_folder, write_json
from ..reading import read_json
from .config import JobConfig

FILE = "job.json"  # {"job": what it makes, "config": its settings, "made_with": what else decides the result}
LOCK = ".lock"
SHOWN = 60  # characters of a value in a message

Config = TypeVar("Config", bound=JobConfig)


@contextlib.contextmanager
def claim(
    folder: str | os.PathLike[str],
    config: JobConfig,
    *,
    work: str,
    made_with: Mapping[str, Any] | None = None,
    resume: bool = True,
    fresh: bool = False,
) -> Iterator[Path]:
    """Make a folder this job's while the block lasts: a new one, or one in which the same job was begun.

    A folder in which nothing was made is taken whatever it was claimed for. The settings are kept in `job.json`. What a
    killed process left half-written is removed, and a new folder in which the block fails before it made anything.

    Args:
        work: pattern of the files that the job makes on its way, such as "checkpoints/*.pt".
        made_with: what decides the result beside the config, as plain values: fingerprints of weights and text.
        resume: False refuses a folder that holds work.
        fresh: delete earlier work instead of going on with it.

    Raises:
        BadInput: the folder cannot be written to, another process works in it, or it holds work and `resume` is False.
        Mismatch: it holds work with other settings; every setting that differs is named.
        BadFile: it holds what another kind of job made, or work whose `job.json` is missing or damaged.
    """
    record, new = _record(config, made_with or {}), [path for path in _and_parents(folder) if not os.path.exists(path)]
    home = writable_folder(folder)
    with _locked(home, config.job), _removed_when_empty(home, new):
        if any(path.is_file() and path.name not in (FILE, LOCK) for path in home.rglob("*")):
            _check_owner(home, config.job)
        for place in {home, (home / work).parent}:
            remove_leftovers(place)
        if fresh:
            for path in home.glob(work):
                path.unlink()
        if any(home.glob(work)):
            if not resume:
                raise BadInput(f"{home} already holds a {config.job}; resume it or choose another folder")
            _compare(home, config, record)
        write_json(home / FILE, record)
        yield home


def claimed(folder: str | os.PathLike[str], config: type[Config]) -> Config:
    """The settings with which the work in a folder was made.

    Raises:
        BadFile: the folder holds no such job, or its `job.json` is damaged.
    """
    record = _read(Path(folder), config.job)
    try:
        return config.parse(record["config"])
    except BadInput as error:
        raise BadFile(f"{Path(folder) / FILE} is damaged or was made by another version: {error}") from error


def differences(before: Mapping[str, Any], now: Mapping[str, Any], but: frozenset[str] = frozenset()) -> list[str]:
    """`name: value before, now value` for every name `but` these whose values differ; `name.key` inside of tables."""
    before, now = (_flat({k: v for k, v in values.items() if k not in but}) for values in (before, now))
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return [f"{name}: {_short(before.get(name))}, now {_short(now.get(name))}" for name in names]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tables inside of tables as `name.key`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inside = _flat(value) if isinstance(value, dict) and value else None
        flat |= {name: value} if inside is None else {f"{name}.{key}": one for key, one in inside.items()}
    return flat


def _and_parents(folder: str | os.PathLike[str]) -> list[Path]:
    path = Path(folder)
    return [path, *path.parents]


@contextlib.contextmanager
def _removed_when_empty(home: Path, new: list[Path]) -> Iterator[None]:
    """When the block fails: remove the folders that are new, if nothing was made in them."""
    try:
        yield
    except BaseException:
        made = any(path.is_file() and path.name not in (FILE, LOCK) for path in home.rglob("*"))
        if home in new and not made:
            shutil.rmtree(home, ignore_errors=True)
            for parent in new[1:]:
                with contextlib.suppress(OSError):  # something else is in it by now
                    parent.rmdir()
        raise


def _compare(home: Path, config: JobConfig, record: Mapping[str, Any]) -> None:
    held = _read(home, config.job)
    said = {name: value for name, value in record["made_with"].items() if name in held["made_with"]}
    before, now = held["made_with"] | held["config"], said | record["config"]  # an earlier version says less
    if different := differences(before, now, config.not_decisive):
        raise Mismatch(
            f"{home} holds a {config.job} with other settings ({'; '.join(different)}); use the same settings, "
            "choose another folder, or delete this one to start anew"
        )


def _record(config: JobConfig, made_with: Mapping[str, Any]) -> dict[str, Any]:
    record = {"job": config.job, "config": config.model_dump(mode="json"), "made_with": dict(made_with)}
    return dict(json.loads(json.dumps(record)))  # as a file holds it: tuples are lists


def _read(home: Path, job: str) -> dict[str, Any]:
    try:
        record = read_json(home / FILE)
    except BadFile as error:
        raise BadFile(f"{error}; choose another folder, or delete {home} to start anew") from error
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in ("config", "made_with")):
        raise BadFile(f"{home / FILE} is damaged; delete {home} to start anew")
    _check_owner(home, job)
    return record


def _check_owner(home: Path, job: str) -> None:
    """Raises `BadFile` where the folder is another kind of job's; what no `job.json` explains is nobody's."""
    try:
        record = read_json(home / FILE)
    except BadFile:
        return
    if isinstance(record, dict) and record.get("job") != job:
        raise BadFile(f"{home} holds a {record.get('job')}, not a {job}; choose another folder")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _locked(home: Path, job: str) -> contextlib.AbstractContextManager[Any]:
    try:
        return filelock.FileLock(home / LOCK).acquire(timeout=0)
    except filelock.Timeout as error:
        raise BadInput(
            f"another process works on the {job} in {home}; wait until it ends, or choose another folder"
        ) from error
