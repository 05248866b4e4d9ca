"""The check of an index file: what the builder makes passes it, each rule notices a file that breaks it."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from monosem import latents
from monosem.dictionaries import Dictionary, load_dictionary, shipped_dictionaries
from monosem.errors import BadInput
from monosem.latents import Index, IndexConfig, build_index, check_index
from monosem.latents.layout import pack, unpack
from monosem.latents.rules import FILE_RULES, LATENT_RULES
from tiny_dictionaries import random_tensors, tiny_dictionary
from tiny_latents import MODEL, SAE, STORE, TOPK, WIDTH, dictionary

WITH_MODEL = ("special tokens are silent", "promoted and suppressed tokens are the model's")


def jumprelu() -> Dictionary:
    tensors = replace(SAE.tensors, threshold=torch.full((WIDTH,), 0.4))
    return Dictionary(replace(SAE.parts, kind="jumprelu", tensors=tensors))


def built(folder: Path, sae: Dictionary) -> Index:
    config = IndexConfig(examples=5, left=6, right=2)
    return build_index(MODEL, sae, STORE, folder / "i.sqlite", config, quiet=True)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return built(tmp_path_factory.mktemp("rules"), TOPK)


@pytest.mark.parametrize("kind", ["topk", "abstopk", "jumprelu", "off the stream"])
def test_what_the_builder_makes_breaks_no_rule(kind, tmp_path):
    inside = tiny_dictionary("relu", random_tensors(48, WIDTH, seed=0), site="mlp_post.1", model_name="llama")
    made = {"topk": TOPK, "abstopk": dictionary("abstopk", k=6), "jumprelu": jumprelu(), "off the stream": inside}
    found = check_index(built(tmp_path, made[kind]), model=MODEL)
    assert found.broken == {}
    assert found.ok
    assert set(found.table["rule"]) == {*FILE_RULES, *LATENT_RULES, *WITH_MODEL}
    assert (found.table["checked"] > 0).all()


def meta(key: str, value: object) -> Callable[[sqlite3.Connection], None]:
    return lambda c: c.execute("UPDATE meta SET value = ? WHERE key = ?", (json.dumps(value), key))


def sql(statement: str) -> Callable[[sqlite3.Connection], None]:
    return lambda c: c.execute(statement)


def listed(column: str, change: Callable[[list], list]) -> Callable[[sqlite3.Connection], None]:
    """Change a list of the latent with the most examples."""

    def edit(c: sqlite3.Connection) -> None:
        latent = busiest(c)
        ((held,),) = c.execute(f"SELECT {column} FROM latent WHERE id = {latent}").fetchall()
        c.execute(f"UPDATE latent SET {column} = ? WHERE id = {latent}", (json.dumps(change(json.loads(held))),))

    return edit


def pieces(change: Callable[[list], list], table: str = "examples") -> Callable[[sqlite3.Connection], None]:
    """Change the examples of the latent that has most."""

    def edit(c: sqlite3.Connection) -> None:
        latent = busiest(c)
        ((held,),) = c.execute(f"SELECT blob FROM {table} WHERE latent = {latent}").fetchall()
        c.execute(f"UPDATE {table} SET blob = ? WHERE latent = {latent}", (pack(change(unpack(held))),))

    return edit


def busiest(c: sqlite3.Connection) -> int:
    return c.execute("SELECT id FROM latent ORDER BY count DESC LIMIT 1").fetchone()[0]


def moved(piece, **parts):
    names = ("ids", "values", "anchor", "document", "position")
    return tuple((dict(zip(names, piece)) | parts)[name] for name in names)


def loud(piece):
    """Active at the first token of its window."""
    ids, values, anchor, document, _ = piece
    ids, values = np.concatenate([ids[:1], ids[anchor:]]), np.concatenate([values[anchor:][:1], values[anchor:]])
    return ids, values, 1, document, 1


def loud_at(piece):
    values = piece[1].copy()
    values[piece[2]] = 1.0
    return moved(piece, values=values)


def special(piece):
    ids, values = piece[0].copy(), piece[1].copy()
    ids[piece[2]] = min(MODEL.special_ids)
    return moved(piece, ids=ids, values=values)


BROKEN = [
    ("it is of this schema", None),  # an index of another schema is not opened at all
    ("it says what it is made of", meta("source", "")),
    ("it says how much is kept", sql("DELETE FROM meta WHERE key = 'band_examples'")),
    ("it is of these weights", None),  # nor one of other weights
    ("it is of this site", meta("site", "resid_post.0")),
    ("it has every latent once", sql("DELETE FROM latent WHERE id = 3")),
    ("skipped tokens are counted by reason", meta("skipped", {"all reasons": 3})),
    ("counted and skipped tokens are all", meta("windows", 3)),
    ("tokens and documents have names", sql("DELETE FROM document WHERE id % 2")),
    ("tokens and documents have names", sql("DELETE FROM token WHERE id > 40")),
    ("histograms add up to the count", sql("UPDATE latent SET count = count + 1 WHERE id = 7")),
    ("moments are possible", sql("UPDATE latent SET s2 = s2 / 3 WHERE count > 5")),
    ("moments are possible", sql("UPDATE latent SET s4 = s4 / 9 WHERE count > 5")),
    ("the maximum is in the last bin", sql("UPDATE latent SET maximum = maximum * 3 WHERE count > 0")),
    ("tokens: the most activation first, each once", listed("tokens", lambda held: held[::-1])),
    ("tokens: the most activation first, each once", listed("tokens", lambda held: [held[0], held[0]])),
    ("promoted and suppressed tokens are in order", listed("promoted", lambda held: held[::-1])),
    ("examples: not too many, and some where it fires", pieces(lambda held: held + held[:1])),
    ("examples: not too many, and some where it fires", sql("DELETE FROM examples WHERE latent % 2")),
    ("examples: the strongest first, from the maximum down", pieces(lambda held: held[1:])),
    ("examples: the strongest first, from the maximum down", pieces(lambda held: held[::-1])),
    ("examples are cut around the token", pieces(lambda held: [moved(p, position=0) for p in held])),
    ("first positions are silent", pieces(lambda held: [loud(p) for p in held])),
    (
        "activations lie between threshold and maximum",
        pieces(lambda held: [moved(p, values=p[1] * 2) for p in held], "bands"),
    ),
    ("at most two examples of a document", pieces(lambda held: [moved(p, document=1) for p in held])),
    ("no two examples with the same wording", pieces(lambda held: [held[0], held[0], *held[2:]])),
    ("examples by interval", pieces(lambda held: held[::-1], "bands")),
    ("examples by interval", sql("DELETE FROM bands")),
    ("examples by tenth", pieces(lambda held: held[::-1], "deciles")),
    ("near misses are silent", pieces(lambda held: [loud_at(p) for p in held], "near")),
    ("pairs are possible", sql("UPDATE coactive SET count = 0")),
    ("special tokens are silent", pieces(lambda held: [special(p) for p in held])),
    (
        "promoted and suppressed tokens are the model's",
        sql("UPDATE latent SET promoted = (SELECT promoted FROM latent WHERE id = 0)"),
    ),
]


@pytest.mark.parametrize(("rule", "change"), [case for case in BROKEN if case[1]])
def test_each_rule_notices_what_breaks_it(rule, change, index, tmp_path):
    path = tmp_path / "i.sqlite"
    shutil.copy(index.path, path)
    with sqlite3.connect(path) as connection:
        change(connection)
    assert rule in check_index(Index(path, TOPK), model=MODEL).broken


def test_every_rule_has_a_file_that_breaks_it():
    assert {rule for rule, _ in BROKEN} == {*FILE_RULES, *LATENT_RULES, *WITH_MODEL}


def test_an_activation_below_the_threshold_is_noticed(tmp_path):
    made = built(tmp_path, jumprelu())
    raised = jumprelu()
    raised.threshold.data += 0.3
    made.dictionary = raised
    assert "activations lie between threshold and maximum" in check_index(made).broken


def test_it_says_where(index, tmp_path):
    path = tmp_path / "i.sqlite"
    shutil.copy(index.path, path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE latent SET count = count + 1 WHERE id IN (7, 9)")
    row = check_index(Index(path, TOPK)).table.set_index("rule").loc["histograms add up to the count"]
    assert (row.checked, row.broken, row["first"]) == (WIDTH, 2, 7)
    with pytest.raises(BadInput, match="together with its dictionary"):
        check_index(Index(path))


@pytest.mark.parametrize("name", shipped_dictionaries())
def test_the_shipped_indexes_break_no_rule(name):
    found = latents.index_of(load_dictionary(name))
    assert found is not None
    assert check_index(found).broken == {}
