"""Which neurons of the MLP are active with a latent: correlations over all counted tokens, in the pass of the index."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import BadInput
from ..models import Model
from ..models.places.sites import Site
from .tallies import Firings, Numbers, starts

CHUNK = 256  # latents whose correlations with all neurons are held at once


class Neurons:
    """Sums over tokens of each latent's activation times each neuron's, and of the neurons' own.

    The neurons are of the block that the dictionary reads (`mlp_post`: what the down projection reads). It takes 4
    bytes for each latent and neuron.
    """

    def __init__(self, width: int, site: Site, neurons: int):
        self.site = site
        self.product = np.zeros((width, neurons), dtype=np.float32)
        self.own = np.zeros((2, neurons))  # sums, sums of squares

    @classmethod
    def of(cls, model: Model, dictionary: Dictionary) -> "Neurons":
        """Raises `BadInput` where the block has no neurons that can be read."""
        site = model.site(f"mlp_post.{dictionary.site.layer}") if dictionary.site.layer is not None else None
        branch = None if site is None else model.branch_of(site)
        if site is None or branch is None or site != branch.inner:
            raise BadInput(
                f"no neurons belong to {dictionary.site} of {model.name}; index without IndexConfig(neurons=)"
            )
        return cls(dictionary.width, site, len(branch.weight()))

    def add(self, f: Firings) -> None:
        """Firings alone do not say what neurons do; see `consider`."""

    def consider(self, f: Firings, x: Float[Tensor, "tokens neurons"]) -> None:
        """The counted tokens of some windows, and the firings there."""
        x = x.float()
        self.own += torch.stack([x.sum(0, dtype=torch.float64), x.double().square().sum(0)]).cpu().numpy()
        begins = np.flatnonzero(starts(f.latent))
        if len(begins):
            rows, offsets, values = (torch.from_numpy(one).to(x.device) for one in (f.row, begins, f.value))
            sums = torch.nn.functional.embedding_bag(rows, x, offsets, mode="sum", per_sample_weights=values)
            self.product[f.latent[begins]] += sums.cpu().numpy()

    def kept(self, numbers: Numbers, tokens: int, n: int) -> list[list[tuple[int, float, float]]]:
        """Of each latent (neuron, Pearson's correlation, cosine) of the n neurons that correlate most with it, either
        way; none where it never fired."""
        found: list[list[tuple[int, float, float]]] = []
        mean, square = self.own / tokens
        for first in range(0, len(self.product), CHUNK):
            chunk = slice(first, first + CHUNK)
            s1, s2 = (numbers.sums[i, chunk, None] / tokens for i in (0, 1))
            product = self.product[chunk].astype(np.float64) / tokens
            variance = np.maximum(s2 - s1**2, 0) * np.maximum(square - mean**2, 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                pearson = np.where(variance > 0, (product - s1 * mean) / np.sqrt(variance), np.nan)
                cosine = product / np.sqrt(s2 * square)
            best = np.argsort(-np.nan_to_num(np.abs(pearson), nan=-1.0), axis=1, kind="stable")[:, :n]
            for row, (own, r, c) in enumerate(zip(best, pearson, cosine)):
                listed = own[np.isfinite(r[own])] if numbers.count[first + row] else own[:0]
                found.append([(int(i), round(float(r[i]), 4), round(float(c[i]), 4)) for i in listed])
        return found

    def state(self) -> dict[str, np.ndarray]:
        return {"neurons_product": self.product, "neurons_own": self.own}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.product, self.own = state["neurons_product"], state["neurons_own"]


def neuron_table(listed: list[Any]) -> pd.DataFrame:
    """One row a neuron: neuron, pearson, cosine; the largest correlation, either way, first."""
    rows = [(int(neuron), float(pearson), float(cosine)) for neuron, pearson, cosine in listed]
    return pd.DataFrame(rows, columns=["neuron", "pearson", "cosine"])
