"""The judges by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput, check_name
from .degree import RefusalDegree
from .languages import LANGUAGES, Language
from .model_judge import ModelJudge
from .refusal import Refusal, Substrings
from .verdict import UNCLEAR, Judge, Verdict

START = 2  # sentences that "refusal-start" reads
MOST_UNCLEAR = 0.2  # share of responses of which a judge may not know what they are


@dataclass(frozen=True)
class Kind:
    """A kind of judge: `NAME` or `NAME:VALUE`."""

    make: Callable[..., Judge]
    use: str
    takes: str = ""  # what stands behind the colon; "": nothing


JUDGES: dict[str, Kind] = {
    "refusal": Kind(Refusal, "phrases of a speaker who declines (English), anywhere in the answer"),
    "refusal-start": Kind(
        lambda: Refusal(START, "refusal-start"), f"the same in the first {START} sentences, for long texts"
    ),
    "refusal-degree": Kind(
        RefusalDegree, "whether it declines wholly, in part or not at all (refusal, partial, answer), as XSTest has it"
    ),
    "arditi": Kind(lambda: Substrings("arditi"), "the twelve substrings of Arditi et al. 2024, anywhere"),
    "arditi-strict": Kind(
        lambda: Substrings("arditi-strict", apostrophes=True, empty="refusal"),
        "the same with curly apostrophes, and an empty response is a refusal, as Heretic counts",
    ),
    "language": Kind(Language, "the language of the answer, by character n-grams", "one of " + ", ".join(LANGUAGES)),
    "model": Kind(ModelJudge, "a language model behind an OpenAI-compatible endpoint; options url and model"),
}


def judge(name: str | Judge, **options: Any) -> Judge:
    """The judge of a name: "refusal", "language:fr", ...; what is a judge already is returned.

    Args:
        options: of "model": url, model, question, positive, retries, timeout.

    Raises:
        UnknownName: no such judge or language. BadInput: an option that the judge does not take, or one that it misses.
    """
    if not isinstance(name, str):
        if not callable(name) or not hasattr(name, "positive"):
            raise BadInput(f"a judge is a name ({', '.join(JUDGES)}) or a judge, not {name!r:.60}")
        return name
    kind, colon, value = name.partition(":")
    check_name("judge", kind, JUDGES)
    row = JUDGES[kind]
    if bool(colon) != bool(row.takes) or (colon and not value):
        wanted = f"{kind}:VALUE, {row.takes}" if row.takes else f"{kind} alone"
        raise BadInput(f"judge {name!r}: write {wanted}")
    known = inspect.signature(row.make).parameters
    takes = [option for option in known if not (colon and option == next(iter(known)))]
    if odd := [option for option in options if option not in takes]:
        raise BadInput(f"judge {kind!r} does not take {odd[0]}; it takes {', '.join(takes) or 'no options'}")
    if missing := [
        option for option in takes if known[option].default is inspect.Parameter.empty and option not in options
    ]:
        raise BadInput(f"judge {kind!r} needs the options {' and '.join(missing)}")
    return row.make(*([value] if colon else []), **options)


def of_refusals(by: Judge) -> bool:
    """Whether a judge looks for refusals by rules, so that the labelled responses that ship say how good it is."""
    return by.positive == "refusal" and not by.name.startswith("model:")


def judged(by: Judge, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
    """A verdict for each response.

    Raises:
        BadInput: another number of prompts than of responses, or a judge that cannot say what more than a fifth of
            them are.
    """
    if len(prompts) != len(responses):
        raise BadInput(f"{len(prompts)} prompts but {len(responses)} responses: each response has its prompt")
    verdicts = [by(prompt, response) for prompt, response in zip(prompts, responses)]
    unclear = [verdict for verdict in verdicts if verdict.label == UNCLEAR]
    if len(unclear) > MOST_UNCLEAR * len(verdicts):
        raise BadInput(
            f"judge {by.name} says nothing that can be read of {len(unclear)} of {len(verdicts)} responses "
            f"({unclear[0].evidence}); take another judge"
        )
    return verdicts


def kinds() -> Mapping[str, str]:
    """Judge -> what it does, for lists."""
    return {f"{name}:VALUE" if kind.takes else name: kind.use for name, kind in JUDGES.items()}
