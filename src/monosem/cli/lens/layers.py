"""`monosem lens logit` and `tuned`: the likeliest tokens of every layer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from ..options import option
from ..output import table
from .options import Likeliest, Position, Reading, Value, likeliest, token_at

if TYPE_CHECKING:
    from ...lenses import LensResult
    from ...models import Model

Targets = Annotated[list[str] | None, option("TOKEN", "A token to follow, with its leading space. May be repeated.")]
TunedLens = Annotated[str, option("DIR", "A tuned lens (default: the one shipped for MODEL).")]
AnyLens = Annotated[str, option("PATH", "The file or folder of a tuned, Jacobian or head lens.")]


@dataclass(frozen=True, kw_only=True)
class LayerReading(Reading):
    """Which tokens are shown and followed."""

    position: Position = -1
    top: Likeliest = 5
    target: Targets = None
    value: Value = None


def logit(reading: LayerReading) -> None:
    """Read every layer as if it were the last.

    Shows the likeliest next tokens of each layer, its entropy and how far it is from the end (KL, nats), after one
    token of each prompt. --out writes all tokens, as a picture or a table.

    Example: monosem lens logit smollm2 "The capital of France is" --target " Paris" --out lens.html
    """
    _read(reading, None)


def tuned(reading: LayerReading, lens: TunedLens = "tuned") -> None:
    """Read every layer through learnt translators.

    As `monosem lens logit`, through a tuned lens: one affine map a layer, trained to say what the model will say.

    Example: monosem lens tuned smollm2 "The capital of France is" --position 3
    """
    _read(reading, lens)


def read(reading: LayerReading, lens: AnyLens) -> None:
    """Read every layer through a lens of your own.

    As `monosem lens logit`, through what `monosem lens train` wrote, or a published file: a tuned lens, a Jacobian
    lens, or a lens made of heads.

    Example: monosem lens read smollm2 "The capital of France is" --lens runs/jacobian/lens
    """
    _read(reading, lens)


def _read(reading: LayerReading, lens: str | None) -> None:
    from ... import lenses

    plot, targets = reading.colour(reading.value), reading.target or []
    model = reading.load()
    texts = reading.texts(model)
    result = lenses.read(model, texts, lens=lens, top=reading.top, targets=targets, **reading.options(model))

    def shown() -> None:
        for row in range(len(texts)):
            _one_token(model, result, row, reading.position, targets)

    reading.give(result, shown, **plot, **({"target": targets[0]} if targets and plot else {}))


def _one_token(model: "Model", result: "LensResult", row: int, position: int, targets: list[str]) -> None:
    """The table of one token: a line a layer."""
    columns = result.chosen[row].nonzero().flatten().tolist()
    column = token_at(position, columns, f"prompt {row} has")
    rows = []
    for layer, site in enumerate(result.sites):
        cell = (layer, row, column)
        words = likeliest(result.top_tokens(*cell), result.top_probabilities[cell].tolist())
        numbers = [float(result[name][cell]) for name in ("entropy", "kl")]
        rows.append([str(site), *numbers, *(int(result.ranks[name][cell]) for name in targets), words])
    token = model.str_token(int(result.tokens.ids[row, column]))
    titles = ["layer", "entropy", "KL to the end", *(f"rank of {name!r}" for name in targets), "likeliest"]
    table(titles, rows, f"{result.lens} after {token!r} (token {columns.index(column)} of prompt {row})")
