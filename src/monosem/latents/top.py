"""The latents that fire most on a prompt."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pandas as pd

from ..dictionaries import Dictionary
from ..errors import UnknownName
from ..models import Model
from ..results import Result, analysis
from .index import Index
from .pooling import prompt_runs


@dataclass(frozen=True)
class Top(Result):
    """`table`: prompt, position, token, last, rank, latent, value [, of_maximum: value over the latent's maximum]."""

    rows: pd.DataFrame = field(repr=False)

    ranked_by: ClassVar[str | None] = "value"
    either_way: ClassVar[bool] = True

    @property
    def table(self) -> pd.DataFrame:
        return self.rows

    @property
    def last(self) -> pd.DataFrame:
        """Only the last token of each prompt."""
        return self.table[self.table["last"]].reset_index(drop=True)


@analysis
def top(
    model: Model,
    dictionary: Dictionary,
    prompts: Any,
    *,
    n: int = 10,
    positions: Literal["all", "last"] = "all",
    index: Index | None = None,
) -> Top:
    """The n strongest latents (in magnitude) of every token, or of the last token of each prompt.

    Special tokens and the first token of a prompt are left out, but the last token is always shown.

    Args:
        prompts: one or several, as for `Model.run`.
        index: adds how large each value is beside the latent's maximum there.

    Raises:
        BadInput: empty prompts. Mismatch: a dictionary of another model.
    """
    if positions not in ("all", "last"):
        raise UnknownName(f"positions is 'all' or 'last', not {positions!r}")
    rows: list[dict[str, Any]] = []
    done = 0  # prompts of earlier batches
    for run, counted in prompt_runs(model, dictionary, prompts):
        for number, strings in enumerate(run.str_tokens):
            ids = run.tokens.mask[number].nonzero()[:, 0]
            codes = dictionary.encode(run[dictionary.site][number, ids])
            order = codes.values.abs().argsort(-1, descending=True)[:, :n]
            values, latents = codes.values.gather(-1, order).tolist(), codes.indices.gather(-1, order).tolist()
            for position, token in enumerate(strings):
                last = position == len(strings) - 1
                if not last and (positions == "last" or not bool(counted[number, ids[position]])):
                    continue
                active = [(f, v) for f, v in zip(latents[position], values[position]) if v != 0]
                place = {"prompt": done + number, "position": position, "token": token, "last": last}
                rows += [{**place, "rank": r, "latent": f, "value": v} for r, (f, v) in enumerate(active, 1)]
        done += len(run.tokens)
    columns = ["prompt", "position", "token", "last", "rank", "latent", "value"]
    table = pd.DataFrame(rows, columns=columns)
    if index is not None:
        table["of_maximum"] = table["value"] / index.maxima.numpy()[table["latent"].to_numpy(dtype=int)]
    return Top(table)
