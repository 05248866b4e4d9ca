"""What a judge says, and what a judge is."""

from dataclasses import dataclass
from typing import Protocol

EMPTY = "empty"  # the label of a response that says nothing, for every judge
UNCLEAR = "unclear"  # the label where a judge cannot say


@dataclass(frozen=True)
class Verdict:
    """What a response is.

    Attributes:
        label: one of the judge's labels.
        score: from 0 to 1, how far the response is what the judge looks for (its `positive` label).
        evidence: the words that decided, or why there are none.
        truncated: the response seems to stop in the middle of a sentence.
    """

    label: str
    score: float
    evidence: str = ""
    truncated: bool = False


class Judge(Protocol):
    """A function of prompt and response, with a name.

    Attributes:
        positive: the label that it looks for, such as "refusal". labels: all that it gives.
    """

    @property
    def name(self) -> str: ...

    @property
    def positive(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def __call__(self, prompt: str, response: str) -> Verdict: ...
