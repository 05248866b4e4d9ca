"""The concept file: what a study is told. YAML in, checked by pydantic, saved beside the result."""

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from ..activations import SkipRule, skip_rule
from ..data import PromptPairs
from ..directions.methods import method
from ..errors import BadInput, MonosemError, UnknownName, did_you_mean
from ..jobs import JobConfig, fingerprint
from ..jobs.config import Seed
from ..judges import judge
from ..reading import existing
from .prompts import Name, Prompt, Style, StyleName, as_styles, check_distinct

FEWEST_PAIRS = 4
DEMO = "french"  # the study that `monosem demo` runs


class StudyConfig(JobConfig):
    """One concept study. Unknown fields are refused, so that a misspelt one is not silently ignored.

    `positive` and `negative`, given instead of `styles`, are prompts of one style.
    """

    job: ClassVar[str] = "study"
    shorthands: ClassVar[frozenset[str]] = frozenset({"positive", "negative"})
    not_decisive: ClassVar[frozenset[str]] = frozenset({"latent"})  # its sections have a folder of their own

    name: Name  # of the report's folder
    title: str = ""
    description: str = ""
    purpose: str = ""  # why the study is done; printed in the report

    model: str = "smollm2"
    dtype: str = "auto"  # the fastest that the machine computes natively; the report says which it was
    dictionary: str = "smollm2/resid_post.15"
    trained_on: str | None = None  # on which tokens the dictionary was trained, where its file does not say
    site: str | None = None  # None: the dictionary's own; anything else must be the same site

    styles: dict[StyleName, Style] = Field(min_length=1)  # prompts that carry the concept, and their partners
    test: list[Prompt] = Field(min_length=1)  # openings to be continued, not used in the search
    control: list[Prompt] = Field(min_length=1)  # openings that have nothing to do with the concept

    judge: str | None = None  # that says of a continuation whether it has the concept, such as language:fr
    latent: int | None = Field(default=None, ge=0)  # None: chosen by the rule of section B; another may follow later
    candidates: int = Field(default=8, ge=1, le=100)  # latents of the search that are looked at closely
    doses: list[Annotated[float, Field(ge=0)]] = Field(
        default=[0.25, 0.5, 1.0, 1.5, 2.0]
    )  # times the latent's own maximum
    primary_dose: float = Field(default=1.0, gt=0)  # the one dose that the conclusion is about, fixed beforehand
    values: list[float] = Field(default=[20.0])  # plain values, in the dictionary's units
    random_latents: int = Field(default=19, ge=3)  # controls for the next token: 19 make p = 0.05 possible
    random_continuations: int | None = Field(default=None, ge=1)  # of these, continued at the primary dose; None: all
    runners_up: int = Field(default=3, ge=0)  # candidates that are amplified as well
    together: int = Field(default=4, ge=1)  # the target and the next best, edited at once; 1: no such arm
    directions: list[str] = Field(
        default=[]
    )  # further arms of steering: methods (dim, logistic, ...) or files of directions
    max_new_tokens: int = Field(default=20, ge=1, le=512)
    batch_size: int = Field(default=128, ge=1)  # rows of a pass: prompts × arms
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _in_styles(cls, values: Any) -> Any:
        return as_styles(values)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.positive) < FEWEST_PAIRS:
            raise ValueError(f"{len(self.positive)} pairs of prompts; a study needs {FEWEST_PAIRS} at least")
        if self.primary_dose not in self.doses:
            raise ValueError(f"primary_dose {self.primary_dose} is not one of doses {self.doses}")
        if (self.random_continuations or 0) > self.random_latents:
            raise ValueError("random_continuations cannot exceed random_latents")
        _ = self.skip  # refused here when it is no rule
        if self.judge is not None:
            judge(self.judge)
        check_distinct(self.styles, [*self.test, *self.control])
        _check_directions(self.directions)
        return self

    @property
    def positive(self) -> list[str]:
        """The prompts of all styles that carry the concept ..."""
        return [prompt for style in self.styles.values() for prompt in style.positive]

    @property
    def negative(self) -> list[str]:
        """... and their partners, line by line, that do not."""
        return [prompt for style in self.styles.values() for prompt in style.negative]

    @property
    def pairs(self) -> PromptPairs:
        """All pairs, each with the name of its style."""
        styles = [name for name, style in self.styles.items() for _ in style.positive]
        return PromptPairs(self.positive, self.negative, groups=styles)

    @property
    def skip(self) -> SkipRule | None:
        """What `trained_on` says."""
        return None if self.trained_on is None else skip_rule(self.trained_on)

    @property
    def fingerprint(self) -> str:
        """Hash of everything in this config."""
        return fingerprint(self.model_dump_json())

    @classmethod
    def load(cls, concept: "Self | str | os.PathLike[str] | dict[str, Any]") -> Self:
        """A config from a concept file, the name of a shipped concept, or a dict.

        Raises:
            UnknownName: neither a file nor a shipped name.
            BadFile: not readable, or not a YAML mapping.
            BadInput: a field is missing, unknown or wrong; the message names it.
        """
        if isinstance(concept, cls):
            return concept
        if isinstance(concept, dict):
            return cls.parse(concept)
        names = shipped_concepts()
        path = names.get(str(concept)) or existing(concept)  # type: ignore[arg-type]
        if path is None:
            near = did_you_mean(str(concept), names)
            raise UnknownName(
                f"no concept file {str(concept)!r}{near}; shipped: {', '.join(names)}, or give a YAML file's path"
            )
        return cls.read(path)


def _check_directions(names: list[str]) -> None:
    """Raises `ValueError` for a name that is neither a file nor a method that a study can use, or that stands twice."""
    if len(set(names)) < len(names):
        raise ValueError("directions: a direction is named twice")
    for name in names:
        try:
            if existing(name) is None and method(name).needs == "background":
                raise BadInput("it needs other text, which a study does not have; give a file of directions")
        except MonosemError as error:
            raise ValueError(f"directions: {name!r:.80} is no file, and as a method: {error}") from error


def shipped_concepts() -> dict[str, Path]:
    """Name -> path of the concept files that come with monosem."""
    folder = Path(str(resources.files("monosem.studies") / "concepts"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
