"""Pairs of prompts from files: CSV with a column a side, JSON with an object a pair, auto-circuit's JSON."""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BadFile, UnknownName, did_you_mean
from ..models.numbers import count
from ..reading import parse_json, read_text
from .tasks import token_at
from .token_pairs import TokenPairs

if TYPE_CHECKING:
    from ..models import Model

# what a column may be called, ours first
CLEAN = ("clean", "clean_prompt", "prompt")
CORRUPTED = ("corrupted", "corrupt", "corrupted_prompt", "counterfactual")
RIGHT = ("right", "answer", "answers", "correct")
WRONG = ("wrong", "wrong_answer", "wrong_answers", "incorrect")
IDS = (("correct_idx", "incorrect_idx"), ("right_id", "wrong_id"))

Row = Mapping[str, Any]


def read_pairs(
    model: "Model",
    path: str | os.PathLike[str],
    *,
    corrupted: str | None = None,
    answer_ids: Literal["recompute", "keep"] = "recompute",
    drop_unaligned: bool = False,
    joint: bool = False,
    limit: int | None = None,
) -> TokenPairs:
    """Pairs from a `.csv`, `.json` or `.jsonl` file, checked like `TokenPairs.of`.

    A row has `clean` and `corrupted` (or `corrupt`) and mostly `right` and `wrong` (or `answer(s)`, `wrong_answer(s)`):
    the answers as text, with the space before a word; several are a list in JSON, and in CSV separated by "|". JSON is
    a list of such objects, a list of [clean, corrupted] lists, or {"prompts": [...]} as auto-circuit writes it.

    Columns of token ids (`correct_idx`, `incorrect_idx`) are of whatever tokenizer made the file. With
    `answer_ids="recompute"` they are not used: the answers are found in the text, which works for indirect-object
    sentences ("... X and Y ... X ... to": right is the name that comes once, wrong the one that comes twice); `notes`
    says so. With "keep" the ids are taken as this model's, and so are answers that are numbers, which are refused else.

    Args:
        corrupted: the column of the corrupted prompts, where there are several (such as "corrupted_hard").
        drop_unaligned: leave out pairs that do not align or whose answers are not single tokens; `notes` counts them.
        joint: answers may be several tokens, as in `TokenPairs.of`; one answer a side and pair.
        limit: at most so many rows, from the start.

    Raises:
        BadFile: missing, not readable, a column is missing, or the answers cannot be found; names row and column.
        BadInput: pairs that do not align. UnknownName: no column `corrupted`.
    """
    rows, sides = _sides(path, corrupted, limit)
    (clean_name, clean), (corrupted_name, other) = sides
    right, wrong, notes, names = _answers(rows, clean, path, answer_ids)
    source = f"{Path(path).name}, {clean_name} against {corrupted_name}"
    spans = _name_spans(model, clean, names) if names else {}
    pairs = TokenPairs.of(
        model, clean, other, right, wrong, spans=spans, drop_unaligned=drop_unaligned, joint=joint, source=source,
        notes=notes,
    )  # fmt: skip
    pairs.spans["end"] = pairs.clean.lengths - 1
    return pairs


def check_pairs(path: str | os.PathLike[str], corrupted: str | None = None) -> None:
    """Raises what `read_pairs` raises of a file and its prompts, without a model."""
    _sides(path, corrupted)


def _sides(
    path: str | os.PathLike[str], corrupted: str | None, limit: int | None = None
) -> tuple[list[Row], list[tuple[str, list[str]]]]:
    """Rows, and the clean and the corrupted column: its name, and its prompts."""
    rows = list(_rows(Path(path)))[: None if limit is None else count(limit, "limit")]
    if not rows:
        raise BadFile(f"{path} has no pairs")
    names = _column(rows, CLEAN, path), _column(rows, CORRUPTED, path, corrupted)
    return rows, [(name, _texts(rows, name, path)) for name in names]


def read_options(path: str | os.PathLike[str], *, limit: int | None = None) -> list[tuple[str, list[str]]]:
    """Prompts with ways to go on, of which the first is right, from a `.csv`, `.tsv`, `.json` or `.jsonl` file.

    A row has `prompt` (or `clean`), `right` (or `answer`) and `wrong` as text, with the space before a word; several
    wrong ones are a list in JSON, and in CSV separated by "|".

    Raises:
        BadFile: missing, not readable, a column is missing, a row has no text, two right options, or a wrong option
            that is its right one; names row and column.
    """
    rows = list(_rows(Path(path)))[: None if limit is None else count(limit, "limit")]
    if not rows:
        raise BadFile(f"{path} has no rows")
    prompt, right, wrong = (_column(rows, names, path) for names in (CLEAN, RIGHT, WRONG))
    found = []
    for number, (text, row) in enumerate(zip(_texts(rows, prompt, path), rows)):
        one, others = (_given(row, name, number, path, "recompute") for name in (right, wrong))
        others = others if isinstance(others, list) else [others]
        if isinstance(one, list):
            raise BadFile(f"{path}, pair {number}: {right!r} has {len(one)} answers, and one is right here")
        if one in others:
            raise BadFile(f"{path}, pair {number}: {one!r} is in {right!r} and in {wrong!r}")
        found.append((text, [one, *others]))
    return found


# --------------------------------------------------------------------------------------------------------------- rows


