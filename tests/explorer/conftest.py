"""A server with a tiny model and three dictionaries: with an index, without one, and one whose texts are hostile."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from explorer_server import Served, browsing, serving
from monosem.data import Document, TokenStore
from monosem.dictionaries import Dictionary, DictionaryParts, DictionaryTensors
from monosem.directions import Direction
from monosem.latents import IndexConfig, build_index
from monosem.models import Model, Site, load_model
from monosem.steering import sweep_latents
from tiny_home import make_dictionary, save_model

GOLDEN = Path(__file__).parents[1] / "latents" / "golden" / "sae_dashboard_batch-0.json"  # written by the tool itself
LONG = "a_name_of_a_folder_that_fits_no_phone_" * 4  # pages show paths, which must not make them wider
OPTIONS = ("--direction", "pull.safetensors", "--sweep", "swept", "--dashboards", GOLDEN.name, "--reports", ".")
PAPER = ":root { color-scheme: light dark; background: light-dark(#ffffff, #000000); }"
REPORT = f"<!doctype html>\n<html lang='en'><head><style>{PAPER}</style></head><body><p>A report</p></body></html>"
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


def cut(own: Dictionary, name: str, n: int, **metadata: str) -> Dictionary:
    """The first latents of a dictionary as one of its own."""
    rows = own.W_dec[:n].clone()
    tensors = DictionaryTensors(rows.T.clone(), torch.zeros(n), rows, own.b_dec)
    about = {"site": str(own.site), "model_name": own.model_name, "name": name, "metadata": metadata}
    return Dictionary(DictionaryParts(tensors, "topk", k=4, **about))  # type: ignore[arg-type]


def documents() -> list[Document]:
    draw = random.Random(0)
    return [Document(f"{HOSTILE}{i}", " ".join(draw.choices(WORDS, k=60))) for i in range(40)]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` the model, `sae` with an index and hostile labels, `bare` without an index, `broken` with a wrong one,
    `heads` of attention and `meta` of their rows, `narrow` with some latents of `sae`; a direction and a sweep."""
    folder = tmp_path_factory.mktemp("home") / LONG
    folder.mkdir()
    shutil.copy(GOLDEN, folder)
    (folder / "report.html").write_text(REPORT)
    (folder / HOSTILE.replace("/", "")).mkdir()
    (folder / HOSTILE.replace("/", "") / "report.html").write_text(f"<title>{HOSTILE}</title>")
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
    heads = make_dictionary(place, model.cfg.n_heads * model.cfg.d_head, "z.1")
    heads.name = "heads"
    heads.save(folder / "heads")
    cut(heads, "meta", 24, meta_of="heads").save(folder / "meta")
    cut(made, "narrow", 24).save(folder / "narrow")
    sweep_latents(
        model,
        made,
        range(12),
        values=(5.0, 40.0),
        prompt="the cat",
        max_new_tokens=6,
        folder=folder / "swept",
        quiet=True,
    )
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(4))
    Direction(vector, Site("resid_post", 1), model.name, {"method": "made up"}).save(folder / "pull.safetensors")
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
    site = f"{service.base}/key/{service.token}"
    options = [str(home / word) if (home / word).exists() else word for word in OPTIONS]
    own = serving(home, "sae", "bare", "broken", "heads", "narrow", "meta", *options, NEURONPEDIA_SITE=site)
    yield own
    own.process.terminate()
    own.process.wait(30)


# charts hear of a new width whenever the browser finds time: `held` puts that off, so that a test sees the page before
HOLD = """const Own = ResizeObserver;
window.ResizeObserver = class extends Own { constructor(call) { super((...all) => window.held || call(...all)); } };"""


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for one in browsing(tmp_path_factory.mktemp("profile")):
        one.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": HOLD})
        yield one
