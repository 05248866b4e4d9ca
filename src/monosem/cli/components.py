"""`monosem components`: what heads attend to, and what each part writes into a logit."""

from typing import Annotated

from .application import group
from .options import Analysis, Prompts, Seed, Top, option


def heads(
    asked: Analysis,
    score: Annotated[str, option("NAME", "Sort by: induction, previous, duplicate or first.")] = "induction",
    n: Annotated[int, option("N", "Tokens of the random text that is repeated.", min=2)] = 25,
    rows: Annotated[int, option("N", "How many random texts.", min=1)] = 8,
    top: Top = 10,
    seed: Seed = 0,
) -> None:
    """Find induction, previous-token and duplicate heads.

    Scores every head on random text that is repeated: the mean attention that follows each pattern, from 0 to 1.

    Example: monosem components heads smollm2 --score induction --out heads.html
    """
    from ..components import head_scores

    scores = head_scores(asked.load(), n=n, rows=rows, seed=seed)
    asked.give(scores, scores.top(top, by=score), f"{score} heads", score=score)


def direct(
    asked: Prompts,
    token: Annotated[str, option("TOKEN", "The token whose logit is taken apart, with its leading space.")],
    wrong: Annotated[str | None, option("TOKEN", "Subtract the logit of this token.")] = None,
    by: Annotated[str, option("layer|head|neuron", "How fine the parts are.")] = "head",
    top: Top = 10,
) -> None:
    """Take a logit apart into what each part writes.

    Direct attribution at the last token of each prompt, mean over the prompts; the parts sum to the logit.

    Example: monosem components direct smollm2 "The capital of France is" --token " Paris" --wrong " Rome"
    """
    from ..components import direct_attribution

    model = asked.load()
    parts = direct_attribution(model, asked.texts(model), token, wrong, by=by)  # type: ignore[arg-type]
    asked.give(parts, parts.top(top), parts.target)


app = group("What heads and MLPs read and write.", {"heads": heads, "direct": direct})
