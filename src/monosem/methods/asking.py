"""Prompting: what the model says when it is asked in words."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..metrics import log_odds
from ..models import Model

YES, NO = ("Yes", "yes", "YES"), ("No", "no", "NO")


def says_yes(model: Model, texts: Sequence[str], question: str, *, batch_size: int = 32) -> Float[Tensor, "n"]:
    """log p(yes) - log p(no) after each text and a question about it, over the tokens with which either word begins.

    The question is a user's turn where the model has a chat template, else plain text.

    Raises:
        BadInput: a model without a tokenizer, or one for which both words begin alike.
    """
    if model.tokenizer is None:
        raise BadInput("a model without a tokenizer cannot be asked")
    chat = bool(model.tokenizer.chat_template)
    prompts = [asked(model, text, question, chat) for text in texts]
    yes, no = (_first_tokens(model, words, "" if chat else " ") for words in (YES, NO))
    if not (yes - no) or not (no - yes):
        raise BadInput("yes and no begin with the same token of this model, so that it cannot be asked")
    found = []
    for first in range(0, len(prompts), batch_size):
        logits = model.run(prompts[first : first + batch_size], logits="last").logits
        assert logits is not None
        answers = [torch.tensor([sorted(ids)] * len(logits), device=logits.device) for ids in (yes - no, no - yes)]
        found.append(log_odds(logits.float(), *answers).cpu())
    return torch.cat(found)


def asked(model: Model, text: str, question: str, chat: bool) -> str:
    """The prompt that asks."""
    if chat:
        return model.chat(f'Text: "{text}"\n\n{question} Answer yes or no.')
    return f'Text: "{text}"\n\nQuestion: {question} Answer yes or no.\nAnswer:'


def told(model: Model, opening: str, instruction: str) -> str:
    """The prompt that asks for a continuation: the opening is what a chat's assistant has begun to say, where the model
    has a chat template, else it stands below the instruction."""
    if model.tokenizer is not None and model.tokenizer.chat_template:
        return model.chat([{"role": "user", "content": instruction}, {"role": "assistant", "content": opening}])
    return f"{instruction}\n\n{opening}"


def _first_tokens(model: Model, words: Sequence[str], before: str) -> set[int]:
    return {model.bare(before + word)[0] for word in words}
