"""The sections of a study, in order: functions from the context and the earlier sections to plain data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..context import Context
from . import attack, candidates, conclusion, defence, dictionary, validation

Results = dict[str, dict[str, Any]]  # section name -> its data


@dataclass(frozen=True)
class Section:
    letter: str
    name: str
    title: str
    make: Callable[[Context, Results], dict[str, Any]]
    findings: Callable[[dict[str, Any]], list[str]]  # lines for the terminal


SECTIONS = (
    Section("A", "dictionary", "The dictionary and the concept's prompts", dictionary.make, dictionary.findings),
    Section("B", "candidates", "Candidates and the target latent", candidates.make, candidates.findings),
    Section("C", "defence", "Defence: the target latent set to zero", defence.make, defence.findings),
    Section("D", "attack", "Attack: the target latent amplified", attack.make, attack.findings),
    Section("E", "validation", "Validation: what else is known about the latent", validation.make, validation.findings),
    Section("F", "conclusion", "Conclusion", conclusion.make, conclusion.findings),
)

__all__ = ["SECTIONS", "Results", "Section"]
