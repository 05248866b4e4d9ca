"""Labelled texts for benchmarks: the bundled sets, files of your own, and the sets of an installed sae-probes."""

import gzip
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pandas as pd

from ..errors import BadFile, BadInput, MissingExtra, UnknownName, check_name, require
from ..models import Model
from ..reading import parse_json

SETS = Path(__file__).parent / "sets"
SAE_PROBES = "sae-probes:"
SUFFIX = ".csv.zst"
FEWEST = 20  # rows of a class below which a split says nothing


@dataclass(frozen=True)
class Labelled:
    """Texts with a label each, and a group where texts belong together. Raises `BadInput` unless there are two classes
    with `FEWEST` rows each."""

    name: str
    texts: Sequence[str]
    labels: Sequence[str]
    groups: Sequence[str] = ()

    def __post_init__(self) -> None:
        counts = Counter(self.labels)
        if len(self.texts) != len(self.labels) or len(counts) < 2 or min(counts.values()) < FEWEST:
            raise BadInput(
                f"set {self.name!r} needs a label a text and at least {FEWEST} texts of each of two labels or more; "
                f"it has {len(self.texts)} texts and {dict(counts)!s:.200}"
            )

    @property
    def classes(self) -> list[str]:
        """The labels in order of their names."""
        return sorted(set(self.labels))

    def first(self, most: int) -> "Labelled":
        """The first texts of each class, so many of each that there are `most` in all, or fewer."""
        each, seen, kept = max(FEWEST, most // len(self.classes)), Counter[str](), []
        for row, label in enumerate(self.labels):
            seen[label] += 1
            if seen[label] <= each:
                kept.append(row)
        columns = [[column[row] for row in kept] if column else () for column in (self.texts, self.labels, self.groups)]
        return Labelled(self.name, *columns)


def bundled_sets() -> list[str]:
    """Names of the sets that ship with the package and have a label a text."""
    return sorted(path.name.removesuffix(".jsonl.gz") for path in SETS.glob("*.jsonl.gz") if "occup" not in path.name)


def labelled(name: str) -> Labelled:
    """A bundled set by name, `sae-probes:NAME` of the installed wheel (`sae-probes:` alone: an error that lists them),
    or a .csv, .jsonl or .jsonl.gz file with the columns text (or prompt) and label (or target).

    Raises:
        UnknownName: no such set. BadFile: a file that cannot be read. MissingExtra: sae-probes or zstandard is missing.
        BadInput: too few rows; in a file, a row that lacks a cell, or a text with two labels.
    """
    if name.startswith(SAE_PROBES):
        return _sae_probes(name.removeprefix(SAE_PROBES))
    path = Path(name)
    if path.suffix in (".csv", ".jsonl", ".gz"):
        return _of(name, _whole(name, _read(path)))
    if name not in bundled_sets() and path.exists():
        raise BadFile(f"{name}: labelled texts are a .csv, .jsonl or .jsonl.gz file with the columns text and label")
    check_name("set", name, bundled_sets())
    return _of(name, pd.DataFrame(rows(name)))


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a bundled file."""
    lines = gzip.decompress((SETS / f"{name}.jsonl.gz").read_bytes()).decode().splitlines()
    return [parse_json(line) for line in lines]


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_json(path, lines=True, dtype=False)
    except (OSError, ValueError, EOFError) as error:  # pandas' parsers raise ValueError
        raise BadFile(f"{path} cannot be read as labelled rows: {error}") from error


def _whole(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table of a user, in which nothing is left out in silence."""
    for column in [one for one in ("text", "prompt", "label", "target", "group") if one in table]:
        lacking = table[column].isna() | (table[column].astype(str).str.strip() == "")
        if lacking.any():
            row = int(lacking.to_numpy().argmax())
            raise BadInput(
                f"set {name!r}: row {row + 1} has no {column} ({int(lacking.sum())} such rows): fill it, or take it "
                "out (a word such as NA or null is read as an empty cell)"
            )
    text, label = (
        next((one for one in pair if one in table), "") for pair in (("text", "prompt"), ("label", "target"))
    )
    if text and label and (both := table.groupby(text)[label].nunique().gt(1)).any():
        raise BadInput(
            f"set {name!r}: {int(both.sum())} texts have two labels, such as {str(both.idxmax())!r:.60}: keep one "
            "of each"
        )
    return table


def _of(name: str, table: pd.DataFrame) -> Labelled:
    columns = [
        next((one for one in names if one in table), None) for names in (("text", "prompt"), ("label", "target"))
    ]
    if None in columns:
        raise BadFile(f"set {name!r} needs the columns text and label (or prompt and target), not {list(table)!s:.200}")
    columns += ["group"] if "group" in table else []
    kept = table[columns].dropna()
    return Labelled(name, *([str(one) for one in kept[column]] for column in columns))


def _sae_probes(name: str) -> Labelled:
    """Reads the files of the wheel; the package itself, which needs much more, is not imported."""
    try:
        held = {
            str(one.name).removesuffix(SUFFIX): one for one in files("sae-probes") or () if str(one).endswith(SUFFIX)
        }
    except PackageNotFoundError as error:
        raise MissingExtra("sets of sae-probes need its wheel: pip install --no-deps sae-probes==0.4.2") from error
    if name not in held:
        raise UnknownName(f"sae-probes has no set {name!r}; it has {', '.join(sorted(held))}")
    require("zstandard", "benchmarks")
    return _of(SAE_PROBES + name, pd.read_csv(str(held[name].locate())))


def clipped(model: Model, texts: Sequence[str], most: int) -> list[list[int]]:
    """The first tokens of each text, with what the tokenizer puts before it; no more than the model's context."""
    return [[*model.prefix, *model.bare(text)][: min(most, model.cfg.n_ctx)] for text in texts]
