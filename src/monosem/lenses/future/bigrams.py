"""A baseline without a model: which tokens follow a token at some distance, counted in the texts that a lens was
fitted on."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

KEPT = 10  # successors kept for each token: enough for precision@10


@dataclass(frozen=True, eq=False)
class Bigrams:
    """The most frequent tokens at each distance after a token; tokens never seen get the most frequent ones of all.

    Attributes:
        seen: `token`, sorted ids that were followed by something.
        best: `distance token k`; frequent: `k`, the most frequent tokens of all.
    """

    seen: Int[Tensor, "token"]
    best: Int[Tensor, "distance token k"]
    frequent: Int[Tensor, "k"]

    @classmethod
    def count(cls, prompts: list[list[int]], distances: list[int], vocab: int) -> "Bigrams":
        """Count pairs (token, the token `distance` later) in the prompts."""
        rows = [torch.tensor(row) for row in prompts]
        every = torch.cat(rows)
        seen = every.unique()
        frequent = torch.bincount(every, minlength=vocab).topk(min(KEPT, vocab)).indices
        tables = []
        for distance in distances:
            pairs = [row[:-distance] * vocab + row[distance:] for row in rows if len(row) > distance]
            key, counts = torch.cat([torch.empty(0, dtype=torch.long), *pairs]).unique(return_counts=True)
            tables.append(_best(key, counts, seen, frequent, vocab))
        return cls(seen, torch.stack(tables), frequent)

    def predict(self, ids: Int[Tensor, "n"], distance: int) -> Int[Tensor, "n k"]:
        """Likeliest tokens first; `distance` is an index into the distances that were counted."""
        at = torch.searchsorted(self.seen, ids).clamp(max=len(self.seen) - 1)
        guesses = self.best[distance, at]
        return torch.where((self.seen[at] == ids)[:, None], guesses, self.frequent)


def _best(key: Tensor, counts: Tensor, seen: Tensor, frequent: Tensor, vocab: int) -> Int[Tensor, "token k"]:
    first, second = key // vocab, key % vocab
    order = torch.argsort(counts, descending=True, stable=True)
    order = order[torch.argsort(first[order], stable=True)]  # by first token, the most frequent pair first
    first, second = first[order], second[order]
    place = torch.arange(len(first)) - torch.searchsorted(first, first)  # 0 for the best successor of its token
    best = frequent.repeat(len(seen), 1)
    kept = place < best.shape[1]
    best[torch.searchsorted(seen, first[kept]), place[kept]] = second[kept]
    return best
