"""A tiny model with a random dictionary for it, and prompts that differ in one word."""

import itertools
import sqlite3
from pathlib import Path

import numpy as np

from monosem.data import Document, TokenStore
from monosem.dictionaries import Dictionary
from monosem.models import Model
from tiny import tiny_hf, tiny_tokenizer
from tiny_dictionaries import random_tensors, tiny_dictionary

MODEL = Model(tiny_hf("llama"), tiny_tokenizer(), "llama")
SITE = "resid_post.1"
WIDTH = 40
POSITIVE = [f"{a} good {b}" for a, b in itertools.product("abcd", "efgh")]
NEGATIVE = [f"{a} bad {b}" for a, b in itertools.product("abcd", "efgh")]


def dictionary(kind: str = "relu", model_name: str = "llama", d: int = 32, **options) -> Dictionary:
    tensors = random_tensors(d, WIDTH, 0, (1 / 6, 1 / 4))
    return tiny_dictionary(kind, tensors, model_name=model_name, name="tiny", **options)


SAE = dictionary()
TOPK = dictionary("topk", k=5)
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "good",
    "bad",
    "e",
    "f",
    "g",
    "h",
    "sun",
    "moon",
    "day",
    "night",
    "one",
    "two",
    "three",
    "king",
    "queen",
    "a",
    "b",
    "c",
    "d",
]


def documents(n: int = 30, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [Document(f"doc{i}", " ".join(rng.choice(WORDS, rng.integers(8, 60)))) for i in range(n)]


STORE = TokenStore.build(MODEL, documents(), context=32)


def of_first_schema(path: Path) -> None:
    """Make an index what the first version wrote."""
    tables = ("deciles", "uniform", "near", "silent", "coactive", "neurons", "token_set", "words")
    columns = ("windows", "runs", "common", "entropy", "entropy_before", "before", "bigrams", "sets", "logits")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
        for table in tables:
            connection.execute(f"DROP TABLE {table}")
        for column in columns:
            connection.execute(f"ALTER TABLE latent DROP COLUMN {column}")
