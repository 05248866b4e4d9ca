"""The latents that fire most on a prompt."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd

from ..dictionaries import Dictionary
from ..errors import UnknownName
from ..models import Model
from ..results import Tabled, analysis
from .index import Index
from .pooling import prompt_runs


@dataclass(frozen=True)
class Top(Tabled):
    """`table`: prompt, position, token, last, rank, latent, value [, of_maximum: value over the latent's maximum]."""

    ranked_by: ClassVar[str | None] = "value"
    either_way: ClassVar[bool] = True

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

    Tokens that the dictionary was not trained on (`Dictionary.skip`: by default the first of a prompt, special tokens
    and norm outliers) are left out; `config["tokens"]` says how many.

    Args:
        prompts: one or several, as for `Model.run`.
        index: adds how large each value is beside the latent's maximum there.

    Raises:
        BadInput: empty prompts, or without a token that counts; with positions="last", last tokens that do not count.
        Mismatch: a dictionary of another model.
    """
    if positions not in ("all", "last"):
        raise UnknownName(f"positions is 'all' or 'last', not {positions!r}")
    rows: list[dict[str, Any]] = []
    done = 0  # prompts of earlier batches
    skipper, site = dictionary.skipper(model), dictionary.site
    for run, counted in prompt_runs(model, dictionary, prompts, skipper=skipper):
        if positions == "last":
            skipper.check_last(model, run.tokens, {str(site): run[site]})
        for number, strings in enumerate(run.str_tokens):
            ids = run.tokens.mask[number].nonzero()[:, 0]
            codes = dictionary.encode(run[site][number, ids].unsqueeze(0))
            order = codes.values.abs().argsort(-1, descending=True)[..., :n]
            values, latents = codes.values.gather(-1, order)[0].tolist(), codes.indices.gather(-1, order)[0].tolist()
            for position, token in enumerate(strings):
                last = position == len(strings) - 1
                if not bool(counted[number, ids[position]]) or (positions == "last" and not last):
                    continue
                active = [(f, v) for f, v in zip(latents[position], values[position]) if v != 0]
                place = {"prompt": done + number, "position": position, "token": token, "last": last}
                rows += [{**place, "rank": r, "latent": f, "value": v} for r, (f, v) in enumerate(active, 1)]
        done += len(run.tokens)
    columns = ["prompt", "position", "token", "last", "rank", "latent", "value"]
    table = pd.DataFrame(rows, columns=columns).astype({"last": bool})  # also where no latent is active
    if index is not None:
        table["of_maximum"] = table["value"] / index.maxima.numpy()[table["latent"].to_numpy(dtype=int)]
    return Top(table, {"tokens": skipper.summary()})
