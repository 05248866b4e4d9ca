"""`monosem lens logit` and `tuned`: the likeliest tokens of every layer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ...errors import BadInput
from ..options import Machine, Written, option
from ..output import as_json, table
from .options import Position, Reading, Top, Value, likeliest

if TYPE_CHECKING:
    from ...lenses import LensResult
    from ...models import Model

TunedLens = Annotated[str, option("--lens", "DIR", "A tuned lens (default: the one shipped for MODEL).")]


@dataclass(frozen=True)
class Shown:
    """Which tokens are shown and followed."""

    position: Position = None
    top: Top = 5
    target: Annotated[
        list[str] | None, option("--target", "TOKEN", "A token to follow, mind the space. May be repeated.")
    ] = None
    value: Value = None


def logit(reading: Reading, shown: Shown, machine: Machine, written: Written) -> None:
    """Read every layer as if it were the last.

    Shows the likeliest next tokens of each layer, its entropy and how far it is from the end (KL, nats), after one
    token of each prompt. --out writes all tokens, as a picture or a table.

    Example: monosem lens logit smollm2 "The capital of France is" --target " Paris" --out lens.html
    """
    _read(reading, shown, None, machine, written)


def tuned(reading: Reading, shown: Shown, machine: Machine, written: Written, lens: TunedLens = "tuned") -> None:
    """Read every layer through learnt translators.

    As `monosem lens logit`, through a tuned lens: one affine map a layer, trained to say what the model will say.

    Example: monosem lens tuned smollm2 "The capital of France is" --position 3
    """
    _read(reading, shown, lens, machine, written)


def _read(reading: Reading, shown: Shown, lens: str | None, machine: Machine, written: Written) -> None:
    from ... import lenses

    plot = written.check_colour(shown.value)
    model, texts, options = reading.load(machine, written)
    targets = shown.target or []
    options |= {"top": shown.top, "targets": targets}
    result = lenses.read(model, texts, lens=lens, **options)
    written.save(result, **plot, **({"target": targets[0]} if targets and plot else {}))
    if written.json:
        as_json(result.table)
    else:
        for row in range(len(texts)):
            _one_token(model, result, row, -1 if shown.position is None else shown.position, targets)
    written.say_where()


def _one_token(model: "Model", result: "LensResult", row: int, place: int, targets: list[str]) -> None:
    """The table of one token: a line a layer."""
    columns = result.chosen[row].nonzero().flatten().tolist()
    if not -len(columns) <= place < len(columns):
        raise BadInput(f"--position {place}: prompt {row} has {len(columns)} tokens")
    column = columns[place]
    rows = []
    for layer, site in enumerate(result.sites):
        cell = (layer, row, column)
        words = likeliest(result.top_tokens(*cell), result.top_probabilities[cell].tolist())
        numbers = [float(result[name][cell]) for name in ("entropy", "kl")]
        rows.append([str(site), *numbers, *(int(result.ranks[name][cell]) for name in targets), words])
    token = model.str_token(int(result.tokens.ids[row, column]))
    titles = ["layer", "entropy", "KL to the end", *(f"rank of {name!r}" for name in targets), "likeliest"]
    table(titles, rows, f"{result.lens} after {token!r} (token {columns.index(column)} of prompt {row})")
