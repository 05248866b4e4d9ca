"""Data sets of the Hugging Face hub, streamed row by row: `hf:owner/name`, `hf:owner/name:config@split`."""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..errors import BadFile, cause, require
from ..hub import asked_once

PREFIX = "hf:"


def on_hub(path: Path) -> bool:
    """Whether it names a data set instead of a file."""
    return str(path).startswith(PREFIX)


def hub_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a data set, streamed: nothing is kept on disk. The split is `train` where none is named; behind
    `hf:` may also stand a folder that `datasets` reads.

    Raises:
        BadFile: no such data set, configuration or split, no network, or a file that breaks off.
    """
    datasets = require("datasets", "datasets")
    named = re.fullmatch(r"hf:([^:@]+)(?::([^:@]+))?(?:@([^:@]+))?", str(path))
    if named is None:
        raise BadFile(f"{str(path)!r:.100} names no data set; write hf:owner/name, or hf:owner/name:config@split")
    name, config, split = named.groups()
    number, silent = 0, None
    try:
        with nullcontext() if Path(name).exists() else asked_once() as silent:
            rows = datasets.load_dataset(name, config, split=split or "train", streaming=True)
        for row in rows:
            number += 1
            yield f"row {number}", row
    except Exception as error:  # of the hub's client, of the network, of each file format
        where = f"after {number:,} rows" if number else "at its start"
        why = f"the Hub {silent}, and it is not in the cache" if silent else cause(error)
        raise BadFile(
            f"the data set {path} cannot be read {where} ({why}); check its name, configuration and split, or "
            "download its files elsewhere and give their folder"
        ) from error
