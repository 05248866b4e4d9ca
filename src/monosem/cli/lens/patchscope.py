"""`monosem lens patchscope`: a state put into another prompt, and what the model says of it."""

from typing import TYPE_CHECKING, Annotated

from ..options import Machine, Written, option
from ..output import as_json, table
from .options import Position, Reading, Top, likeliest

if TYPE_CHECKING:
    from ...lenses import PatchscopeResult

Into = Annotated[
    str | None, option("--into", "TEXT", "The prompt whose last token is overwritten (default: token identity).")
]
NewTokens = Annotated[int, option("--max-new-tokens", "N", "Write so many tokens after it.", min=0)]


def patchscope(
    reading: Reading,
    machine: Machine,
    written: Written,
    into: Into = None,
    position: Position = None,
    top: Top = 5,
    max_new_tokens: NewTokens = 0,
) -> None:
    """Show what the model says about a state in another prompt.

    The state of a token at each layer overwrites the last token of another prompt at the same layer; by default of one
    that makes the model repeat a token.

    Example: monosem lens patchscope smollm2 "The Colosseum in Rome" --position 3 --max-new-tokens 8
    """
    from ... import lenses

    model, texts, options = reading.load(machine, written)
    # a file shows every token of a prompt
    whole = position is None and (written.json or written.out is not None)
    result = lenses.patchscope(
        model,
        texts,
        lenses.TOKEN_IDENTITY if into is None else into,
        positions=None if whole else -1 if position is None else position,
        top=top,
        max_new_tokens=max_new_tokens,
        **options,
    )
    written.save(result)
    if written.json:
        as_json(result.table)
    else:
        _print(result)
    written.say_where()


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
