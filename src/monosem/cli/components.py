"""`monosem components`: what heads attend to, and what each part writes into a logit."""

from typing import Annotated

from .application import group
from .options import Chat, Machine, ModelArgument, Prompts, Seed, Written, option
from .output import as_json, frame


def heads(
    model: ModelArgument,
    machine: Machine,
    written: Written,
    score: Annotated[str, option("--score", "NAME", "Sort by: induction, previous, duplicate or first.")] = "induction",
    n: Annotated[int, option("--n", "N", "Tokens of the random text that is repeated.", min=2)] = 25,
    rows: Annotated[int, option("--rows", "N", "How many random texts.", min=1)] = 8,
    top: Annotated[int, option("--top", "N", "Heads to print.", min=1)] = 10,
    seed: Seed = 0,
) -> None:
    """Find induction, previous-token and duplicate heads.

    Scores every head on random text that is repeated: the mean attention that follows each pattern, from 0 to 1.

    Example: monosem components heads smollm2 --score induction --out heads.html
    """
    from ..components import head_scores

    scores = head_scores(machine.load(model, written.silent), n=n, rows=rows, seed=seed)
    best = scores.top(top, by=score)
    written.save(scores, score=score)
    as_json(scores.table) if written.json else frame(best, f"{score} heads")
    written.say_where()


def direct(
    model: ModelArgument,
    prompts: Prompts,
    machine: Machine,
    written: Written,
    token: Annotated[str, option("--token", "TOKEN", "The token whose logit is taken apart, mind the space.")],
    wrong: Annotated[str | None, option("--wrong", "TOKEN", "Subtract the logit of this token.")] = None,
    by: Annotated[str, option("--by", "layer|head|neuron", "How fine the parts are.")] = "head",
    top: Annotated[int, option("--top", "N", "Parts to print.", min=1)] = 10,
    chat: Chat = False,
) -> None:
    """Take a logit apart into what each part writes.

    Direct attribution at the last token of each prompt, mean over the prompts; the parts sum to the logit.

    Example: monosem components direct smollm2 "The capital of France is" --token " Paris" --wrong " Rome"
    """
    from ..components import direct_attribution

    lm = machine.load(model, written.silent)
    texts = [lm.chat(prompt) for prompt in prompts] if chat else prompts
    parts = direct_attribution(lm, texts, token, wrong, by=by)  # type: ignore[arg-type]
    written.save(parts)
    as_json(parts.table) if written.json else frame(parts.top(top), parts.target)
    written.say_where()


app = group("What heads and MLPs read and write.", {"heads": heads, "direct": direct})
