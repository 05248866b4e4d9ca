"""What a user keeps of latents: stars, lists and notes, in one JSON file that is never half-written."""

import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..errors import BadFile, BadInput
from ..files import write_json
from ..reading import read_object

STARS = "stars"  # the list that a star adds to
MOST_LATENTS, MOST_NOTES = 20_000, 20_000

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]
Place = tuple[Annotated[str, StringConstraints(min_length=1, max_length=500)], Annotated[int, Field(ge=0)]]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class Note(Strict):
    """What a user wrote about a latent."""

    dictionary: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    latent: Annotated[int, Field(ge=0)]
    text: Annotated[str, StringConstraints(max_length=10_000)]


class Kept(Strict):
    """The file. `lists`: name -> latents as (dictionary, number); stars are the list "stars"."""

    format: Literal["monosem-notes"] = "monosem-notes"
    version: Literal[1] = 1
    lists: Annotated[dict[Name, list[Place]], Field(max_length=500)] = Field(default_factory=dict)
    notes: Annotated[list[Note], Field(max_length=MOST_NOTES)] = Field(default_factory=list)


class Change(Strict):
    """One change: latents into a list or out of it, a note (empty: none), a list's end, or another file's content."""

    put: tuple[Name, Annotated[list[Place], Field(max_length=MOST_LATENTS)]] | None = None
    take: tuple[Name, Annotated[list[Place], Field(max_length=MOST_LATENTS)]] | None = None
    note: Note | None = None
    drop: Name | None = None
    merge: Kept | None = None


class Notes:
    """The file of notes; every change is on the disk before it is answered.

    Raises:
        BadFile: a file that is not of notes, which is left as it is.
    """

    def __init__(self, path: Path | None = None):
        self.path = path or platformdirs.user_data_path("monosem") / "notes.json"
        self.lock = threading.Lock()
        self.kept = Kept()
        if self.path.exists():
            try:
                self.kept = Kept.model_validate(read_object(self.path))
            except ValidationError as error:
                raise BadFile(f"{self.path} is not a file of notes: {first(error)}; move it away") from error

    def json(self) -> dict[str, Any]:
        return self.kept.model_dump(mode="json")

    def change(self, change: Change) -> dict[str, Any]:
        """Make a change; what is kept now. Raises `BadFile` when the disk is full, `BadInput` for too much."""
        with self.lock:
            try:
                changed = Kept.model_validate(apply(self.kept.model_copy(deep=True), change).model_dump())
            except ValidationError as error:
                raise BadInput(f"this would be too much to keep: {first(error)}") from error
            if sum(map(len, changed.lists.values())) > MOST_LATENTS:
                raise BadInput(f"lists hold at most {MOST_LATENTS:,} latents together")
            write_json(self.path, changed.model_dump(mode="json"))
            self.kept = changed
        return self.json()


def apply(kept: Kept, change: Change) -> Kept:
    if change.put is not None:
        name, latents = change.put
        kept.lists[name] = list(dict.fromkeys([*kept.lists.get(name, []), *latents]))
    if change.take is not None:
        name, latents = change.take
        kept.lists[name] = [one for one in kept.lists.get(name, []) if one not in set(latents)]
    if change.note is not None:
        write(kept, change.note)
    if change.drop is not None:
        kept.lists.pop(change.drop, None)
    if change.merge is not None:
        for name, latents in change.merge.lists.items():
            kept.lists[name] = list(dict.fromkeys([*kept.lists.get(name, []), *latents]))
        for note in change.merge.notes:
            write(kept, note)
    return kept


def write(kept: Kept, note: Note) -> None:
    kept.notes = [one for one in kept.notes if (one.dictionary, one.latent) != (note.dictionary, note.latent)]
    if note.text.strip():
        kept.notes.append(note)


def first(error: ValidationError) -> str:
    """The first thing that is wrong, in a few words."""
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc'])) or 'it'}: {found['msg']}"
