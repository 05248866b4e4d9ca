"""Which tokens are whose in a chat: turns found by the special tokens with which the model's template opens them."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor

from ...errors import BadInput, cause
from ..native import Native
from ..tokens import TokenBatch

SAID = ("first", "second", "third")  # what user, assistant and user say in the chats that show a template's turns


def turn_mask(model: Native, tokens: TokenBatch, role: str) -> Bool[Tensor, "batch column"]:
    """The tokens that a role says: from after the tokens that open its turn up to the next special token.

    Raises:
        BadInput: no chat template, one without special tokens at its turns, or without this role.
    """
    if not isinstance(role, str) or not role or role != role.strip():
        raise BadInput(f"role= is one name, such as 'user' or 'assistant', not {role!r}")
    # as the tokenizer is now: its template may be replaced, and tokens added, while the model is in use
    written_by = (str(getattr(model.tokenizer, "chat_template", None)), model.special_ids)
    return _opened(model, tokens, _openings(model, role, written_by))


def _opened(model: Native, tokens: TokenBatch, openings: tuple[tuple[int, ...], ...]) -> Bool[Tensor, "batch column"]:
    """The tokens from after one of these sequences of ids up to the next special token."""
    starts = torch.zeros_like(tokens.mask)
    for opening in openings:
        bare = opening[: len(opening) - next(i for i, id in enumerate(opening[::-1]) if not _is_space(model, id))]
        # the space that ends an opening may be one token with what the role says
        joined = _after(tokens.ids, bare) & ~_after(tokens.ids, opening, len(bare))
        starts = starts | _after(tokens.ids, opening) | joined
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
def _openings(model: Native, role: str, written_by: tuple[str, frozenset[int]]) -> tuple[tuple[int, ...], ...]:
    """The ids with which a role's turn begins, in the middle of a chat; the assistant's in the last turn, too, which
    some templates open otherwise (Qwen 3, with an empty thought).

    Args:
        written_by: the template and the special tokens, which it is found by.
    """
    if model.tokenizer is None or not model.tokenizer.chat_template:
        raise BadInput(f"{model.name} has no chat template, so no role {role!r}: give positions= or tokens=")
    turns = [{"role": name, "content": text} for name, text in zip(("user", "assistant", "user"), SAID)]
    try:
        one, two, three = (
            str(model.tokenizer.apply_chat_template(turns[:n], tokenize=False, add_generation_prompt=False))
            for n in (1, 2, 3)
        )
    except Exception as error:  # whatever a template raises
        raise BadInput(f"the chat template of {model.name} takes no plain chat ({cause(error)})") from error
    if role == "assistant":
        texts = [_between(chat, *SAID[:2]).removeprefix(one.partition(SAID[0])[2]) for chat in (three, two)]
    else:
        text = _question(model, one.rpartition(SAID[0])[0], two.partition(SAID[1])[2], _between(three, *SAID[1:]))
        if role != "user" and "user" not in text:
            raise BadInput(f"the chat template of {model.name} opens the turns of user and assistant, not of {role!r}")
        texts = [text]
    openings = _ids(model, texts)
    if not all(markup(model).intersection(ids) for ids in openings):
        raise BadInput(f"the chat template of {model.name} opens turns with no special token: give positions=")
    _check_told(model, (one, two, three), SAID[1:2] if role == "assistant" else SAID[::2], openings)
    return openings if role in ("user", "assistant") else _ids(model, [text.replace("user", role) for text in texts])


def _question(model: Native, first: str, end: str, middle: str) -> str:
    """What opens the user's turn in the middle of a chat, as far as it opens the first one, too: what closes the
    answer before it may be another thing there than at the end of a chat (Phi-3, GPT-OSS)."""
    text, before = middle.removeprefix(end), model.bare(first) if first else []
    suffixes = (text[at:] for at in range(len(text)))
    return next((one for one in suffixes if (ids := model.bare(one)) and before[-len(ids) :] == ids), "")


def _ids(model: Native, texts: list[str]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(model.bare(text)) for text in dict.fromkeys(texts))


def _check_told(model: Native, chats: Sequence[str], own: Sequence[str], openings: tuple[tuple[int, ...], ...]) -> None:
    """Raises `BadInput` where a turn so opened leaves out some of its role's words, or runs on into the next, as in
    Llama 2's template, which has no special token between a question and its answer."""
    for chat in chats:
        ids = torch.tensor([model.bare(chat)])
        mask = _opened(model, TokenBatch.whole(ids), openings)
        text = "".join(model.text(ids[mask].tolist(), special=True).split())
        if any((word in text) != (word in own and word in chat) for word in SAID):
            raise BadInput(
                f"the special tokens in the chat template of {model.name} do not tell where the turn of one role ends "
                "and the next begins: give positions="
            )


def _between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]
