"""`monosem lens entropy`, `gap`, `languages` and `trajectory`: a few numbers a layer."""

from typing import Annotated

from ...errors import BadInput, check_name
from ..options import option
from ..output import table
from .options import Lens, Position, Reading, token_at

Difference = Annotated[str | None, option("NAME", "What colours the picture: kl, js, tv, cosine, distance or agree.")]
NewTokens = Annotated[int, option("N", "Read the tokens that the model writes, not the prompt's.", min=0)]
Words = Annotated[list[str], option("NAME=WORD,...", "A language and its words for the answer. Give two or more.")]


def entropy(reading: Reading, max_new_tokens: NewTokens = 0, lens: Lens = None) -> None:
    """Show how sure each layer is.

    The entropy of what each layer would predict, in nats, mean over the tokens of a prompt, or over the tokens that the
    model goes on to write.

    Example: monosem lens entropy smollm2 "Write a poem." "Tell me a joke." --chat --max-new-tokens 20
    """
    from ... import lenses

    model = reading.load()
    options = reading.options(model) | {"max_new_tokens": max_new_tokens, "lens": lens}
    result = lenses.entropy_profile(model, reading.texts(model), **options)

    def shown() -> None:
        profile = result.means()
        rows = [[str(site), *map(float, profile[:, layer])] for layer, site in enumerate(result.sites)]
        tokens = f"the {max_new_tokens} tokens written" if max_new_tokens else "the prompt's tokens"
        columns = [f"prompt {row}" for row in range(len(profile))]
        table(["layer", *columns], rows, f"{result.lens}: entropy in nats, mean over {tokens}")

    reading.give(result, shown)


def gap(
    reading: Reading,
    a: Annotated[list[str], option("TOKEN", "A token of the first set. May be repeated.")],
    b: Annotated[list[str], option("TOKEN", "A token of the second set. May be repeated.")],
    position: Position = -1,
    lens: Lens = None,
) -> None:
    """Show how far each layer leans towards a set of tokens.

    Log-odds in nats of the tokens --a over the tokens --b at one token of every prompt, mean over the prompts.

    Example: monosem lens gap smollm2 "The film was great. I felt" --a " happy" --b " sad"
    """
    from ... import lenses

    model = reading.load()
    result = lenses.gap(model, reading.texts(model), a, b, positions=position, lens=lens, **reading.options(model))
    reading.give(result, result.table.drop(columns="group"), f"{result.lens}: log-odds in nats of --a over --b")


def languages(reading: Reading, words: Words, position: Position = -1, lens: Lens = None) -> None:
    """Show the language in which each layer would answer.

    The probability of each language's words (every token that may begin one) at one token of every prompt, mean over
    the prompts, and its share among the languages.

    Example: monosem lens languages smollm2 "eau, in English:" --words English=water --words French=eau
    """
    from ... import lenses

    wanted = dict(_words(entry) for entry in words)
    model = reading.load()
    options = reading.options(model) | {"positions": position, "lens": lens}
    result = lenses.languages(model, reading.texts(model), wanted, **options)
    reading.give(result, result.table, f"{result.lens}: probability of each language, mean over the prompts")


def trajectory(reading: Reading, position: Position = -1, value: Difference = None, lens: Lens = None) -> None:
    """Compare two prompts of equal length, layer by layer.

    How far apart the two are at one token: KL and Jensen-Shannon divergence of what they predict, cosine of the states.

    Example: monosem lens trajectory smollm2 "The capital of France is" "The capital of Italy is" --out a.html
    """
    from ... import lenses
    from ...lenses.profiles.trajectory import DIFFERENCES

    if len(reading.prompts) != 2:
        raise BadInput(f"a trajectory compares two prompts; {len(reading.prompts)} were given")
    if value is not None:
        check_name("measure", value, DIFFERENCES)
    plot = reading.colour(value)
    model = reading.load()
    first, second = reading.texts(model)
    result = lenses.trajectory(model, first, second, lens=lens, **reading.options(model))
    cells = result.table
    place = token_at(position, sorted(cells.position.unique()), "the prompts have")
    columns = ["site", "token", "other_token", "first", "second", "kl", "js", "cosine"]
    reading.give(
        result, cells.loc[cells.position == place, columns], f"{result.lens}: the two prompts at one token", **plot
    )


def _words(entry: str) -> tuple[str, list[str]]:
    """`"French=eau,l'eau"` -> ("French", ["eau", "l'eau"])."""
    name, _, listed = entry.partition("=")
    chosen = [word.strip() for word in listed.split(",") if word.strip()]
    if not name.strip() or not chosen:
        raise BadInput(f"--words {entry}: write NAME=WORD,WORD, such as French=eau")
    return name.strip(), chosen
