"""Which tokens are left out of training and statistics, and how many were."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import BadInput
from ..models import Model, TokenBatch


def counted_tokens(model: Model, tokens: TokenBatch) -> Bool[Tensor, "batch pos"]:
    """Real tokens that are neither special nor the first of their row (attention sinks, whose norm is an outlier)."""
    special = torch.tensor(sorted(model.special_ids), dtype=torch.long, device=tokens.ids.device)
    return tokens.mask & ~torch.isin(tokens.ids, special) & (tokens.positions > 0)


@dataclass(frozen=True)
class SkipRule:
    """Tokens to leave out. The defaults are what training and statistics use.

    The norms of a residual stream are not all alike: attention sinks and a few other tokens reach 100 times the median
    (smollm2 `resid_post.15`: median near 170, outliers up to 26,000, not only at position 0), and would dominate any
    mean squared error. The median is estimated once, on `calibration` windows spread over the source, and then kept: a
    threshold that ran along with the data would depend on the order of the batches, and a resumed job would differ.
    """

    special: bool = True  # tokens that the tokenizer declares special (separators, chat markup)
    first: int = 1  # this many positions at the start of each window
    outlier: float | None = 10.0  # norms above this many medians, at any of the wanted sites; None keeps them
    calibration: int = 16  # windows that the median is estimated on

    def __post_init__(self) -> None:
        if self.first < 0 or self.calibration < 1 or (self.outlier is not None and not self.outlier > 1):
            raise BadInput(f"a skip rule needs first >= 0, calibration >= 1 and outlier > 1 or None; got {self}")

    @classmethod
    def none(cls) -> "SkipRule":
        """Keep every token (only tokens whose activation is not finite are left out)."""
        return cls(special=False, first=0, outlier=None)


class Skipper:
    """Applies a `SkipRule` to batches and counts.

    Attributes:
        counts: tokens by what became of them: `kept`, and left out as `first`, `special`, `not finite` or `outlier`
            (each token under the first of these that holds). They sum to all tokens seen.
        thresholds: site name -> norm above which a token is an outlier; empty until calibrated, or without outliers.
    """

    def __init__(self, rule: SkipRule, special_ids: Iterable[int], vocabulary: int):
        self.rule = rule
        self.counts: Counter[str] = Counter()
        self.thresholds: dict[str, float] = {}
        ids = [i for i in special_ids if i < vocabulary] if rule.special else []
        self._special = torch.zeros(vocabulary, dtype=torch.bool)
        self._special[torch.tensor(ids, dtype=torch.long)] = True

    def calibrate(self, ids: Int[Tensor, "batch pos"], rows: Mapping[str, Float[Tensor, "tokens d"]]) -> None:
        """Set the thresholds (of a rule that has outliers) from the activations of some windows."""
        assert self.rule.outlier is not None
        wanted = ~(self._first(ids) | self._special.to(ids.device)[ids]).flatten()
        for site, x in rows.items():
            norms = _norms(x)
            norms = norms[wanted & norms.isfinite()]
            if not len(norms):
                raise BadInput(f"{site}: no finite activation to take the median norm of; check the text and the dtype")
            self.thresholds[site] = self.rule.outlier * float(norms.median())

    def keep(self, ids: Int[Tensor, "batch pos"], rows: Mapping[str, Float[Tensor, "tokens d"]]) -> Int[Tensor, "kept"]:
        """Indices of the tokens to keep, in the flattened [batch * pos]. A token that is an outlier at one of the
        sites is left out at all of them, so that the rows of several sites stay aligned."""
        first = self._first(ids).flatten()
        if self._special.device != ids.device:
            self._special = self._special.to(ids.device)
        special = self._special[ids.flatten()]
        finite = torch.ones_like(first)
        within = torch.ones_like(first)
        for site, x in rows.items():
            norms = _norms(x)
            finite &= norms.isfinite()
            if site in self.thresholds:
                within &= norms <= self.thresholds[site]
        return self._count(first, special, finite, within)

    def _count(
        self,
        first: Bool[Tensor, "tokens"],
        special: Bool[Tensor, "tokens"],
        finite: Bool[Tensor, "tokens"],
        within: Bool[Tensor, "tokens"],
    ) -> Int[Tensor, "kept"]:
        left = ~first
        totals = [left.sum()]
        for good in (~special, finite, within):
            left = left & good
            totals.append(left.sum())
        numbers = [first.numel(), *torch.stack(totals).tolist()]  # one transfer from the accelerator for all counts
        for reason, before, after in zip(("first", "special", "not finite", "outlier"), numbers, numbers[1:]):
            self.counts[reason] += before - after
        self.counts["kept"] += numbers[-1]
        return left.nonzero().flatten()

    def _first(self, ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        first = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        first[:, : self.rule.first] = True
        return first


def _norms(x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens"]:
    """Euclidean norms, accumulated in float32 (a float16 norm overflows at 65,504)."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
