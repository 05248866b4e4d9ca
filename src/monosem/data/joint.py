"""Answers of several tokens: their ids after a prompt, and the probability of all of them, one after the other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import metrics
from ..errors import BadInput
from ..models.running.run import refuse_ends
from ..models.tokens import TokenBatch
from ..models.transformerlens.text import continuation

if TYPE_CHECKING:
    from ..models import Model

FOLLOWED = "an answer of several tokens follows it in the run"
JointAnswer = str | int | Sequence[int]  # text, one id, or the ids of one answer in order


def joint_ids(
    model: "Model", answers: Sequence[JointAnswer] | None, prompts: Sequence[str | list[int]], bad: dict[int, str]
) -> list[list[int]] | None:
    """The ids of every pair's answer after its prompt; rows whose answers cannot be read so are entered in `bad`."""
    if answers is None:
        return None
    rows = []
    for number, (answer, prompt) in enumerate(zip(answers, prompts)):
        try:
            rows.append(_ids(model, answer, prompt))
        except BadInput as error:
            bad.setdefault(number, f"answer of pair {number}: {error}")
            rows.append([0])
    return rows


def _ids(model: "Model", answer: JointAnswer, prompt: str | list[int]) -> list[int]:
    if isinstance(answer, str):
        ids = continuation(model, prompt, answer) or model.bare(answer)
        before = prompt if isinstance(prompt, str) else model.text(prompt)
        if before[-1:].isalnum() and answer[:1].isalnum():
            raise BadInput(f"{answer!r} would be one word with the prompt's last; write {' ' + answer!r}, or its ids")
    else:
        several = [answer] if isinstance(answer, int) else list(answer)
        if any(isinstance(one, str) for one in several):
            raise BadInput(
                f"{several} is a set of answers, and of several tokens there is one a pair: give its whole text, as "
                "' New York', or its ids"
            )
        ids = [model.to_single_token(one) for one in several]
    if not ids:
        raise BadInput("it is empty")
    return ids


def continued(tokens: TokenBatch, answers: Int[Tensor, "batch step"]) -> TokenBatch:
    """Each prompt with its answer but for the last token, whose probability the last logits give; -1 is no token."""
    given = [[token for token in row if token >= 0] for row in answers.tolist()]
    rows = [[*ids, *answer[:-1]] for ids, answer in zip(tokens.rows(), given)]
    return TokenBatch.of(rows, int(tokens.ids[0, 0])).to(tokens.ids.device)  # what pads is never read


def joint_answers(
    model: "Model", prompts: TokenBatch, answers: Int[Tensor, "batch step"]
) -> tuple[Float[Tensor, "batch"], Bool[Tensor, "batch"]]:
    """log p(answer | prompt) of each row in nats, and whether each of its tokens is the likeliest one.

    Raises:
        BadInput: edits of `model.editing(...)` that depend on where the prompt ends.
    """
    refuse_ends(model, FOLLOWED)
    logits = model.run(continued(prompts, answers)).logits
    assert logits is not None
    steps = prompts.lengths.to(logits.device)[:, None] - 1 + torch.arange(answers.shape[1], device=logits.device)
    rows = torch.arange(len(prompts), device=logits.device)[:, None]
    read = logits[rows, steps.clamp(max=logits.shape[1] - 1)]
    answers = answers.to(logits.device)
    on_top = ((read.argmax(-1) == answers) | (answers < 0)).all(-1)
    return metrics.joint_log_probability(read, answers), on_top
