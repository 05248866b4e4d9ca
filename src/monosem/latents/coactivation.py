"""Which latents fire together: exact counts over all pairs, from the sparse codes of every token."""

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from .tallies import Firings, rank_in_group

MOST = 256  # of a token with more active latents the strongest count
GIB = 2**30
BLOCK = 2**14  # pairs that are counted together
LATENTS = 64  # whose pairs are looked through together
CELL = 8  # bytes a pair: a count in 32 bits, a sum of products in 32


class Coactivation:
    """For every pair of latents: tokens at which both are active, and the sum of the products of their activations.

    Pairs lie in a triangle: (i, j) with i > j at i (i - 1) / 2 + j. Of a token with more than `MOST` active latents
    only the strongest count, in a latent's own numbers (count, s1, s2) as well: all measures are of the same tokens.
    """

    def __init__(self, width: int):
        self.width = width
        n = width * (width - 1) // 2
        cells = np.zeros((n, 2), dtype=np.float32)  # side by side, because most of the time goes to reaching them
        self.both, self.product = cells[:, 0].view(np.int32), cells[:, 1]
        self.own = np.zeros((3, width))

    @staticmethod
    def memory(width: int) -> float:
        """GiB that it takes."""
        return CELL * width * (width - 1) / 2 / GIB

    def add(self, f: Firings) -> None:
        order = np.argsort(f.row, kind="stable")  # latents are in their order
        if (np.bincount(f.row) > MOST).any():
            strongest = np.lexsort((-np.abs(f.value), f.row))
            kept = np.zeros(len(order), dtype=bool)
            kept[strongest[rank_in_group(f.row[strongest]) < MOST]] = True
            order = order[kept[order]]
        latent, value = f.latent[order], f.value[order]
        for sums, power in zip(self.own, (1, 2, 3)):
            sums += np.bincount(latent, weights=value.astype(np.float64) ** (power - 1), minlength=self.width)
        self._pair(latent, value, rank_in_group(f.row[order]))

    def _pair(self, latent: Int[np.ndarray, "n"], value: Float[np.ndarray, "n"], before: Int[np.ndarray, "n"]) -> None:
        """Count each firing with those `before` it of the same token, a block at a time that the processor's cache
        holds."""
        triangle, first = latent * (latent - 1) // 2, np.arange(len(latent)) - before
        ends = np.cumsum(before)
        cuts = np.searchsorted(ends, np.arange(BLOCK, ends[-1] if len(ends) else 0, BLOCK)).tolist()
        for start, end in itertools.pairwise([0, *cuts, len(latent)]):
            n = before[start:end]
            inside = np.cumsum(n)
            low = np.arange(n.sum()) - np.repeat(inside - n - first[start:end], n)
            cells = np.repeat(triangle[start:end], n) + latent[low]
            np.add.at(self.both, cells, np.int32(1))
            np.add.at(self.product, cells, np.repeat(value[start:end], n) * value[low])

    def with_latents(
        self, latents: Int[np.ndarray, "n"]
    ) -> tuple[Int[np.ndarray, "width n"], Float[np.ndarray, "width n"]]:
        """Counts and products of some latents with every other one; 0 with themselves."""
        others = np.arange(self.width)[:, None]
        high, low = np.maximum(others, latents), np.minimum(others, latents)
        cells = high * (high - 1) // 2 + low
        cells[latents, np.arange(len(latents))] = 0  # no pair
        both, product = self.both[cells], self.product[cells]
        both[latents, np.arange(len(latents))] = product[latents, np.arange(len(latents))] = 0
        return both, product

    def kept(self, n: int, tokens: int) -> Iterator[bytes]:
        """Of each latent the n others with the largest Jaccard index and the n with the largest correlation, packed."""
        for first in range(0, self.width, LATENTS):
            latents = np.arange(first, min(first + LATENTS, self.width))
            table = tuple(np.ascontiguousarray(one.T) for one in self.with_latents(latents))
            row, other = table[0].nonzero()
            both, product = table[0][row, other].astype(np.int64), table[1][row, other].astype(np.float64)
            found = measures(self.own[:, latents[row]], self.own[:, other], both, product, tokens)
            chosen = np.zeros(len(row), dtype=bool)
            for by in ("jaccard", "pearson"):
                chosen[_largest(np.nan_to_num(found[by], nan=-2), row, other, table[0].shape, n)] = True
            cuts = np.searchsorted(row[chosen], np.arange(1, len(latents)))
            columns = [np.split(one[chosen], cuts) for one in (other, both, product)]
            yield from map(pack_pairs, *columns)

    def state(self) -> dict[str, np.ndarray]:
        return {"pairs_both": self.both, "pairs_product": self.product, "pairs_own": self.own}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.both[:], self.product[:], self.own = (state[f"pairs_{name}"] for name in ("both", "product", "own"))


