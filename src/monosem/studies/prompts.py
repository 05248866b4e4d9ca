"""The prompts of a concept file: pairs in styles, and which of them the search sees."""

import random
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..data import PromptPairs

HELD_OUT = 0.5  # share of the pairs, in whole styles, that neither the search nor the choice of the target sees
HELD_OUT_KNOWN = 1 / 3  # share of the pairs of each other style that they do not see either
ONE_STYLE = "all"  # the style of a file that names none
LONGEST_NAME = 80


def _prompt(value: Any) -> str:
    if not isinstance(value, str):
        hint = "a prompt with a colon" if isinstance(value, dict) else "it"
        raise ValueError(f"{value!r:.60} is not text; put quotes around {hint}")
    if not value.strip():
        raise ValueError("empty prompt")
    return value


def _name(value: Any) -> str:
    """Raises `ValueError` for what cannot be part of a path and of a command line as it is."""
    if isinstance(value, str) and re.fullmatch(f"[A-Za-z0-9][A-Za-z0-9_-]{{,{LONGEST_NAME - 1}}}", value):
        return value
    better = re.sub("[^A-Za-z0-9_]+", "-", str(value))[:LONGEST_NAME].strip("-_") or "my-concept"
    raise ValueError(
        f"{value!r:.60} cannot name the study's folder; use at most {LONGEST_NAME} letters, digits, - and _, such as "
        f"{better!r} (title takes any text)"
    )


Prompt = Annotated[str, BeforeValidator(_prompt)]
Name = Annotated[str, BeforeValidator(_name)]
StyleName = Annotated[str, BeforeValidator(_prompt)]


class Style(BaseModel):
    """Prompts of one style ("question", "headline", ...): line i of one side is the partner of line i of the other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    positive: list[Prompt] = Field(min_length=1)
    negative: list[Prompt] = Field(min_length=1)

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.positive) != len(self.negative):
            raise ValueError(
                f"unpaired prompts: {len(self.positive)} positive and {len(self.negative)} negative; "
                "line i of one must be the partner of line i of the other"
            )
        return self


def as_styles(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a concept file with its two plain lists, if it has them, as its only style."""
    plain = {side: values[side] for side in ("positive", "negative") if side in values}
    if not plain:
        return values
    if "styles" in values:
        raise ValueError(f"give styles, or positive and negative, not both ({', '.join(plain)} stands beside styles)")
    return {name: value for name, value in values.items() if name not in plain} | {"styles": {ONE_STYLE: plain}}


def check_distinct(styles: dict[str, Style], openings: Sequence[str]) -> None:
    """Raises `ValueError` for a prompt that stands in two places: it would weigh double, cancel or leak."""
    seen: dict[str, str] = {}
    for name, style in styles.items():
        for side in ("positive", "negative"):
            for prompt in getattr(style, side):
                here = f"styles.{name}.{side}"
                if prompt in seen:
                    raise ValueError(f"the prompt {prompt!r:.60} stands twice, in {seen[prompt]} and {here}")
                seen[prompt] = here
    used = next((prompt for prompt in openings if prompt in seen), None)
    if used is not None:
        raise ValueError(f"test and control prompts must not be used in the search: {used!r}")


@dataclass(frozen=True)
class Split:
    """Pairs by what they are for. With one style, `held_out` are prompts of that style and `known` is None.

    Attributes:
        search: pairs that latents are ranked and the target is chosen on.
        held_out: pairs of styles that the search does not see at all: does what was found carry over?
        known: pairs that the search does not see, of styles that it sees.
    """

    search: PromptPairs
    held_out: PromptPairs
    known: PromptPairs | None


def split(pairs: PromptPairs, seed: int) -> Split:
    """Whole styles are held out, as near to half of the pairs as they come, and a third of each other style's pairs.

    With one style, half of the pairs is held out.
    """
    kept, held_out = pairs.split(HELD_OUT, seed=seed)
    if pairs.groups is None or len(set(pairs.groups)) == 1:
        return Split(kept, held_out, None)
    searched, known = _within_styles(kept.groups or (), random.Random(seed))
    return Split(kept.take(searched), held_out, kept.take(known) if known else None)


def _within_styles(styles: Sequence[Hashable], rng: random.Random) -> tuple[list[int], list[int]]:
    """(searched, known) pairs: the same share of every style."""
    known: list[int] = []
    for style in dict.fromkeys(styles):
        members = [i for i, of in enumerate(styles) if of == style]
        known += rng.sample(members, round(HELD_OUT_KNOWN * len(members)))
    return [i for i in range(len(styles)) if i not in known], sorted(known)
