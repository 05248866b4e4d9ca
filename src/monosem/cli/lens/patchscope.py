"""`monosem lens patchscope`: a state put into another prompt, and what the model says of it."""

from typing import TYPE_CHECKING, Annotated

from ..options import option
from ..output import table
from .options import Likeliest, Reading, likeliest

if TYPE_CHECKING:
    from ...lenses import PatchscopeResult

Into = Annotated[str | None, option("TEXT", "The prompt whose last token is overwritten (default: token identity).")]
Position = Annotated[int | None, option("N", "The token that is moved (default: the last; all in JSON and in a file).")]


def patchscope(
    reading: Reading,
    into: Into = None,
    position: Position = None,
    top: Likeliest = 5,
    max_new_tokens: Annotated[int, option("N", "How many tokens to write after it.", min=0)] = 0,
) -> None:
    """Show what the model says about a state in another prompt.

    The state of a token at each layer overwrites the last token of another prompt at the same layer; by default of one
    that makes the model repeat a token.

    Example: monosem lens patchscope smollm2 "The Colosseum in Rome" --position 3 --max-new-tokens 8
    """
    from ... import lenses

    model = reading.load()
    if position is None and not (reading.json or reading.out):
        position = -1
    options = reading.options(model) | {"positions": position, "top": top, "max_new_tokens": max_new_tokens}
    target = lenses.TOKEN_IDENTITY if into is None else into
    result = lenses.patchscope(model, reading.texts(model), target, **options)
    reading.give(result, lambda: _print(result))


def _print(result: "PatchscopeResult") -> None:
    """One table a prompt: a line a layer."""
    for row, tokens in enumerate(result.words):
        rows = []
        for i, site in enumerate(result.sites):
            chances = result.top_probabilities[i, row, -1].tolist()
            text = [] if result.texts is None else [repr(result.texts[i][row][-1])]
            rows.append([site.layer, likeliest(result.top_tokens(i, row, -1), chances), *text])
        titles = ["layer", "likeliest", *([] if result.texts is None else ["written"])]
        table(titles, rows, f"patchscope of {tokens[-1]!r} (token {int(result.positions[row, -1])} of prompt {row})")
