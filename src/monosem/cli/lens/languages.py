"""`monosem lens languages`: in which language a layer would answer."""

from typing import Annotated

from ...errors import BadInput
from ..options import Machine, Written, option
from .options import Lens, Position, Reading

Words = Annotated[
    list[str], option("--words", "NAME=WORD,...", "A language and its words for the answer. Give two or more.")
]


def languages(
    reading: Reading,
    words: Words,
    machine: Machine,
    written: Written,
    position: Position = None,
    lens: Lens = None,
) -> None:
    """Show the language in which each layer would answer.

    The probability of each language's words (every token that may begin one) at one token of every prompt, mean over
    the prompts, and its share among the languages.

    Example: monosem lens languages smollm2 "eau, in English:" --words English=water --words French=eau
    """
    from ... import lenses

    wanted = dict(_words(entry) for entry in words)
    model, texts, options = reading.load(machine, written)
    place = -1 if position is None else position
    result = lenses.languages(model, texts, wanted, positions=place, lens=lens, **options)
    written.save(result)
    written.show(result.table, "probability of each language, mean over the prompts")
    written.say_where()


def _words(entry: str) -> tuple[str, list[str]]:
    """`"French=eau,l'eau"` -> ("French", ["eau", "l'eau"])."""
    name, _, listed = entry.partition("=")
    chosen = [word.strip() for word in listed.split(",") if word.strip()]
    if not name.strip() or not chosen:
        raise BadInput(f"--words {entry}: write NAME=WORD,WORD, such as French=eau")
    return name.strip(), chosen