def _rows(path: Path) -> Iterable[Row]:
    readers = {".csv": _csv, ".tsv": lambda text: _csv(text, "\t"), ".json": _json, ".jsonl": _jsonl}
    if path.suffix not in readers:
        raise BadFile(f"{path}: pairs are read from {', '.join(readers)}")
    text = read_text(path)
    try:
        rows = list(readers[path.suffix](text))
    except (ValueError, csv.Error) as error:
        raise BadFile(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise BadFile(f"{path}, pair {number}: an object with clean and corrupted is needed, not {str(row)[:60]!r}")
    return rows


def _csv(text: str, separator: str = ",") -> Iterable[Row]:
    for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=separator):
        listed = {
            name: value.split("|") for name, value in row.items() if name in RIGHT + WRONG and "|" in (value or "")
        }
        yield row | listed


def _json(text: str) -> Iterable[Row]:
    value = parse_json(text)
    if isinstance(value, dict):
        value = value.get("prompts", value)
    if not isinstance(value, list):
        raise ValueError("a list of pairs is needed, or an object with prompts")
    return [dict(zip(("clean", "corrupted"), row)) if isinstance(row, list) else row for row in value]


def _jsonl(text: str) -> Iterable[Row]:
    return [parse_json(line) for line in text.split("\n") if line.strip()]


def _column(rows: Sequence[Row], names: Sequence[str], path: object, wanted: str | None = None) -> str:
    held = list(rows[0])
    if wanted is not None:
        if wanted not in held:
            raise UnknownName(f"{path} has no column {wanted!r}{did_you_mean(wanted, held)}; it has {', '.join(held)}")
        return wanted
    present = [name for name in names if name in held]
    if not present:
        raise BadFile(f"{path} needs a column {names[0]!r}; it has {', '.join(filter(None, held)) or 'none'}")
    return present[0]


def _texts(rows: Sequence[Row], column: str, path: object) -> list[str]:
    for number, row in enumerate(rows):
        if not isinstance(row.get(column), str) or not row[column]:
            raise BadFile(f"{path}, pair {number}: {column!r} has no text")
    return [row[column] for row in rows]


# ------------------------------------------------------------------------------------------------------------ answers

Names = list[tuple[str, str]]  # of every row: the name that comes once, the name that comes twice


def _answers(
    rows: Sequence[Row], clean: Sequence[str], path: object, answer_ids: str
) -> tuple[list[Any] | None, list[Any] | None, list[str], Names]:
    """(right, wrong, notes, names) of every row."""
    held = list(rows[0])
    sides = [next((name for name in names if name in held), None) for names in (RIGHT, WRONG)]
    if any(sides):
        right, wrong = (
            None if name is None else [_given(row, name, n, path, answer_ids) for n, row in enumerate(rows)]
            for name in sides
        )
        return right, wrong, [], []
    ids = next((pair for pair in IDS if set(pair) <= set(held)), None)
    if ids is None:
        return None, None, ["the file has no answers, so only metrics that need none can be used (negative_kl)"], []
    if answer_ids == "keep":
        right, wrong = ([_whole(row, name, n, path) for n, row in enumerate(rows)] for name in ids)
        return right, wrong, [f"{ids[0]} and {ids[1]} were taken as token ids of this model"], []
    names = [_once_and_twice(text, number, path, ids) for number, text in enumerate(clean)]
    note = (
        f"{ids[0]} and {ids[1]} are ids of an unknown tokenizer and were not used: right is the name that comes once "
        "in the clean prompt, wrong the one that comes twice"
    )
    return [f" {once}" for once, _ in names], [f" {twice}" for _, twice in names], [note], names


def _given(row: Row, name: str, number: int, path: object, answer_ids: str) -> Any:
    value = row.get(name)
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(one, str | int) and one != "" for one in several):
        raise BadFile(f"{path}, pair {number}: {name!r} has no answer")
    if answer_ids != "keep" and (bare := [one for one in several if not isinstance(one, str)]):
        raise BadFile(
            f'{path}, pair {number}: {name!r} is the number {bare[0]!r}; write the answer as text, "{bare[0]}", or say '
            "answer_ids='keep' if it is a token id of this model"
        )
    return several[0] if len(several) == 1 else several


def _whole(row: Row, name: str, number: int, path: object) -> int:
    try:
        return int(row[name])
    except (TypeError, ValueError) as error:
        raise BadFile(f"{path}, pair {number}: {name!r} is {row[name]!r}, not a token id") from error


def _once_and_twice(text: str, number: int, path: object, ids: tuple[str, str]) -> tuple[str, str]:
    named = re.search(r"\b([A-Z]\w+) and ([A-Z]\w+)\b", text)
    if named is not None:
        counts = {name: len(re.findall(rf"\b{name}\b", text)) for name in named.groups()}
        once, twice = ([name for name, count in counts.items() if count == times] for times in (1, 2))
        if len(once) == len(twice) == 1:
            return once[0], twice[0]
    raise BadFile(
        f"{path}, pair {number}: the answer cannot be found in {text!r}; add columns 'right' and 'wrong' with the "
        f"answers as text, or say answer_ids='keep' if {ids[0]} and {ids[1]} are ids of this model's tokenizer"
    )


def _name_spans(model: "Model", clean: Sequence[str], names: Names) -> dict[str, list[int]]:
    """Last tokens of the names: io, and s1 and s2."""
    spans: dict[str, list[int]] = {"io": [], "s1": [], "s2": []}
    for text, (once, twice) in zip(clean, names):
        ends = [match.end() - 1 for name in (once, twice) for match in re.finditer(rf"\b{name}\b", text)]
        for name, end in zip(spans, ends):
            spans[name].append(token_at(model, text, end))
    return spans
