"""A server with a tiny model and three dictionaries: with an index, without one, and one whose texts are hostile."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from explorer_server import Served, browsing, serving
from monosem.data import Document, TokenStore
from monosem.latents import IndexConfig, build_index
from monosem.models import Model, load_model
from tiny_home import make_dictionary, save_model

HOSTILE = "</script><img src=x onerror=alert(1)>"
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "dog",
    "ran",
    "big",
    "small",
    "red",
    "blue",
    "day",
    "night",
    "sun",
    "moon",
    "he",
    "she",
    "they",
    "we",
    "you",
    "king",
    "queen",
]


def documents() -> list[Document]:
    draw = random.Random(0)
    return [Document(f"{HOSTILE}{i}", " ".join(draw.choices(WORDS, k=60))) for i in range(40)]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` the model, `sae` with an index and hostile labels, `bare` without an index, `broken` with a wrong one."""
    folder = tmp_path_factory.mktemp("home")
    place = save_model(folder / "tiny")
    model = load_model(str(place), quiet=True)
    assert isinstance(model, Model)
    for name in ("sae", "bare", "broken"):
        own = make_dictionary(place)
        own.name = name
        own.save(folder / name)
    made = make_dictionary(place)
    made.name = "sae"
    store = TokenStore.build(model, documents(), context=32, quiet=True)
    config = IndexConfig(examples=5, left=6, right=3, corpus=HOSTILE)
    build_index(model, made, store, folder / "sae" / "index.sqlite", config, quiet=True)
    share = [1, 1]
    label = {"label": HOSTILE, "top": share, "middle": share, "silent": share, "near": share}
    (folder / "sae" / "explanations.json").write_text(json.dumps({"method": "x", "latents": {"3": label}}))
    (folder / "broken" / "index.sqlite").write_bytes(b"not a database at all")
    return folder


@pytest.fixture(scope="session")
def service(home: Path) -> Iterator[Served]:
    """Stands for Neuronpedia: another explorer, which has its addresses."""
    own = serving(home, "sae")
    yield own
    own.process.terminate()
    own.process.wait(30)


@pytest.fixture(scope="session")
def served(home: Path, service: Served) -> Iterator[Served]:
    own = serving(home, "sae", "bare", "broken", NEURONPEDIA_SITE=f"{service.base}/key/{service.token}")
    yield own
    own.process.terminate()
    own.process.wait(30)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from browsing(tmp_path_factory.mktemp("profile"))
