"""Judges: what a response is (a refusal, an answer, a language), by rules, by letters or by another model."""

from .agreement import Agreement, Confusion, agreement, confusion, labelled_responses, majority
from .judge import JUDGES, Judge, Verdict, judge, of_refusals
from .languages import LANGUAGES, language_of

__all__ = [
    "JUDGES",
    "LANGUAGES",
    "Agreement",
    "Confusion",
    "Judge",
    "Verdict",
    "agreement",
    "confusion",
    "judge",
    "labelled_responses",
    "language_of",
    "majority",
    "of_refusals",
]
