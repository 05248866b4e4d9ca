"""How far judges can be trusted: against labels, and against each other."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, ClassVar

import pandas as pd

from ..errors import BadInput, check_name
from ..results import Result, analysis
from ..statistics import Interval, kappa, wilson
from .judge import judge, judged
from .verdict import Judge, Verdict

FIELDS = ("prompt", "response", "label")
FIXTURES = ("refusals", "degrees")


def labelled_responses(part: str | None = None, *, of: str = "refusals") -> list[dict[str, str]]:
    """A labelled fixture: short responses to harmless prompts, in several styles, written for this purpose. Each has
    prompt, response, label, style and part. Many refusals have no word that keyword lists look for, and many answers
    have these words.

    Args:
        part: "first" was written before the rules of the judge, "second" (of "refusals") after them, and both mended
            the rules; on "held_out" nothing was mended. Of "degrees" there is no such part: "third" was written after
            the rules, "fourth" by a reviewer, "fifth" in unusual voices; some rules were mended on each once it was
            measured. None: all.
        of: "refusals" has the labels "refusal", "answer" and "empty", "degrees" also "partial".
    """
    check_name("fixture", of, FIXTURES)
    text = (resources.files("monosem.judges") / f"{of}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    check_name("part", part, [None, *dict.fromkeys(row["part"] for row in rows)])
    return [row for row in rows if part in (None, row["part"])]


def labelled_for(by: Judge, part: str | None = None) -> list[dict[str, str]]:
    """The fixture that has a judge's labels."""
    return labelled_responses(part, of="degrees" if "partial" in by.labels else "refusals")


@dataclass(frozen=True)
class Confusion(Result):
    """What a judge says of labelled responses: `table` has a row a true label, a column a verdict.

    Attributes:
        rows: every response with its label and verdict.
        positive: the label that the judge looks for.
    """

    rows: list[dict[str, Any]] = field(repr=False)
    positive: str

    @property
    def table(self) -> pd.DataFrame:
        counts = Counter((row["label"], row["verdict"]) for row in self.rows)
        labels = list(dict.fromkeys([*(row["label"] for row in self.rows), *(row["verdict"] for row in self.rows)]))
        return pd.DataFrame([{"label": true} | {said: counts[true, said] for said in labels} for true in labels])

    @property
    def sensitivity(self) -> Interval:
        """The share of what is positive that the judge says is, with Wilson's interval."""
        return self._share([row for row in self.rows if row["label"] == self.positive], hit=True)

    @property
    def specificity(self) -> Interval:
        """The share of all else that the judge says is not positive, with Wilson's interval."""
        return self._share([row for row in self.rows if row["label"] != self.positive], hit=False)

    @property
    def kappa(self) -> Interval:
        """Cohen's kappa with the labels."""
        return kappa([row["label"] for row in self.rows], [row["verdict"] for row in self.rows])

    @property
    def errors(self) -> pd.DataFrame:
        """The responses that it gets wrong."""
        return pd.DataFrame([row for row in self.rows if row["label"] != row["verdict"]])

    @property
    def summary(self) -> dict[str, Any]:
        """For a report."""
        named = {"sensitivity": self.sensitivity, "specificity": self.specificity, "kappa": self.kappa}
        return {"n": len(self.rows), **{name: interval._asdict() for name, interval in named.items()}}

    def _share(self, rows: list[dict[str, Any]], hit: bool) -> Interval:
        return wilson(sum((row["verdict"] == self.positive) == hit for row in rows), len(rows))


@analysis
def confusion(by: str | Judge, cases: Sequence[Mapping[str, str]] | None = None) -> Confusion:
    """A judge against labels.

    Args:
        cases: prompt, response and label of each; default: `labelled_responses()`, which are about refusals, for a
            judge of degrees `of="degrees"`.

    Raises:
        BadInput: no cases, one without these three, or a label that the judge does not give.
    """
    by = judge(by)
    cases = labelled_for(by) if cases is None else list(cases)
    if not cases or not all(isinstance(case.get(name), str) for case in cases for name in FIELDS):
        raise BadInput("labelled responses have a prompt, a response and a label each, all texts")
    if strange := sorted({case["label"] for case in cases} - set(by.labels)):
        raise BadInput(f"judge {by.name} gives the labels {', '.join(by.labels)}, and none is {strange[0]!r}")
    verdicts = judged(by, [case["prompt"] for case in cases], [case["response"] for case in cases])
    rows = [{**case, "verdict": one.label, "evidence": one.evidence} for case, one in zip(cases, verdicts)]
    return Confusion(rows, by.positive)


@dataclass(frozen=True)
class Agreement(Result):
    """Cohen's kappa of every two judges on the same responses, with its 95 % interval by bootstrap over them."""

    rows: pd.DataFrame = field(repr=False)
    ranked_by: ClassVar[str | None] = "kappa"

    @property
    def table(self) -> pd.DataFrame:
        return self.rows


@analysis
def agreement(judges: Sequence[str | Judge], prompts: Sequence[str], responses: Sequence[str]) -> Agreement:
    """Whether judges agree on what shows the behaviour that they look for.

    Raises:
        BadInput: fewer than two judges, or no responses.
    """
    several = [judge(one) for one in judges]
    if len(several) < 2 or not responses:
        raise BadInput("agreement needs two judges or more, and responses")
    said = [[v.label == by.positive for v in judged(by, prompts, responses)] for by in several]
    rows = []
    for i, one in enumerate(several):
        for j in range(i + 1, len(several)):
            value, low, high = kappa(said[i], said[j])
            same = sum(a == b for a, b in zip(said[i], said[j]))
            row = {"judge": one.name, "other": several[j].name, "kappa": value, "kappa_low": low, "kappa_high": high}
            rows.append(row | {"same": same, "n": len(responses)})
    return Agreement(pd.DataFrame(rows))


def majority(verdicts: Sequence[Verdict]) -> str:
    """The label that most judges give; the first of the judges decides among labels that are as frequent.

    Raises:
        BadInput: no verdicts.
    """
    if not verdicts:
        raise BadInput("a majority needs verdicts")
    counts = Counter(verdict.label for verdict in verdicts)
    return max(counts, key=lambda label: counts[label])  # the first of the most frequent, in the judges' order
