"""Running sums of an evaluation over counted tokens, in float64: how well a dictionary fits, and what it costs."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import metrics
from .codes import Codes
from .dictionary import Dictionary

LOGIT_ROWS = 512  # rows of logits compared at once: 100 MB in float32 for a vocabulary of 49,152


class FitSums:
    """Sparsity and reconstruction, as running sums over counted tokens."""

    def __init__(self, dictionary: Dictionary, device: torch.device):
        self.dictionary, self.n = dictionary, 0
        self.fired = torch.zeros(dictionary.width, dtype=torch.long, device=device)
        self.sum_x = torch.zeros(dictionary.d_out, dtype=torch.float64, device=device)
        self.sum_e = torch.zeros_like(self.sum_x)
        self.sums = dict.fromkeys(("xx", "ee", "yy", "xy", "legacy", "off_mean", "cosine", "ratio"), 0.0)

    def add(
        self,
        x: Float[Tensor, "batch pos d_in"],
        target: Float[Tensor, "batch pos d_out"],
        kept: Bool[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos d_out"]:
        """Count these tokens; returns their reconstructions in place (zeros elsewhere), in the dtype of `target`."""
        inputs = x[kept].float()
        codes = self.dictionary.encode(inputs)
        rebuilt = self.dictionary.decode(codes, like=inputs)
        self._count(codes)
        self._compare(target[kept].double(), rebuilt.double())
        out = torch.zeros_like(target)
        out[kept] = rebuilt.to(target)
        return out

    def _count(self, codes: Codes) -> None:
        active = codes.indices[codes.values != 0]
        self.fired += torch.bincount(active, minlength=self.dictionary.width).to(self.fired.device)
        self.n += codes.values.shape[0]

    def _compare(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> None:
        error = x - y
        self.sum_x += x.sum(0)
        self.sum_e += error.sum(0)
        squared, norm_x, norm_y = error.square().sum(-1), x.norm(dim=-1), y.norm(dim=-1)
        dot, spread = (x * y).sum(-1), (x - x.mean(0)).square().sum(-1)
        added = {
            "xx": norm_x.square(),
            "ee": squared,
            "yy": norm_y.square(),
            "xy": dot,
            "legacy": torch.where(spread > 0, 1 - squared / spread, 0),  # a batch of one token has no spread
            "off_mean": spread > 0,
            "cosine": dot / (norm_x * norm_y).clamp(min=torch.finfo(x.dtype).tiny),
            "ratio": norm_y / norm_x.clamp(min=torch.finfo(x.dtype).tiny),
        }
        for name, per_token in added.items():
            self.sums[name] += float(per_token.sum())

    def result(self) -> dict[str, Any]:
        n, s = self.n, self.sums
        variance = s["xx"] - float(self.sum_x.square().sum()) / n
        centred = s["ee"] - float(self.sum_e.square().sum()) / n
        return {
            "fve": 1 - _ratio(s["ee"], variance),
            "fve_centred_error": 1 - _ratio(centred, variance),
            "fve_legacy": _ratio(s["legacy"], s["off_mean"]),
            "l0": float(self.fired.sum()) / n,
            "cosine": s["cosine"] / n,
            "mse": s["ee"] / n,
            "l2_ratio": s["ratio"] / n,
            "relative_reconstruction_bias": _ratio(s["yy"], s["xy"]),
            "dead_fraction": float((self.fired == 0).double().mean()),
            "tokens": n,
            "density": (self.fired.double() / n).cpu().numpy(),
        }


class CostSums:
    """Loss and KL of the edited model, as running sums over counted tokens that have a next one."""

    def __init__(self) -> None:
        self.n = 0
        self.sums: defaultdict[str, float] = defaultdict(float)

    def add(
        self,
        clean: Tensor | None,
        edited: Iterator[tuple[str, Float[Tensor, "batch pos vocab"]]],
        ids: Int[Tensor, "batch pos"],
        kept: Bool[Tensor, "batch pos"],
    ) -> None:
        """`edited` gives the arms "spliced", "zero" and "zero_counted" with their logits, one after the other."""
        assert clean is not None
        rows, columns = kept[:, :-1].nonzero(as_tuple=True)
        self.n += len(rows)
        chunks = list(zip(rows.split(LOGIT_ROWS), columns.split(LOGIT_ROWS)))
        for row, column in chunks:
            self._sum("ce_clean", metrics.cross_entropy(clean[row, column], ids[row, column + 1]))
        for arm, logits in edited:
            for row, column in chunks:
                self._sum(f"ce_{arm}", metrics.cross_entropy(logits[row, column], ids[row, column + 1]))
                self._sum(f"kl_{arm}", metrics.kl(clean[row, column], logits[row, column]))

    def _sum(self, name: str, per_token: Tensor) -> None:
        self.sums[name] += float(per_token.double().sum())

    def result(self) -> dict[str, Any]:
        mean = {name: total / self.n for name, total in self.sums.items()}
        mean["kl"] = mean.pop("kl_spliced")
        for variant in ("", "_counted"):
            ce_zero, kl_zero = mean[f"ce_zero{variant}"], mean[f"kl_zero{variant}"]
            mean[f"ce_recovered{variant}"] = _ratio(ce_zero - mean["ce_spliced"], ce_zero - mean["ce_clean"])
            mean[f"kl_score{variant}"] = _ratio(kl_zero - mean["kl"], kl_zero)
        return mean | {"predictions": self.n}


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where the denominator is zero: a constant activation has no variance to explain."""
    return numerator / denominator if denominator else math.nan
