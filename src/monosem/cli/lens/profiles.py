"""`monosem lens entropy` and `gap`: one number a layer."""

from typing import Annotated

from ..options import Machine, Written, option
from ..output import as_json, table
from .options import Lens, Position, Reading

NewTokens = Annotated[
    int, option("--max-new-tokens", "N", "Read tokens that the model goes on to write, not the prompt's.", min=0)
]
A = Annotated[list[str], option("--a", "TOKEN", "A token of the first set. May be repeated.")]
B = Annotated[list[str], option("--b", "TOKEN", "A token of the second set. May be repeated.")]


def entropy(
    reading: Reading, machine: Machine, written: Written, max_new_tokens: NewTokens = 0, lens: Lens = None
) -> None:
    """Show how sure each layer is.

    The entropy of what each layer would predict, in nats, mean over the tokens of a prompt, or over the tokens that the
    model goes on to write.

    Example: monosem lens entropy smollm2 "Write a poem." "Tell me a joke." --chat --max-new-tokens 20
    """
    from ... import lenses

    model, texts, options = reading.load(machine, written)
    result = lenses.entropy_profile(model, texts, max_new_tokens=max_new_tokens, lens=lens, **options)
    written.save(result)
    if written.json:
        as_json(result.table)
    else:
        profile = result.means()
        rows = [[str(site), *map(float, profile[:, layer])] for layer, site in enumerate(result.sites)]
        tokens = f"the {max_new_tokens} tokens written" if max_new_tokens else "the prompt's tokens"
        columns = [f"prompt {row}" for row in range(len(texts))]
        table(["layer", *columns], rows, f"entropy in nats, mean over {tokens}")
    written.say_where()


def gap(
    reading: Reading, a: A, b: B, machine: Machine, written: Written, position: Position = None, lens: Lens = None
) -> None:
    """Show how far each layer leans towards a set of tokens.

    Log-odds in nats of the tokens --a over the tokens --b at one token of every prompt, mean over the prompts.

    Example: monosem lens gap smollm2 "The film was great. I felt" --a " happy" --b " sad"
    """
    from ... import lenses

    model, texts, options = reading.load(machine, written)
    place = -1 if position is None else position
    result = lenses.gap(model, texts, a, b, positions=place, lens=lens, **options)
    written.save(result)
    written.show(result.table.drop(columns="group"), "log-odds in nats of --a over --b")
    written.say_where()
