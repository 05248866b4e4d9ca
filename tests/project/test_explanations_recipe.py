"""`recipes/smollm2_explanations.py`: the latent is chosen on other documents than the ones that measure it."""

import importlib
from pathlib import Path

import pytest
import torch

from monosem.dictionaries import load_dictionary

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("smollm2_explanations")


def windows_of(recipe, a_kind: int, kinds: tuple[str, ...]):
    """Windows of two a document."""
    listed = [kind for kind in kinds for _ in range(2 * a_kind)]
    documents = torch.arange(len(listed)) // 2
    ids = torch.zeros(len(listed), 3, dtype=torch.long)
    return recipe.Windows(ids, listed, documents, [["a"] * 3] * len(listed))


def test_each_kind_is_halved_and_documents_stay_whole(recipe):
    windows = windows_of(recipe, 10, ("fr", "de", "python"))
    searched = windows.searched
    for kind in ("fr", "de", "python"):
        assert int(searched[[one == kind for one in windows.kinds]].sum()) == 10
    chosen, measured = (set(windows.documents[which].tolist()) for which in (searched, ~searched))
    assert not chosen & measured
    assert torch.equal(searched, windows.searched)


def test_of_latents_that_say_nothing_the_best_one_is_at_chance_where_it_was_not_chosen(recipe):
    """One of them is planted: it is found, and its number is Mann-Whitney's of the other half."""
    draw = torch.Generator().manual_seed(0)
    windows = windows_of(recipe, 12, ("fr", "de"))
    y = torch.tensor([kind == "fr" for kind in windows.kinds])
    codes = torch.randn(len(y), 3000, generator=draw)
    best, told = recipe._best(codes, y, windows.searched, windows.documents)
    assert told["auroc_where_chosen"] > 0.8  # by luck
    assert told["interval"][0] < 0.5 < told["interval"][1]
    codes[:, 1234] += 3 * y
    best, told = recipe._best(codes, y, windows.searched, windows.documents)
    assert best == told["latent"] == 1234
    left = ~windows.searched
    above, below = codes[left & y, 1234], codes[left & ~y, 1234]
    wins = (above[:, None] > below).double().mean() + 0.5 * (above[:, None] == below).double().mean()
    assert told["auroc"] == pytest.approx(float(wins), abs=1e-4)
    assert told["rows"] == 12
    assert told["documents"] == 6


def test_the_readme_says_what_the_card_says():
    told = load_dictionary("smollm2/resid_post.15").card["tells_apart"]
    text = (RECIPES.parent / "README.md").read_text()
    for kind, name in {"fr": "French", "ru": "Russian", "python": "Python code"}.items():
        area, (low, high) = told[kind]["auroc"], told[kind]["interval"]
        assert f"{name} | {area:.3f} [{low:.3f}, {high:.3f}] |" in text
