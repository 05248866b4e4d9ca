"""Running sums of an evaluation over counted tokens, in float64: how well a dictionary fits, and what it costs."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..statistics import Interval, bootstrap_ratio
from .codes import Codes
from .dictionary import Dictionary
from .splices import SpliceCost


class FitSums:
    """Sparsity and reconstruction, as running sums over counted tokens."""

    def __init__(self, dictionary: Dictionary, device: torch.device):
        self.dictionary, self.n = dictionary, 0
        self.fired = torch.zeros(dictionary.width, dtype=torch.long, device=device)
        self.sum_x = torch.zeros(dictionary.d_out, dtype=torch.float64, device=device)
        self.sum_e = torch.zeros_like(self.sum_x)
        self.sums = dict.fromkeys(("xx", "ee", "yy", "xy", "legacy", "off_mean", "cosine", "ratio"), 0.0)
        self.windows: list[Float[Tensor, "windows 4"]] = []  # tokens, active latents, Σ|e|² and Σ|x|² of each
        self.windows_x: list[Float[Tensor, "windows d_out"]] = []

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
        x, y = target[kept].double(), rebuilt.double()
        self._compare(x, y)
        self._note(kept, torch.stack([(codes.values != 0).sum(-1), (x - y).square().sum(-1), x.square().sum(-1)], 1), x)
        out = torch.zeros_like(target)
        out[kept] = rebuilt.to(target)
        return out

    def _note(
        self, kept: Bool[Tensor, "batch pos"], numbers: Float[Tensor, "n 3"], x: Float[Tensor, "n d_out"]
    ) -> None:
        """The sums of each window, for intervals."""
        window = kept.nonzero()[:, 0]
        numbers = torch.cat([torch.ones_like(numbers[:, :1]), numbers], 1)
        for held, values in ((self.windows, numbers), (self.windows_x, x)):
            held.append(values.new_zeros(len(kept), values.shape[1]).index_add_(0, window, values).cpu())
        self.windows_x[-1] = self.windows_x[-1].float()  # as many numbers as there are windows and dimensions

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

    def intervals(self) -> dict[str, Interval]:
        """Of what is a ratio of sums, over the windows drawn again."""
        mean = (self.sum_x / self.n).cpu()
        n, active, ee, xx = torch.cat(self.windows).T
        along = torch.cat(self.windows_x).double() @ mean
        spread = xx - 2 * along + n * float(mean @ mean)  # from the mean of all tokens
        unexplained = bootstrap_ratio(ee, spread)
        return {
            "fve": Interval(1 - unexplained.value, 1 - unexplained.high, 1 - unexplained.low),
            "l0": bootstrap_ratio(active, n),
            "mse": bootstrap_ratio(ee, n),
        }


class CostSums:
    """Loss and KL of the edited model, as running sums over counted tokens that have a next one."""

    def __init__(self) -> None:
        self.n = 0
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.windows: defaultdict[str, list[Float[Tensor, "windows"]]] = defaultdict(list)

    def add(
        self, kept: Bool[Tensor, "batch pos"], clean: Float[Tensor, "n"], spliced: Mapping[str, SpliceCost]
    ) -> None:
        """The clean loss, and what "spliced", "zero" and "zero_counted" cost, of a batch."""
        rows = kept[:, :-1].nonzero()[:, 0]
        self.n += len(rows)
        found = {"n": torch.ones_like(rows, dtype=torch.float64), "ce_clean": clean}
        for arm, cost in spliced.items():
            found |= {f"{name}_{arm}": each for name, each in cost._asdict().items()}
        for name, values in found.items():
            each = values.double()
            self.windows[name].append(each.new_zeros(len(kept)).index_add_(0, rows, each).cpu())
            self.sums[name] += float(each.sum())

    def intervals(self) -> dict[str, Interval]:
        """Of the losses and what is recovered, over the windows drawn again."""
        held = {name: torch.cat(parts) for name, parts in self.windows.items()}
        n, clean, spliced = held["n"], held["ce_clean"], held["ce_spliced"]
        return {
            "ce_clean": bootstrap_ratio(clean, n),
            "ce_spliced": bootstrap_ratio(spliced, n),
            "ce_recovered": bootstrap_ratio(held["ce_zero"] - spliced, held["ce_zero"] - clean),
            "ce_recovered_counted": bootstrap_ratio(held["ce_zero_counted"] - spliced, held["ce_zero_counted"] - clean),
            "kl": bootstrap_ratio(held["kl_spliced"], n),
        }

    def result(self) -> dict[str, Any]:
        mean = {name: total / self.n for name, total in self.sums.items() if name != "n"}
        mean["kl"] = mean.pop("kl_spliced")
        for variant in ("", "_counted"):
            ce_zero, kl_zero = mean[f"ce_zero{variant}"], mean[f"kl_zero{variant}"]
            mean[f"ce_recovered{variant}"] = _ratio(ce_zero - mean["ce_spliced"], ce_zero - mean["ce_clean"])
            mean[f"kl_score{variant}"] = _ratio(kl_zero - mean["kl"], kl_zero)
        return mean | {"predictions": self.n}


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where the denominator is zero: a constant activation has no variance to explain."""
    return numerator / denominator if denominator else math.nan
