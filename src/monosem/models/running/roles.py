"""Which tokens are whose in a chat: turns found by the special tokens with which the model's template opens them."""

from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor

from ...errors import BadInput, cause
from ..native import Native
from ..tokens import TokenBatch


def turn_mask(model: Native, tokens: TokenBatch, role: str) -> Bool[Tensor, "batch column"]:
    """The tokens that a role says: from after the tokens that open its turn up to the next special token.

    Raises:
        BadInput: no chat template, one without special tokens at its turns, or without this role.
    """
    if not isinstance(role, str) or not role or role != role.strip():
        raise BadInput(f"role= is one name, such as 'user' or 'assistant', not {role!r}")
    opening = _opening(model, role)
    bare = opening[: len(opening) - next(i for i, id in enumerate(opening[::-1]) if not _is_space(model, id))]
    # the space that ends an opening may be one token with what the role says
    starts = _after(tokens.ids, opening) | (_after(tokens.ids, bare) & ~_after(tokens.ids, opening, len(bare)))
    columns = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
    special = torch.isin(tokens.ids, torch.tensor(sorted(markup(model)), device=tokens.ids.device))
    opened, ended = (torch.where(here, columns, -1).cummax(1).values for here in (starts, special))
    return tokens.mask & (opened >= 0) & (opened > ended)


def _after(ids: Tensor, sequence: tuple[int, ...], past: int | None = None) -> Bool[Tensor, "batch column"]:
    """The columns `past` (default: all) tokens after each place where a sequence of ids begins."""
    found, width = torch.zeros_like(ids, dtype=torch.bool), ids.shape[1] - len(sequence) + 1
    if width < 1:
        return found
    begins = (ids.unfold(1, len(sequence), 1) == torch.tensor(sequence, device=ids.device)).all(-1)
    past = len(sequence) if past is None else past
    kept = begins[:, : ids.shape[1] - past]
    found[:, past : past + kept.shape[1]] = kept
    return found


def markup(model: Native) -> frozenset[int]:
    """The special tokens (BOS, what opens and closes turns) but the one for what the tokenizer cannot spell, which
    stands inside texts."""
    return model.special_ids - {getattr(model.tokenizer, "unk_token_id", None)}


def _is_space(model: Native, token: int) -> bool:
    return not model.str_token(token).strip()


@lru_cache(maxsize=64)
def _opening(model: Native, role: str) -> tuple[int, ...]:
    """The ids with which a role's turn begins, in the middle of a chat."""
    if model.tokenizer is None or not model.tokenizer.chat_template:
        raise BadInput(f"{model.name} has no chat template, so no role {role!r}: give positions= or tokens=")
    said = ["first", "second", "third"]
    turns = [{"role": name, "content": text} for name, text in zip(("user", "assistant", "user"), said)]
    try:
        one, two, three = (
            str(model.tokenizer.apply_chat_template(turns[:n], tokenize=False, add_generation_prompt=False))
            for n in (1, 2, 3)
        )
    except Exception as error:  # whatever a template raises
        raise BadInput(f"the chat template of {model.name} takes no plain chat ({cause(error)})") from error
    if role == "assistant":
        text = _between(two, *said[:2]).removeprefix(one.partition(said[0])[2])
    else:
        text = _between(three, *said[1:]).removeprefix(two.partition(said[1])[2])
        if role != "user" and "user" not in text:
            raise BadInput(f"the chat template of {model.name} opens the turns of user and assistant, not of {role!r}")
        text = text.replace("user", role)
    ids = tuple(model.tokenizer(text, add_special_tokens=False).input_ids)
    if not markup(model).intersection(ids):
        raise BadInput(f"the chat template of {model.name} opens turns with no special token: give positions=")
    return ids


def _between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]
