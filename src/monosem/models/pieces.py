"""Which token an id is: batches and windows that one tokenizer made are not read with another's vocabulary."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import Mismatch


def pieces_of(tokenizer: Any, ids: Iterable[int]) -> dict[int, str | None]:
    """The token of each id, None where the tokenizer has none."""
    return {token: tokenizer.convert_ids_to_tokens(token) if 0 <= token < len(tokenizer) else None for token in ids}


def check_pieces(model: Any, pieces: Mapping[int, str | None], what: str) -> None:
    """Raises `Mismatch` where an id is another token for this model's tokenizer; `what` begins the message."""
    here = {} if model.tokenizer is None else pieces_of(model.tokenizer, pieces)
    for token, piece in here.items():
        if piece != pieces[token]:
            raise Mismatch(
                f"{what} tokenised for another model: token {token} is {pieces[token]!r:.40} there and {piece!r} for "
                f"{model.name}; tokenise them for this model"
            )