def _largest(
    value: Float[np.ndarray, "n"], row: Int[np.ndarray, "n"], column: Int[np.ndarray, "n"], shape: Any, n: int
) -> Int[np.ndarray, "kept"]:
    """Indices of the n largest of each row, of equal ones the first; sorted by row and column, as they come."""
    dense = np.full(shape, -np.inf)
    dense[row, column] = value
    least = torch.from_numpy(dense).topk(min(n, shape[1])).values[:, -1].numpy()
    candidates = np.flatnonzero(value >= least[row])
    order = candidates[np.lexsort((-value[candidates], row[candidates]))]
    return order[rank_in_group(row[order]) < n]


def measures(
    own: Float[np.ndarray, "3 1|n"],
    others: Float[np.ndarray, "3 n"],
    both: Int[np.ndarray, "n"],
    product: Float[np.ndarray, "n"],
    tokens: int,
) -> dict[str, Float[np.ndarray, "n"]]:
    """How a latent i goes with others j, over all counted tokens (activations are 0 where a latent is silent).

    jaccard: tokens with both / with either. pmi: log2 P(i, j) / (P(i) P(j)), in bits. given: P(j active | i active).
    given_other: P(i active | j active). pearson: of the activations.
    `own` and `others` are (count, sum, sum of squares).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = product / tokens - own[1] * others[1] / tokens**2
        variances = [one[2] / tokens - (one[1] / tokens) ** 2 for one in (own, others)]
        return {
            "jaccard": both / (own[0] + others[0] - both),
            "pmi": np.log2(both * float(tokens) / (own[0] * others[0])),
            "given": both / own[0],
            "given_other": both / others[0],
            "pearson": covariance / np.sqrt(np.maximum(variances[0], 0) * np.maximum(variances[1], 0)),
        }


def pack_pairs(others: Int[np.ndarray, "n"], both: Int[np.ndarray, "n"], product: Float[np.ndarray, "n"]) -> bytes:
    body = others.astype("<u4").tobytes() + both.astype("<u4").tobytes() + product.astype("<f8").tobytes()
    return zlib.compress(body, 9)


def unpack_pairs(blob: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    body = zlib.decompress(blob)
    n = len(body) // 16
    others, both = (np.frombuffer(body, "<u4", n, at).astype(np.int64) for at in (0, 4 * n))
    return others, both, np.frombuffer(body, "<f8", n, 8 * n)


def pair_table(latent: tuple[Any, ...], rows: dict[int, tuple[Any, ...]], tokens: int) -> pd.DataFrame:
    """One row a latent that fires with this one: latent, both, and `measures`; the largest Jaccard index first.

    Args:
        latent: its row of the table `coactive`. rows: other latents' (count, s1, s2).
    """
    others, both, product = unpack_pairs(latent[3])
    own = np.array(latent[:3], dtype=float)[:, None]
    theirs = np.array([rows[other] for other in others.tolist()], dtype=float).reshape(-1, 3).T
    found = {"latent": others, "both": both} | measures(own, theirs, both, product, tokens)
    return pd.DataFrame(found).sort_values("jaccard", ascending=False, kind="stable", ignore_index=True)
