"""What a job measured so far: a file a part, sealed, so that a damaged one is not taken for a measurement."""

import json
from pathlib import Path
from typing import Any

from ..errors import BadFile
from ..files import write_json
from ..reading import read_object
from .fingerprint import fingerprint


def write_part(path: Path, data: dict[str, Any]) -> None:
    """Keep plain values (as JSON has them), with their seal; the folder is made where it is missing."""
    write_json(path, {"seal": _seal(data), "data": data})


def read_part(path: Path) -> dict[str, Any]:
    """What `write_part` kept.

    Raises:
        BadFile: the file is cut off, was changed, or holds something else.
    """
    try:
        held = read_object(path)
    except BadFile as error:
        raise BadFile(f"{error}; delete it, and it is measured again") from error
    data = held.get("data")
    if not isinstance(data, dict) or held.get("seal") != _seal(data):
        raise BadFile(f"{path} is damaged or was changed; delete it, and it is measured again")
    return data


def _seal(data: dict[str, Any]) -> str:
    return fingerprint(json.dumps(data, sort_keys=True))
