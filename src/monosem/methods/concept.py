"""The concept file: texts with a concept and without it, openings to continue, and what judges a continuation."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import BadFile, BadInput, MonosemError, UnknownName
from ..jobs import JobConfig, fingerprint
from ..judges import judge
from ..probes.texts import PIECES
from ..reading import existing, read_yaml
from ..studies import StudyConfig, shipped_concepts
from ..studies.prompts import Name, Prompt, StyleName, as_styles

FEWEST = 16  # texts of a class: four parts are made of them
OPENINGS = 4  # to continue: half of them choose, half are judged


class Texts(BaseModel):
    """Texts of one style, topic or author: they stay together where a file has enough styles."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    positive: list[Prompt]
    negative: list[Prompt]

    @model_validator(mode="after")
    def _both_sides(self) -> Self:
        for side in ("positive", "negative"):
            if not getattr(self, side):
                raise ValueError(f"no {side} texts: give texts with the concept, and texts without it")
        return self


class Concept(JobConfig):
    """What methods are compared on. `positive` and `negative`, given instead of `styles`, are texts of one style."""

    job: ClassVar[str] = "concept"
    shorthands: ClassVar[frozenset[str]] = frozenset({"positive", "negative"})

    name: Name = Field(description="of its folder")
    title: str = Field("", description="the concept in a few words, as it completes 'a text that has this: ...'")
    source: str = Field("", description="where the texts come from, and their licence")
    paired: bool = Field(True, description="whether line i of one side is the partner of line i of the other")
    styles: dict[StyleName, Texts] = Field(min_length=1, description="texts with the concept, and without it")
    openings: list[Prompt] = Field([], description="beginnings that say nothing of the concept, to be continued")
    instruction: str = Field("", description="what is put before an opening to ask for the concept")
    question: str = Field("", description="what is asked about a text; yes means that it has the concept")
    scorer: str = Field(
        "words", description="what judges continuations: words, letters, or a judge such as language:fr"
    )

    @model_validator(mode="before")
    @classmethod
    def _in_styles(cls, values: Any) -> Any:
        return as_styles(values)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_scorer()
        for name, style in self.styles.items():
            if self.paired and len(style.positive) != len(style.negative):
                raise ValueError(
                    f"style {name!r} has {len(style.positive)} positive and {len(style.negative)} negative texts: line "
                    "i of one must be the partner of line i of the other, or say paired: false"
                )
        for side in ("positive", "negative"):
            if len(texts := self.side(side)) < FEWEST:
                raise ValueError(f"{len(texts)} {side} texts; {FEWEST} at least are needed, for four parts of them")
        self._check_distinct()
        return self

    def _check_scorer(self) -> None:
        if self.scorer in PIECES:
            return
        try:
            judge(self.scorer)
        except MonosemError as error:
            kinds = ", ".join(PIECES)
            raise ValueError(f"scorer {self.scorer!r} is not one of {kinds}, nor a judge: {error}") from error

    def _check_distinct(self) -> None:
        """A text that stands twice would be in two parts, or in both classes."""
        seen: set[str] = set()
        for side in ("positive", "negative"):
            for text in self.side(side):
                if text in seen:
                    raise ValueError(f"the text {text!r:.60} stands twice")
                seen.add(text)
        if used := next((one for one in self.openings if one in seen), None):
            raise ValueError(f"an opening must not be one of the texts: {used!r:.60}")
        if len(set(self.openings)) < len(self.openings):
            raise ValueError("an opening stands twice")
        if 0 < len(self.openings) < OPENINGS:
            raise ValueError(f"{len(self.openings)} openings to continue; steering needs {OPENINGS} at least, or none")

    def side(self, side: str) -> list[str]:
        """All positive or all negative texts."""
        return [text for style in self.styles.values() for text in getattr(style, side)]

    @property
    def called(self) -> str:
        return self.title or self.name

    @property
    def asks_for_it(self) -> str:
        """The instruction; where the file has none, one made from the title."""
        return self.instruction or f"Write a text that has this: {self.called}."

    @property
    def asks_about_it(self) -> str:
        return self.question or f"Does this text have the following: {self.called}?"

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.model_dump_json())

    @classmethod
    def load(cls, concept: "Self | str | os.PathLike[str] | Mapping[str, Any]") -> Self:
        """A concept from its file, from a study's file or its shipped name, or from plain values.

        Raises:
            UnknownName: neither a file nor a shipped name. BadFile: not readable, or not a YAML mapping.
            BadInput: a field is missing, unknown or wrong; the message names it.
        """
        if isinstance(concept, cls):
            return concept
        if isinstance(concept, Mapping):
            return cls._of_study(StudyConfig.load(dict(concept))) if "test" in concept else cls.parse(concept)
        if (path := existing(concept)) is None and str(concept) not in shipped_concepts():  # type: ignore[arg-type]
            known = ", ".join(shipped_concepts())
            raise UnknownName(f"no concept file {concept!s:.200}, and no shipped concept of that name ({known})")
        if path is None or str(concept) in shipped_concepts():
            return cls._of_study(StudyConfig.load(str(concept)))
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise BadFile(f"{path} is not a concept file: expected `field: value` lines")
        try:
            return cls.load(values)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    @classmethod
    def _of_study(cls, study: StudyConfig) -> Self:
        """A study's pairs; its test and control prompts are the openings."""
        styles = {name: {"positive": one.positive, "negative": one.negative} for name, one in study.styles.items()}
        openings = [*study.test, *study.control]
        return cls.parse({"name": study.name, "title": study.title, "styles": styles, "openings": openings})


def concepts_of(given: Any) -> list[Concept]:
    """One concept or several; a folder stands for its YAML files.

    Raises: as `Concept.load`, and `BadInput` for none, or for two of one name.
    """
    several = given if isinstance(given, list | tuple) else [given]
    found: list[Concept] = []
    for one in several:
        folder = existing(one) if isinstance(one, str | os.PathLike) else None
        files = sorted(folder.glob("*.yaml")) if folder is not None and folder.is_dir() else [one]
        if not files:
            raise BadInput(f"the folder {folder} holds no .yaml file")
        found += [Concept.load(file if not isinstance(file, Path) else str(file)) for file in files]
    if not found:
        raise BadInput("give at least one concept")
    names = [one.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"two concepts are called {twice!r}; name one of them otherwise")
    return found
