"""The geometry pages: what they show is what the library computes, once; jobs are kept beside the notes."""

import base64
import json
from urllib.parse import quote

import numpy as np
import pytest
from test_explorer_pages import click, complaints, page, until  # noqa: F401

from monosem.dictionaries import one_site
from monosem.latents import decoder_map, splitting
from monosem.models import load_model

BOTH = ["sae", "bare"]


def numbers(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def held(served, kind, **ask):
    status, found = served.ask(f"/api/computed?kind={kind}&ask={quote(json.dumps(ask))}")
    assert status == 200, found
    return found["result"]


@pytest.fixture
def own(home, monkeypatch):
    monkeypatch.chdir(home)
    return [one_site(name) for name in BOTH]


def test_a_map_is_computed_once_and_kept_beside_the_notes(served, own, home):
    ask = {"dictionaries": BOTH, "method": "pca"}
    first = served.job(kind="map", **ask)["result"]
    table = decoder_map(own, "pca", names=BOTH).table
    assert np.allclose(numbers(first["x"]), table["x"], atol=1e-5)
    assert (numbers(first["cluster"]) == table["cluster"]).all()
    assert first["widths"] == [64, 64]
    assert held(served, "map", **ask) == first
    assert held(served, "map", dictionaries=["sae", "broken"], method="pca") is None
    (file,) = (home / "computed").glob("map-*.json")
    file.write_text("{ half")  # a file that cannot be read is computed again
    assert held(served, "map", **ask) is None
    assert served.job(kind="map", **ask)["result"] == first


def test_families_are_the_library_s(served, own):
    found = served.job(kind="families", dictionaries=BOTH, threshold=0.6)["result"]
    expected = splitting(own, names=BOTH, threshold=0.6)
    assert numbers(found["parents"]["bare"]).tolist() == expected.table["parent"].tolist()  # the same weights
    assert found["shares"][0]["share"] == pytest.approx(expected.shares["share"][0])


def test_what_all_latents_write(served, own, home):
    found = served.job(kind="written", dictionary="sae")["result"]
    from monosem import latents

    table = latents.written(load_model(str(home / "tiny"), quiet=True), own[0]).table
    assert found["promotes"] == table["promotes"].tolist()
    assert np.allclose(numbers(found["kurtosis"]), table["kurtosis"], rtol=1e-4)


def test_meta_latents(served):
    found = served.job(kind="meta", dictionary="sae", meta="bare")["result"]
    rows = numbers(found["latent"]) == 3
    assert numbers(found["meta"])[rows][0] == 3  # the same rows: each codes itself first


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"kind": "map", "dictionaries": []}, "dictionaries"),
        ({"kind": "map", "dictionaries": ["sae", "sae"]}, "twice"),
        ({"kind": "map", "dictionaries": ["../sae"]}, "no dictionary"),
        ({"kind": "map", "dictionaries": ["sae"], "method": "tsne"}, "method"),
        ({"kind": "families", "dictionaries": BOTH, "threshold": 7}, "threshold"),
        ({"kind": "absorbers", "dictionary": "sae", "words": 10**6}, "words"),
        ({"kind": "circle", "dictionary": "sae", "cycle": "days"}, "cycle"),
        ({"kind": "written", "dictionary": "sae", "text": "x"}, "text"),
    ],
)
def test_what_cannot_be_asked_is_said(served, ask, words):
    status, answer = served.ask("/api/jobs", ask)
    assert status in (400, 404)
    assert words in answer["error"]


def test_what_was_not_computed_cannot_be_asked_wrongly(served):
    for query in ("kind=map&ask=%7B", "kind=nothing&ask=%7B%7D", "kind=map"):
        status, answer = served.ask(f"/api/computed?{query}")
        assert status in (400, 404)
        assert answer["error"]


def test_a_job_that_cannot_be_done_says_why(served):
    event = served.job(kind="families", dictionaries=["sae"])
    assert event["type"] == "failed"
    assert "two dictionaries or more" in event["words"]


def started(browser, button, wanted):
    """Press a button, unless what it makes is there from an earlier test."""
    buttons = "[...document.querySelectorAll('main button')].map(b => b.textContent)"
    until(browser, f"return {buttons}.includes(arguments[0]) || document.querySelector(arguments[1])", button, wanted)
    if not browser.find_elements("css selector", wanted):
        click(browser, button)


def test_clusters_on_the_map_make_a_list(page, served):  # noqa: F811
    browser = page("/map?d=sae&m=pca&w=bare")
    started(browser, "Lay it out", ".scatter canvas")
    until(browser, "return document.querySelector('.clusters') !== null")
    assert browser.execute_script("return document.querySelector('[aria-label=Colour]').value") == "dictionary"
    browser.execute_script("document.querySelector('.clusters button')?.click()")
    until(browser, "return !document.querySelector('.clusters button') || location.search.includes('c=')")
    assert complaints(browser) == []


def test_a_tree_is_drawn_and_leads_to_its_latents(page, served):  # noqa: F811
    browser = page("/splitting?d=bare&i=3", ".family")
    until(browser, "return document.querySelectorAll('.family g').length >= 2")
    assert browser.find_elements("css selector", ".family .asked")
    link = "return [...document.querySelectorAll('.family a')].map(a => a.getAttribute('href'))"
    assert any(one.startswith("/latent?d=bare&i=3") for one in browser.execute_script(link))
    assert complaints(browser) == []


def test_a_circle_is_looked_for_and_shown(page, served):  # noqa: F811
    browser = page("/circles?d=sae")
    started(browser, "Look", ".circle")
    until(browser, "return document.querySelector('.circle polygon') !== null")
    assert browser.execute_script("return document.querySelectorAll('.circle')[0].querySelectorAll('text').length") == 7
    assert complaints(browser) == []


def test_the_table_of_what_latents_write_filters(page, served):  # noqa: F811
    served.job(kind="written", dictionary="sae")
    browser = page("/writes?d=sae", ".grid tbody a")
    count = "return document.querySelector('.count').textContent"
    assert browser.execute_script(count) == "64 of 64"
    page("/writes?d=sae&q=zzzz", ".count")
    until(browser, f"{count} === '0 of 64'")
    assert complaints(browser) == []


def test_absorbers_say_that_a_model_cannot_spell(page, served):  # noqa: F811
    browser = page("/absorbers?d=sae")
    until(browser, "return [...document.querySelectorAll('main button')].some(b => b.textContent.startsWith('Ask'))")
    click(browser, "Ask the model for first letters")
    said = until(browser, "return document.querySelector('.failed[role=alert]')?.textContent")
    assert "words are one token of tiny; give more words" in said


def test_without_a_meta_sae_the_page_says_how_to_make_one(page):  # noqa: F811
    browser = page("/meta?d=sae", "pre")
    assert "--meta-of sae" in browser.execute_script("return document.querySelector('pre').textContent")
