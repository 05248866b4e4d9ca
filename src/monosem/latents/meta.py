"""Latents as sums of meta-latents: a meta-SAE's code of each decoder row (Leask et al. 2025, arXiv:2502.04878)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from ..dictionaries import Dictionary
from ..dictionaries.codes import latent_ids
from ..errors import Mismatch
from ..results import Result, analysis
from .maps import unit_rows


@dataclass(frozen=True)
class MetaLatents(Result):
    """`table`, one row a latent and meta-latent of its code, a latent's strongest first.

    Columns: latent; meta; activation (of the row at length 1); given, its part of the row's squared length of 1
    (activation × meta's decoder row · row): these, the bias' and the error's parts add up to 1.

    Attributes:
        explained: latent -> 1 - |error|² / |row - mean row|², of rows at length 1.
        bias: latent -> what the meta-SAE's bias gives.
    """

    rows: pd.DataFrame = field(repr=False)
    explained: "pd.Series[float]" = field(repr=False)
    bias: "pd.Series[float]" = field(repr=False)
    config: Any = field(default_factory=dict, repr=False)
    ranked_by: ClassVar[str | None] = "activation"

    @property
    def table(self) -> pd.DataFrame:
        return self.rows

    def of(self, latent: int) -> pd.DataFrame:
        """The meta-latents of one latent."""
        return self.rows[self.rows["latent"] == latent].reset_index(drop=True)

    def sharing(self, meta: int) -> pd.DataFrame:
        """The latents that one meta-latent is in, the strongest first."""
        return self.rows[self.rows["meta"] == meta].sort_values("activation", ascending=False, ignore_index=True)


@analysis
@torch.no_grad()
def meta_latents(
    dictionary: Dictionary, meta: Dictionary, latents: int | Sequence[int] | Tensor | None = None
) -> MetaLatents:
    """The decomposition of latents (default: all) by a meta-SAE that was trained on this dictionary's decoder rows
    (`TrainConfig.meta_of`).

    Raises:
        Mismatch: the meta-SAE reads another space. UnknownName: no such latent.
    """
    if meta.W_enc.shape[0] != dictionary.d_out or meta.site != dictionary.site_out:
        raise Mismatch(
            f"{meta.name} codes vectors of {meta.W_enc.shape[0]} numbers at {meta.site}, and rows of {dictionary.name} "
            f"have {dictionary.d_out} at {dictionary.site_out}: train one with meta_of={dictionary.name!r}"
        )
    ids = torch.arange(dictionary.width) if latents is None else latent_ids(latents, dictionary.width)
    every = unit_rows(dictionary)
    rows = every[ids].to(meta.W_dec.device)
    codes = meta.encode(rows)
    rebuilt = meta.decode(codes)
    spread = (rows.cpu() - every.mean(0)).square().sum(1)
    explained = 1 - (rows - rebuilt).cpu().square().sum(1) / spread
    at, values, indices = (one.flatten().cpu() for one in (_rows_of(codes.indices), codes.values, codes.indices))
    given = values * (meta.W_dec.float().cpu()[indices] * every[ids][at]).sum(1)
    table = pd.DataFrame({"latent": ids[at], "meta": indices, "activation": values.float(), "given": given})
    table = table[table["activation"] != 0].drop_duplicates()
    table = table.sort_values(["latent", "activation"], ascending=[True, False], kind="stable", ignore_index=True)
    bias = rows.cpu() @ meta.b_dec.float().cpu()
    names = pd.Index(ids.tolist(), name="latent")
    return MetaLatents(table, pd.Series(explained.numpy(), names), pd.Series(bias.numpy(), names))


def _rows_of(indices: Tensor) -> Tensor:
    return torch.arange(len(indices), device=indices.device)[:, None].expand_as(indices)
