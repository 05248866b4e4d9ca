"""Text to tokens and back, under TransformerLens's names, by the tokenizer's own rules.

Whether a BOS token comes first is the tokenizer's decision; `prepend_bos=True` puts one there (once), `False` takes it
away. TransformerLens's default is its own policy instead, which is the most frequent surprise in its issue tracker.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import BadInput
from ..native import Native
from ..numbers import whole_number
from ..places.places import Places
from ..tokens import TokenBatch, texts_of
from .arguments import TOKEN_ARGUMENTS, accepting

# one token as text or id, or several in any shape
Tokens = str | int | Tensor | list[str] | list[int]


def single_token(model: Native, text: str | int, before: str | list[int] | None = None) -> int:
    """The id of a text that is exactly one token, without BOS; an id stands for itself.

    What `str_token` shows of a token is read as that token, also " Max" where the tokenizer puts a space before every
    text and would split " Max" by itself; "Max" is the token that the tokenizer makes of it alone (there " Max", too).

    Args:
        before: the prompt that the text goes on. The token is then the one that both together have after the prompt;
            where they are split otherwise, it is the token of the text alone.

    Raises:
        BadInput: text of no or several tokens (they are shown, with the spelling that is one token), text that would
            be one word with the prompt's last one, an id outside the vocabulary, no tokenizer.
    """
    if not isinstance(text, str):
        if not 0 <= (token := whole_number(text, "a token")) < model.cfg.d_vocab:
            raise BadInput(f"token id {token} is outside the vocabulary of {model.cfg.d_vocab}")
        return token
    if model.tokenizer is None:
        raise BadInput(f"{model.name} has no tokenizer: give the id itself, or load the model with tokenizer=...")
    ids = model.bare(text)
    if len(ids) == 1 and model.str_token(ids[0]) == text:
        return ids[0]
    if before and len(after := continuation(model, before, text) or []) == 1:
        if (
            len(ids) == 1
            and ids != after
            and _one_word(before if isinstance(before, str) else model.text(before), text)
        ):
            raise BadInput(
                f"{text!r} would be one word with the prompt's last; write {' ' + text!r}, or the token's id"
            )
        return after[0]
    if len(ids) != 1 and (shown := shown_as(model, text)) is not None:
        return shown
    if len(ids) != 1:
        split = " | ".join(map(model.str_token, ids))
        raise BadInput(f"{text!r} is {len(ids)} tokens ({split}), one is needed{_spelling(model, text)}")
    return ids[0]


def shown_as(model: Native, text: str) -> int | None:
    """The token that `str_token` shows as this text; None where there is none.

    Looked for by itself, among the pieces of SentencePiece, and as what a text goes on with.
    """
    found = (i for i in _candidates(model, text) if i < model.cfg.d_vocab)
    return next((i for i in found if model.str_token(i) == text), None)


def _candidates(model: Native, text: str) -> Iterator[int]:
    if model.tokenizer is None:
        return
    yield from model.bare(text)[:1]
    for piece in (text, text.replace(" ", "▁")):
        token = model.tokenizer.convert_tokens_to_ids(piece)
        if isinstance(token, int):
            yield token
    for before in ("a", "."):
        yield from (continuation(model, before, text) or [])[:1]


def continuation(model: Native, before: str | list[int], text: str) -> list[int] | None:
    """The tokens that a text adds to the prompt before it; None where both together are split otherwise."""
    if isinstance(before, str):
        first = model.encoded(before)
    else:  # ids: their text must be split into the same ids again
        first, prefix = list(before), model.prefix
        own = first[len(prefix) :] if first[: len(prefix)] == prefix else first
        before = model.text(own, special=True)
    whole = model.encoded(before + text)
    return whole[len(first) :] if whole[: len(first)] == first and model.encoded(before) == first else None


def _one_word(before: str, text: str) -> bool:
    return before[-1:].isalnum() and text[:1].isalnum()


def _spelling(model: Native, text: str) -> str:
    """What to write instead of a text of several tokens: some tokenizers put a space before every text."""
    bare = text.strip()
    other = bare if text != bare else f" {bare}"
    if bare and len(model.bare(other)) == 1:
        return f"; write {other!r}"
    return "" if text.startswith(" ") else "; a word inside a text mostly starts with a space, as ' Mary'"


def residual_directions(model: Places, tokens: Tokens) -> Float[Tensor, "*shape d_model"]:
    """The column of W_U of each token: the direction of the final (normed) stream that raises its logit.

    Of one token, in whatever shape, `d_model`. Raises `BadInput` for what is neither an id nor the text of one token.
    """
    if (texts := texts_of(tokens)) is not None:
        tokens = [single_token(model, text) for text in texts]
    try:
        ids = torch.as_tensor(tokens, device=model.device)
        kinds = ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.numel() == 0
    except (TypeError, ValueError, RuntimeError):
        kinds = True
    if kinds or not (0 <= int(ids.min()) <= int(ids.max()) < model.cfg.d_vocab):
        raise BadInput(f"tokens must be ids from 0 to {model.cfg.d_vocab - 1}, or texts of one token, got {tokens!r}")
    directions = model.W_U.T[ids.long()]
    return directions.reshape(-1) if ids.numel() == 1 else directions


def _rows(model: Native, x: Any, prepend_bos: bool | None) -> list[list[int]]:
    if isinstance(x, Tensor) and x.ndim == 0:
        return [[int(x)]]
    return token_batch(model, x, prepend_bos).rows()


def token_batch(model: Native, x: Any, prepend_bos: bool | None) -> TokenBatch:
    """The batch of anything that a run takes; of TEXTS, with the BOS token (or the tokenizer's own prefix) put there or
    taken away where asked."""
    batch = model.tokens(x)
    if prepend_bos is None or texts_of(x) is None:
        return batch
    start = model.prefix or [model.bos]
    bare = [row[len(start) :] if row[: len(start)] == start else row for row in batch.rows()]
    return TokenBatch.of([[*start, *row] if prepend_bos else row for row in bare], model.pad, tokenizer=batch.tokenizer)


class Text(Places):
    """Text and token ids, as a `HookedTransformer` converts them."""

    @accepting(TOKEN_ARGUMENTS)
    def to_tokens(self, x: Any, prepend_bos: bool | None = None) -> Int[Tensor, "batch pos"]:
        """Token ids of anything that `run` takes; shorter rows are padded on the right, where padding changes no result
        of a real token.

        A tensor of ids carries no mask: for the last token of each text, or a loss, pass the texts themselves to `run`.
        """
        return token_batch(self, x, prepend_bos).ids.to(self.device)

    @accepting(TOKEN_ARGUMENTS)
    def to_str_tokens(self, x: Any, prepend_bos: bool | None = None) -> Any:
        """Tokens as strings: a list for one text (or `pos`, or `1 pos` ids), a list of lists for several."""
        rows = _rows(self, x, prepend_bos)
        spelled = [[self.str_token(token) for token in row] for row in rows]
        return spelled if len(spelled) > 1 or (texts_of(x) is not None and not isinstance(x, str)) else spelled[0]

    def to_string(self, tokens: Any) -> Any:
        """Ids to text, special tokens included: a string for `pos` (or one id), a list of strings for `batch pos`."""
        ids = torch.as_tensor(tokens)
        if ids.ndim < 2:
            return self.text(ids.reshape(-1).tolist(), special=True)
        return [self.text(row, special=True) for row in ids.tolist()]

    to_single_token = single_token
    continuation = continuation
    shown_as = shown_as
    tokens_to_residual_directions = residual_directions

    def to_single_str_token(self, token: int) -> str:
        """One token as text."""
        return self.str_token(int(token))

    @accepting(TOKEN_ARGUMENTS)
    def get_token_position(
        self,
        token: str | int,
        x: Any,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
    ) -> int:
        """Where a token stands in one text (or row of ids). Raises `BadInput` when it does not."""
        rows = _rows(self, x, prepend_bos)
        if len(rows) != 1:
            raise BadInput(f"a token position is asked of one text, not of {len(rows)}")
        wanted = self.to_single_token(token)
        places = [i for i, other in enumerate(rows[0]) if other == wanted]
        if not places:
            tokens = [self.str_token(other) for other in rows[0]]
            raise BadInput(f"{self.str_token(wanted)!r} is not among the tokens {tokens}")
        return places[0 if mode == "first" else -1]
