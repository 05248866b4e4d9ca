"""Results go to stdout, everything else to stderr; `--json` prints one JSON value and nothing else."""

import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..files import json_value
from ..terminal import STEERING, printable

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType

    from ..steering import Comparison

WIDE = 160  # columns of a table that goes to a file or a pipe
_ESCAPED = re.compile(f"[{''.join(map(chr, STEERING))}]")  # json.dumps itself escapes what lies below


def line(text: object) -> None:
    """One line on stdout."""
    print(printable(str(text)), flush=True)


def as_json(value: Any) -> None:
    """Numpy and torch values become numbers and lists, dataclasses objects, data frames lists of objects, NaN null."""
    text = json.dumps(json_value(value), indent=2, ensure_ascii=False, allow_nan=False)
    print(_ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def show(*parts: "RenderableType") -> None:
    """Rich text and tables on stdout; by `print`, because rich itself would end the program when a pipe is closed."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE)
    with console.capture() as captured:
        for part in parts:
            console.print(_shown(part), soft_wrap=isinstance(part, str))
    print(captured.get(), end="")


def _shown(part: Any) -> Any:
    from rich.text import Text

    if isinstance(part, Text):
        part.plain = printable(part.plain)
    return printable(part) if isinstance(part, str) else part


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None, ruled: bool = False) -> None:
    """Numbers on the right, texts whole and as they are; `ruled` draws a line between rows of several lines."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    shown = Table(box=box.SIMPLE_HEAD, show_lines=ruled)
    shown.pad_edge = False
    for place, name in enumerate(map(printable, columns)):
        numbers = all(isinstance(row[place], Real) for row in rows)
        shown.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_shown(value if isinstance(value, Text) else Text(cell(value))) for value in row))
    show(*([Text(title, style="bold")] if title else []), shown)


def frame(data: "DataFrame", title: str | None = None) -> None:
    table([str(name) for name in data.columns], data.itertuples(index=False), title)


def before_and_after(prompts: Sequence[str], comparison: "Comparison", **more: Sequence[Any]) -> None:
    """What the model says after each prompt with and without an edit; `more`: other columns, by their names. The KL
    belongs to the first token, which an edit of generated tokens alone does not reach."""
    changes = comparison.table[["baseline_text", "edited_text", "kl"]].itertuples(index=False)
    rows = [(prompt, *change, *rest) for prompt, change, *rest in zip(prompts, changes, *more.values(), strict=True)]
    table(["prompt", "before", "after", "KL, 1st token", *more], rows, ruled=True)


def cell(value: Any) -> str:
    """Four significant digits; whole numbers as they are, for most are ids."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int) or not isinstance(value, Real):
        return str(value)
    return f"{float(value):.4g}"
