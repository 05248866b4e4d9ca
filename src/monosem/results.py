"""What every analysis returns: a table, a picture, a file, and the settings that made them."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from .errors import BadInput, check_name
from .files import write_result

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

P = ParamSpec("P")
R = TypeVar("R", bound="Result")
SHORT = 20  # a list of settings up to this length is written out, a longer one as its length


class Result:
    """Base of all results. A subclass gives `table`, and `plot` where there is something to see.

    Attributes:
        config: the settings of the analysis that made it, in plain values (`analysis` fills it in).
        ranked_by: the column that `top` and `best` go by, its largest values first.
        either_way: whether values of that column are large in magnitude, whatever their sign.
    """

    config: Mapping[str, Any] = {}
    ranked_by: ClassVar[str | None] = None
    either_way: ClassVar[bool] = False

    @property
    def table(self) -> "pd.DataFrame":
        """One row a thing that was measured; standard errors are in columns `<column>_se`."""
        raise NotImplementedError(f"{type(self).__name__} defines no table")

    def plot(self) -> "Figure":
        """The picture of the result. Raises `BadInput` where there is none."""
        raise BadInput(f"{type(self).__name__} has no picture; use .table, or save it as .csv, .json or .parquet")

    def top(self, n: int = 10, by: str | None = None) -> "pd.DataFrame":
        """The n rows of `table` with the largest values of a column.

        Args:
            by: the column; default `ranked_by`, and the order of the table where there is none.

        Errors as `largest`.
        """
        column = by or self.ranked_by
        return largest(self.table, column, n, either_way=self.either_way and column == self.ranked_by)

    @property
    def best(self) -> Any:
        """The first row of `top`. Subclasses give what the row stands for (a cell, a latent) where there is such."""
        return self.top(1).iloc[0]

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """The picture (.html; `plot` arguments go along) or the table (.csv, .json, .parquet), by the file's ending.

        Raises:
            BadInput: another ending. MissingExtra: .parquet without pyarrow, .html without plotly.
        """
        from .pages import page_of  # templates, which only pictures need

        return write_result(path, self.table, lambda: page_of(self.plot(**plot)))


@dataclass(frozen=True)
class Tabled(Result):
    """A result that is little more than its table."""

    rows: "pd.DataFrame" = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def table(self) -> "pd.DataFrame":
        return self.rows


def largest(table: "pd.DataFrame", column: str | None, n: int, *, either_way: bool = False) -> "pd.DataFrame":
    """The n rows with the largest values of a column (None: the first n), or values furthest from zero either way.

    Raises:
        BadInput: n below 1. UnknownName: no such column.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__") or n < 1:
        raise BadInput(f"n counts rows: a whole number, 1 or more, not {n!r}")
    if column is None:
        return table.head(n)
    check_name("column", column, table.columns)
    key = (lambda values: values.abs()) if either_way else None
    return table.sort_values(column, ascending=False, kind="stable", key=key, ignore_index=True).head(n)


def analysis(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of functions that return a `Result`: its `config` says which function, with which arguments.

    What the function itself puts there (how its input was read, say) stays.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        result = function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        settings = {name: plain(value) for name, value in bound.arguments.items() if name not in ("self", "cls")}
        name = f"{function.__module__.removeprefix('monosem.').split('.')[0]}.{function.__name__}"
        # results are frozen dataclasses: nobody else writes here
        object.__setattr__(result, "config", {"analysis": name, **settings, **result.config})
        return result

    return run


def plain(value: Any) -> Any:
    """A setting as JSON holds it: named things by name, tensors by shape, long lists by length."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "shape"):
        return f"{type(value).__name__}{list(value.shape)}"
    if isinstance(name := getattr(value, "__name__", None) or getattr(value, "name", None), str):
        return name
    if isinstance(value, list | tuple | range | set | frozenset):
        return [plain(item) for item in value] if len(value) <= SHORT else f"{len(value)} {type(value).__name__} items"
    return str(value) if type(value).__str__ is not object.__str__ else type(value).__name__
