"""What circuit tests share: tiny models in float64, ragged pairs, a metric in float64."""

from functools import cache

import torch
from torch import Tensor

from monosem.circuits.batches import Batch, Batches
from monosem.circuits.graph import EVERYWHERE, Graph
from monosem.data import TokenPairs
from monosem.models import Model
from monosem.patching import Corruption
from tiny import tiny_model

FAMILIES = ("gpt2", "gptj", "llama", "gemma2")  # sequential, parallel, grouped heads, norms behind branches


@cache
def wide(family: str) -> Model:
    """A tiny model in float64 (its RMS norms compute in float32 all the same)."""
    model = tiny_model(family)
    model.hf.double()
    return model


def random_pairs(model: Model, lengths: tuple[int, ...] = (7, 5), seed: int = 0) -> TokenPairs:
    """Pairs of random tokens; the first is the same on both sides."""
    draw = torch.Generator().manual_seed(seed)
    clean = [torch.randint(3, 100, (n,), generator=draw).tolist() for n in lengths]
    corrupted = [[row[0], *torch.randint(3, 100, (len(row) - 1,), generator=draw).tolist()] for row in clean]
    return TokenPairs.of(model, clean, corrupted, right=[5] * len(clean), wrong=[9] * len(clean))


def logit_gap(logits: Tensor, pairs: TokenPairs, clean: Tensor) -> Tensor:
    """The logit difference without a cast to float32."""
    return logits[:, 5] - logits[:, 9]


def batch_of(
    model: Model, pairs: TokenPairs, places: tuple[str, ...] = EVERYWHERE, corruption: Corruption | None = None
) -> Batch:
    """All pairs as one batch."""
    graph = Graph.of(model, places)
    return next(iter(Batches(model, pairs, graph, logit_gap, corruption, len(pairs))))
