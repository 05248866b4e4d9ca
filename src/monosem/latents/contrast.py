"""Which latents tell two kinds of prompt apart."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data import PromptPairs
from ..dictionaries import Dictionary
from ..errors import BadInput
from ..files import write_json
from ..models import Model
from ..results import Tabled, analysis
from ..statistics import auroc, auroc_bounds, cohen, consistency, permutation_p
from .pooling import Pool, pooled

TELLS_APART = 0.7  # AUROC on the search half that `Contrast.candidates` puts first


@dataclass(frozen=True)
class Contrast(Tabled):
    """`table` has one row a latent that fires on any prompt of the search half, the best score first.

    Columns: latent; difference (of means); consistency; cohen (`statistics.cohen`); score = difference × consistency;
    auroc with its 95 % interval auroc_low, auroc_high (`statistics.auroc_bounds`); p (permutation, one latent);
    p_family (corrected for looking at all latents); rate_positive, rate_negative (share of prompts on which it fires);
    and on the half that the ranking did not see: held_out_difference, held_out_auroc, held_out_low, held_out_high.
    `config["prompts"]` has the numbers of prompts: an interval from a few of them is wide.

    Where codes have signs (abstopk), column sign is -1 for latents that are negative on average on the positive prompts
    (on the negative ones, where they are silent on the positive); their numbers are for the latent turned around.
    """

    ranked_by: ClassVar[str | None] = "score"

    @property
    def best(self) -> int:
        """The first of `candidates`."""
        return int(self.candidates(1)["latent"].iloc[0])

    def candidates(self, n: int) -> pd.DataFrame:
        """The `n` rows that are the likeliest to carry the concept, by the search half alone.

        Latents with an AUROC of at least `TELLS_APART` come first. Within these, and within the others, by score times
        (2 auroc_low - 1), 0 where chance lies within the interval, and times (1 - rate_negative / 2): the score alone
        could choose a latent that is large and on everywhere, and a high AUROC of a few prompts is luck.
        """
        table = self.table
        order = pd.DataFrame(
            {
                "apart": table["auroc"] >= TELLS_APART,
                "worth": table["score"] * (2 * table["auroc_low"] - 1).clip(0) * (1 - table["rate_negative"] / 2),
                "auroc": table["auroc_low"],
            }
        ).sort_values(["apart", "worth", "auroc"], ascending=False, kind="stable")
        return table.loc[order.index[:n]].reset_index(drop=True)

    def save(self, path: str | os.PathLike[str], **plot: Any) -> Path:
        """As `Result.save`; in .json the config stands beside the table."""
        if Path(path).suffix.lower() != ".json":
            return super().save(path, **plot)
        rows = self.table.astype(object).where(self.table.notna(), None)  # JSON has no NaN
        write_json(path, {"config": self.config, "table": rows.to_dict("records")})
        return Path(path)


@analysis
def contrast(
    model: Model,
    dictionary: Dictionary,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    paired: bool = True,
    pool: Pool = "max",
    held_out: float | PromptPairs = 0.5,
    permutations: int = 1000,
    seed: int = 0,
) -> Contrast:
    """Rank latents by how much more they fire on the positive prompts, and check the ranking on held-out prompts.

    Score = mean difference × consistency, consistency being the share of pairs in which the positive prompt is above
    its partner: a latent that is huge on one prompt only does not win. Everything but the held_out columns comes from
    the search half. Tokens that the dictionary was not trained on (`Dictionary.skip`) are left out; `config["tokens"]`
    says how many.

    Args:
        held_out: share of the prompts that the ranking does not see, split off once by `seed` (pairs stay together);
            or other prompts, of another kind perhaps, and then the ranking sees all of `positive` and `negative`.

    Raises:
        BadInput: unpaired lists (with `paired`), empty prompts, too few prompts to split, prompts on which no latent
            fires, or without a token that counts.
        Mismatch: a dictionary of another model.
    """
    search = PromptPairs(positive, negative, paired)
    search, rest = (search, held_out) if isinstance(held_out, PromptPairs) else search.split(held_out, seed=seed)
    if rest.paired != paired:
        raise BadInput(
            f"held_out has paired={rest.paired}, the prompts of the search have paired={paired}; they must be alike"
        )
    skipper = dictionary.skipper(model)
    up, down = (pooled(model, dictionary, side, pool, skipper=skipper) for side in (search.positive, search.negative))
    fires = ((up != 0).any(0) | (down != 0).any(0)).nonzero()[:, 0]
    if not len(fires):
        raise BadInput(f"no latent of {dictionary.name or 'this dictionary'} fires on any of the prompts searched")
    up, down = up[:, fires], down[:, fires]
    sign = torch.where(torch.where((up != 0).any(0), up.mean(0), down.mean(0)) < 0, -1.0, 1.0)
    up, down = up * sign, down * sign
    out_up, out_down = (
        pooled(model, dictionary, side, pool, skipper=skipper)[:, fires] * sign
        for side in (rest.positive, rest.negative)
    )
    table = _table(fires, (up, down), (out_up, out_down), paired, permutations, seed)
    if (sign < 0).any():
        signs = dict(zip(fires.tolist(), sign.int().tolist()))
        table.insert(1, "sign", table["latent"].map(signs))
    prompts = {"search": len(search.positive), "held_out": len(rest.positive)}
    return Contrast(table, {"prompts": prompts, "tokens": skipper.summary()})


Side = Float[Tensor, "prompts latents"]


def _table(
    latents: Int[Tensor, "latents"],
    searched: tuple[Side, Side],
    held_out: tuple[Side, Side],
    paired: bool,
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """One row a latent, the best score first."""
    (up, down), (out_up, out_down) = searched, held_out
    difference, steady = up.mean(0) - down.mean(0), consistency(up, down, paired)
    p, p_family = permutation_p(up, down, paired, permutations, seed)
    area, out_area = auroc(up, down), auroc(out_up, out_down)
    low, high = auroc_bounds(area, len(up), len(down))
    out_low, out_high = auroc_bounds(out_area, len(out_up), len(out_down))
    columns = {
        "latent": latents,
        "difference": difference,
        "consistency": steady,
        "cohen": cohen(up, down),
        "score": difference * steady,
        "auroc": area,
        "auroc_low": low,
        "auroc_high": high,
        "p": p,
        "p_family": p_family,
        "rate_positive": (up != 0).float().mean(0),
        "rate_negative": (down != 0).float().mean(0),
        "held_out_difference": out_up.mean(0) - out_down.mean(0),
        "held_out_auroc": out_area,
        "held_out_low": out_low,
        "held_out_high": out_high,
    }
    table = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    order = torch.argsort(columns["score"], descending=True, stable=True)
    return table.iloc[order.numpy()].reset_index(drop=True)
