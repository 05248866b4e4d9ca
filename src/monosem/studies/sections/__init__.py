"""The sections of a study, in order: functions from the context and the earlier sections to plain data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..context import Context
from . import ablation, candidates, conclusion, dictionary, steering, target, validation

Results = dict[str, dict[str, Any]]  # section name -> its data


@dataclass(frozen=True)
class Section:
    letter: str
    name: str
    title: str
    make: Callable[[Context, Results], dict[str, Any]]
    findings: Callable[[dict[str, Any]], list[str]]  # lines for the terminal
    of_target: bool = True  # whether it is about the target latent, so that another latent needs it anew


SECTIONS = (
    Section("A", "dictionary", "The dictionary and the concept's prompts", dictionary.make, dictionary.findings, False),
    Section("B", "candidates", "Candidates and the target latent", candidates.make, candidates.findings, False),
    Section("B", "target", "The target latent, held out", target.make, target.findings),
    Section("C", "ablation", "Ablation: the target latent set to zero", ablation.make, ablation.findings),
    Section("D", "steering", "Steering: the target latent amplified", steering.make, steering.findings),
    Section("E", "validation", "Validation: what else is known about the latent", validation.make, validation.findings),
    Section("F", "conclusion", "Conclusion", conclusion.make, conclusion.findings),
)

__all__ = ["SECTIONS", "Results", "Section"]
