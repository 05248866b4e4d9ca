"""A tiny model in which a known direction is a concept: it is added to the embeddings of a few words, which are tied to
the unembedding, so that it can be read where these words stand, and writes them where it is added."""

import random
from typing import Any

import torch

from monosem.methods import Concept
from monosem.models import Model
from tiny import tiny_model

MARKERS, OTHERS = ("happy", "good"), ("sad", "bad")
PLAIN = ("the", "cat", "dog", "man", "was", "very", "house", "at", "night", "in", "moon", "sun", "one", "two", "three")
OPENINGS = ["the man was", "a house", "two dog", "she is in", "you and I", "the sun at", "one man", "the cat is"]
SIZE = 20.0
SETTINGS = {"fit": 24, "choose": 12, "test": 16, "max_new_tokens": 4, "budgets": (0.5, 2.0), "budget": 2.0}


def planted_model() -> tuple[Model, torch.Tensor]:
    """The model, and the direction."""
    model = tiny_model("llama_tied", name="planted")
    u = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)
    embedding = model.hf.get_input_embeddings().weight
    ids = [model.bare(f"x {word}")[-1] for word in MARKERS]
    assert [model.str_token(i) for i in ids] == [f" {word}" for word in MARKERS]
    with torch.no_grad():
        embedding -= (embedding @ u)[:, None] * u
        embedding[ids] += SIZE * u
    return model, u


def texts(markers: tuple[str, ...], n: int, seed: int) -> list[str]:
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < n:
        words = [rng.choice(PLAIN) for _ in range(6)]
        found[" ".join([*words, rng.choice(markers), rng.choice(PLAIN)])] = None
    return list(found)


def values(n: int = 70, **changes: Any) -> dict[str, Any]:
    given = {"name": "mood", "title": "a good mood", "paired": False, "openings": OPENINGS}
    sides = {"positive": texts(MARKERS, n, 1), "negative": texts(OTHERS, n, 2)}
    return {**given, **sides, **changes}


def concept(n: int = 70, **changes: Any) -> Concept:
    return Concept.load(values(n, **changes))
