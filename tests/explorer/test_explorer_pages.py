"""Every page in a real browser: no error, nothing from elsewhere, hostile words do nothing, and what users do there."""

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from monosem import latents
from monosem.dictionaries import one_site

LATENT = "/latent?d=sae&i=3"
PAGES = ["/", "/dictionary?d=sae", "/dictionary?d=bare", LATENT, "/latent?d=bare&i=3", "/lists?d=sae", "/map?d=sae"]
PAGES += [
    f"/{name}?d=sae" for name in ("prompt", "steer", "lens", "patching", "graph", "reports", "public", "sweep", "files")
]
PAGES += [
    "/compare?d=sae&a=3&b=5",
    "/compare?d=sae&a=3&e=bare&b=5",
    "/prompt?d=sae&t=" + quote("the cat sat on the mat"),
]
PAGES += [f"/{name}?d=sae" for name in ("geometry", "meta", "absorbers")]
# path -> (the job that makes what it shows, what is there then)
RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "/splitting?d=sae&i=3": ({"kind": "families", "dictionaries": ["narrow", "sae", "bare", "broken"]}, ".family g"),
    "/circles?d=sae": ({"kind": "circle", "dictionary": "sae", "cycle": "weekdays"}, ".circle polygon"),
    "/writes?d=sae": ({"kind": "written", "dictionary": "sae"}, ".grid tbody a"),
    "/map?d=sae&m=pca&w=bare": ({"kind": "map", "dictionaries": ["sae", "bare"], "method": "pca"}, ".clusters"),
}
AXE = Path(__file__).with_name("axe.min.js")  # axe-core 4.14.1 as published on npm, MPL-2.0


@pytest.fixture
def page(browser, served):
    """Opens a path and waits until it is drawn."""
    if not browser.current_url.startswith(served.base):
        browser.get(served.address)

    def opened(path: str, wanted: str = "main h1"):
        browser.get(served.base + path)
        until(browser, f"return document.querySelector({wanted!r}) !== null")
        return browser

    return opened


def until(browser, script, *values, seconds=60):
    """Wait until a script says yes."""
    end = time.monotonic() + seconds
    while not (found := browser.execute_script(script, *values)):
        assert time.monotonic() < end, (script, browser.execute_script("return document.body.innerText")[:2000])
        time.sleep(0.05)
    return found


def complaints(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def press(browser, key):
    browser.execute_script(
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))", key
    )


def words(browser):
    return browser.execute_script("return document.querySelector('main').innerText")


@pytest.mark.parametrize("path", [*PAGES, *RESULTS])
def test_a_page_loads_without_errors_or_the_network_and_is_accessible(page, served, path):
    if path in RESULTS:
        assert served.job(**RESULTS[path][0])["type"] == "done"
    browser = page(path, RESULTS[path][1] if path in RESULTS else "main h1")
    until(browser, "return !document.querySelector('main .waiting')")
    assert complaints(browser) == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(served.base) for url in asked)
    own = (served.base + "/", "data:", "blob:", "about:", "chrome://", "chrome-extension://")
    assert [url for url in asked if not url.startswith(own)] == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    accessible(browser)


def accessible(browser):
    """axe-core finds nothing in either theme (in the second only colours can be at fault), and a phone shows it all."""
    browser.set_script_timeout(60)
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    for theme, only in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        asked = "const [how, done] = arguments; axe.run(document, how).then(found => done(found.violations), done)"
        found = browser.execute_async_script(asked, only | {"resultTypes": ["violations"]})
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], theme
    assert all(wide <= 390 for wide in widths(browser, 390))


def widths(browser, width):
    """How wide the page is on a phone before its charts have heard of it, and once they fit."""
    fits = "return [...document.querySelectorAll('canvas')].every(one => one.clientWidth <= one.parentNode.clientWidth)"
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_script("window.held = true")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wide = "return document.documentElement.scrollWidth"
    before = browser.execute_script(wide)
    browser.execute_script("window.held = false")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"width": width - 1})
    until(browser, fits)
    after = browser.execute_script(wide)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return before, after


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/nothing", "no page"),
        ("/constructor", "no page"),
        ("/latent?d=sae&i=abc&page=home", "0 to 63"),
        ("/latent?d=sae&i=99999999999999999999", "0 to 63"),
        ("/compare?d=sae&a=1&e=narrow&b=40", "0 to 23"),
        ("/map?d=../sae", "No dictionary"),
        ("/splitting?d=sae&i=-1", "0 to 63"),
    ],
)
def test_an_address_of_nothing_says_so(page, path, said):
    browser = page(path)
    assert browser.find_element("css selector", "main h1").text == "Nothing is here"
    assert said in browser.find_element("css selector", "main [role=alert]").text
    assert browser.find_elements("css selector", "main .plainlist a")
    browser.get_log("browser")


def test_a_map_leaves_out_chosen_latents_that_are_none(page):
    browser = page("/map?d=sae&c=1,zzz,,64,-1,5", ".scatter canvas")
    until(browser, "return document.querySelector('main').innerText.includes('2 chosen')")
    assert complaints(browser) == []


def test_hostile_words_are_text(page, served):
    hostile = "</script><img src=x onerror=alert(1)>"
    served.ask("/api/notes", {"put": [hostile, [["sae", 3]]]})
    served.ask("/api/notes", {"note": {"dictionary": "sae", "latent": 3, "text": hostile}})
    browser = page(LATENT)
    until(browser, "return document.querySelector('#note')?.value")
    assert browser.find_element("css selector", "main h1").text == hostile
    assert hostile in words(browser)  # names of documents
    assert browser.find_element("css selector", "#note").get_attribute("value") == hostile
    shown = [
        "/lists?d=sae",
        "/dictionary?d=sae",
        LATENT,
        "/compare?d=sae&a=3&e=narrow&b=3",
        "/steer?d=sae&l=3",
        "/reports",
    ]
    for path in shown:
        page(path)
        until(browser, "return !document.querySelector('main .waiting')")
        until(browser, "return document.querySelector('main').innerText.includes('onerror')")
        assert browser.find_elements("css selector", "img, iframe:not(.framed)") == []
    assert complaints(browser) == []
    served.ask("/api/notes", {"drop": hostile})


def test_the_table_sorts_filters_and_opens(page, served):
    browser = page("/dictionary?d=sae", ".grid tbody a")
    first = (
        "return [...document.querySelectorAll('.grid tbody tr:not(.gap)')].map(r => r.querySelector('a').textContent)"
    )
    _, table = served.ask("/api/table?d=sae")
    import base64

    import numpy as np

    column = lambda name: np.frombuffer(base64.b64decode(table["columns"][name]), "<f4")  # noqa: E731
    assert np.flatnonzero(column("explained")).tolist() == [3]  # what has a label stands first, then what fires often
    expected = sorted(range(64), key=lambda i: (i != 3, -column("density")[i], i))
    shown = browser.execute_script(first)
    assert shown == [str(i) for i in expected[: len(shown)]]
    browser.execute_script(
        "[...document.querySelectorAll('.grid th button')].find(b => b.textContent.startsWith('bias')).click()"
    )
    until(browser, "return location.search.includes('sort=bias')")
    most = str(int(np.argmax(column("bias"))))
    until(browser, f"{first.replace('return ', 'return (')})[0] === arguments[0]", most)
    page("/dictionary?d=sae&f=" + quote("maximum>3 density<20%"), ".grid")
    count = int(((column("maximum") > 3) & (column("density") < 0.2)).sum())
    until(browser, "return document.querySelector('.count').textContent === arguments[0]", f"{count} of 64")
    page("/dictionary?d=sae&f=" + quote("nonsense>3"), ".failed")
    assert "cannot read" in words(browser)
    page("/dictionary?d=sae&q=cat", ".grid tbody a").find_element("css selector", ".grid tbody td.words").click()
    until(browser, "return location.pathname === '/latent'")
    browser.back()
    until(browser, "return location.pathname === '/dictionary' && document.querySelector('.grid tbody a') !== null")


def test_keys(page):
    browser = page("/latent?d=sae&i=10", ".examples")
    press(browser, "j")
    until(browser, "return location.search.includes('i=')  && !location.search.includes('i=10')")
    press(browser, "k")
    until(browser, "return location.search.includes('i=10')")
    until(browser, "return document.querySelector('.kicker').textContent.startsWith('Latent 10')")
    press(browser, "?")
    until(browser, "return document.querySelectorAll('.helptext:not([hidden])').length > 5")
    press(browser, "?")
    press(browser, "s")
    until(browser, "return document.querySelector('.lead .star').getAttribute('aria-pressed') === 'true'")
    press(browser, "s")
    until(browser, "return document.querySelector('.lead .star').getAttribute('aria-pressed') === 'false'")
    press(browser, "e")
    assert browser.execute_script("return document.activeElement.id") == "note"
    page("/latent?d=sae&i=10")
    press(browser, "/")
    assert browser.execute_script("return document.activeElement.id") == "search"


def test_a_token_under_the_pointer_is_read_out_and_marked_in_the_histogram(page):
    browser = page("/latent?d=sae&i=10", ".examples .anchor")
    over = "new MouseEvent('mousemove', {bubbles: true, clientX: 300, clientY: 400})"
    browser.execute_script(f"document.querySelector('.examples .anchor').dispatchEvent({over})")
    until(browser, "return document.querySelector('.tip')?.textContent.includes('activation')")
    assert browser.find_elements("css selector", ".p-histogram line.mark")
    sides = browser.find_elements("css selector", ".p-logits .pair table")
    assert [len(side.find_elements("css selector", ".meter.plus")) for side in sides] == [10, 0]
    assert [len(side.find_elements("css selector", ".meter.minus")) for side in sides] == [0, 10]
    browser.execute_script("document.querySelector('.examples .anchor').dispatchEvent(new MouseEvent('mouseleave'))")
    until(browser, "return document.querySelector('.tip') === null && !document.querySelector('line.mark')")


def test_a_text_of_ones_own_on_a_latent(page):
    browser = page("/latent?d=sae&i=10&t=" + quote("the cat sat on the mat"), ".tried")
    assert browser.execute_script("return document.querySelector('.tried').textContent").split() == [
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
    ]
    assert complaints(browser) == []


def test_steering_streams_into_two_columns_and_the_link_keeps_it(page):
    browser = page("/steer?d=sae&l=10:40&n=12&t=" + quote("the cat sat on"), ".dose")
    browser.execute_script("[...document.querySelectorAll('button')].find(b => b.textContent === 'Write').click()")
    until(browser, "return document.querySelector('.changes') !== null")
    sides = [one.text for one in browser.find_elements("css selector", ".side-text > p:first-of-type")]
    assert len(sides) == 2
    assert all(sides)
    assert sides[0] != sides[1]
    assert "l=10%3A40" in browser.current_url
    assert complaints(browser) == []


def test_strengths_of_two_sides_stand_beside_each_other(page):
    browser = page("/steer?d=sae&l=10:40&m=@pull:2&x=0.5+1&n=8&t=" + quote("the cat sat on"), ".dose")
    assert len(browser.find_elements("css selector", ".dose")) == 2
    click(browser, "Write")
    until(browser, "return document.querySelector('.changes') !== null")
    titles = [one.text for one in browser.find_elements("css selector", ".side-text h2")]
    assert titles == ["Without", "With A × 0.5", "With A × 1", "With B × 0.5", "With B × 1"]
    shown = [one.text for one in browser.find_elements("css selector", ".side-text > p:first-of-type")]
    assert len(set(shown)) > 2
    assert len(browser.find_elements("css selector", ".side-text .tok")) == 4 * 8
    over = "new MouseEvent('mousemove', {bubbles: true, clientX: 300, clientY: 400})"
    browser.execute_script(f"document.querySelector('.side-text .tok').dispatchEvent({over})")
    until(browser, "return document.querySelector('.tip')?.textContent.includes('nats')")
    page("/steer?d=sae&l=10:2&u=nats&x=0.1&n=8&t=" + quote("the cat sat on"), ".dose")
    click(browser, "Write")
    until(browser, "return document.querySelector('.changes') !== null")
    assert "With 0.1 nats" in words(browser)
    assert complaints(browser) == []
    page("/steer?d=sae&l=10:2&n=8&t=cat", ".dose")
    click(browser, "Compare with B")
    until(browser, "return document.querySelectorAll('.side-doses').length === 2")
    browser.execute_script(
        "const f = document.querySelector('[aria-label=\"Direction to add to B\"]'); f.value = 'pull';"
        "f.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    until(browser, "return document.querySelectorAll('.dose').length === 2")
    assert "m=%40pull%3A1" in browser.current_url


def test_a_job_that_fails_says_why(page):
    browser = page("/prompt?d=sae&t=" + quote("cat"))
    until(browser, "return document.querySelector('.failed[role=alert]')?.textContent")
    assert "token" in browser.find_element("css selector", ".failed[role=alert]").text


def test_the_matrix_of_a_prompt(page):
    browser = page(
        "/prompt?d=sae&t=" + quote("the cat sat on the mat") + "&o=" + quote("the dog ran on the mat"), ".matrix"
    )
    assert len(browser.find_elements("css selector", ".matrix .col")) == 6
    every = len(browser.find_elements("css selector", ".matrix tbody tr"))
    browser.find_elements("css selector", ".matrix .col")[2].click()
    until(browser, f"return document.querySelectorAll('.matrix tbody tr').length < {every}")
    assert "p=2" in browser.current_url
    assert "What differs" in words(browser)


def test_an_exported_page_needs_no_server(page, served, browser, tmp_path: Path):
    _, text = served.ask("/api/export?d=sae&i=3,4,5")
    assert "http://" not in text.replace("http://www.w3.org", "")
    path = tmp_path / "latents.html"
    path.write_text(text)
    browser.get(path.as_uri())
    until(browser, "return document.querySelectorAll('article.latent').length === 3")
    assert browser.find_elements("css selector", "img") == []
    assert complaints(browser) == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls[urls.index(path.as_uri()) :] if not url.startswith(("file:", "data:", "blob:"))] == []


def test_a_notebook_shows_a_latent_in_a_frame(browser, home, tmp_path: Path):
    own = one_site(home / "sae")
    shown = latents.page(latents.index_of(own), 3)._repr_html_()
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><title>cell</title>{shown}")
    browser.get(path.as_uri())
    browser.switch_to.frame(browser.find_element("css selector", "iframe"))
    until(browser, "return document.querySelector('article.latent h1') !== null")
    assert browser.execute_script("return origin") == "null"
    browser.switch_to.default_content()
    assert complaints(browser) == []


def click(browser, text):
    script = "[...document.querySelectorAll('main button')].find(b => b.textContent === arguments[0]).click()"
    browser.execute_script(script, text)


def test_the_lens_shows_every_layer(page):
    browser = page("/lens?d=sae&t=" + quote("the cat sat on the mat"), ".matrix")
    assert len(browser.find_elements("css selector", ".matrix tbody tr")) == 3
    assert len(browser.find_elements("css selector", ".matrix tbody tr:first-child td")) == 6
    assert complaints(browser) == []


def test_patching_shows_every_place(page):
    words = {"t": "the cat sat", "o": "the dog sat", "r": " on", "w": " mat"}
    browser = page("/patching?d=sae&" + "&".join(f"{name}={quote(word)}" for name, word in words.items()))
    click(browser, "Patch")
    until(browser, "return document.querySelector('.heat') !== null")
    assert len(browser.find_elements("css selector", ".heat .cell")) == 9


def test_the_graph_is_drawn_apart_from_the_page(page):
    browser = page("/graph?d=sae&n=30&t=" + quote("the cat sat"))
    click(browser, "Trace it")
    until(browser, "return document.querySelector('iframe') !== null")
    frame = browser.find_element("css selector", "iframe")
    browser.switch_to.frame(frame)
    until(browser, "return document.querySelector('.node') !== null")
    assert browser.execute_script("return origin") == "null"
    reached = "const done = arguments[0]; fetch(arguments[1]).then(() => done('reached'), () => done('refused'))"
    assert browser.execute_async_script(reached.replace("arguments[1]", "'/api/home'")) == "refused"
    browser.switch_to.default_content()
    browser.get_log("browser")


def test_a_report_in_a_frame_has_the_theme_of_the_app(page):
    """Whatever the system's is; a change is told to the frame, which keeps what was done in it."""
    browser = page("/reports?r=0", "iframe")
    looks = "const root = document.documentElement; return getComputedStyle(root).backgroundColor === arguments[0]"
    white, black = "rgb(255, 255, 255)", "rgb(0, 0, 0)"

    def inside(colour, does):
        browser.switch_to.default_content()
        browser.switch_to.frame(browser.find_element("css selector", "iframe"))
        until(browser, looks, colour)
        found = browser.execute_script(does)
        browser.switch_to.default_content()
        return found

    inside(white, "window.mine = 1")  # nothing chosen: the system's
    try:
        for colour in (black, white, black):
            browser.execute_script("document.querySelector('.top button.plain').click()")
            assert inside(colour, "return [origin, document.compatMode, window.mine]") == ["null", "CSS1Compat", 1]
        page("/reports?r=0", "iframe")
        assert inside(black, "return window.mine") is None
    finally:
        browser.switch_to.default_content()
        browser.execute_script("localStorage.removeItem('theme')")


def test_two_latents_beside_each_other(page, served):
    browser = page("/compare?d=sae&a=3&e=bare&b=5", ".both .latent + .latent")
    _, found = served.ask("/api/relation?d=sae&i=3&e=bare&j=3")
    assert found["decoder"] == pytest.approx(1, abs=1e-6)  # the same weights
    _, near = served.ask("/api/family?d=sae&i=3")
    assert [(one["dictionary"], one["family"]) for one in near] == [
        ("narrow", True),
        ("bare", False),
        ("broken", False),
    ]
    assert all(one["rows"][0]["latent"] == one["rows"][0]["back"] == 3 for one in near)
    come_to_kin(browser)
    assert "In other dictionaries" in words(browser)


def come_to_kin(browser):
    """Other dictionaries are asked once their panels are in view."""
    browser.execute_script("document.querySelector('.kin').scrollIntoView()")
    until(browser, "return document.querySelector('.p-family table') || document.querySelector('.p-made_of table')")


def test_a_latent_s_family_and_meta_latents(page, served, home):
    browser = page("/latent?d=sae&i=3", ".kin")
    come_to_kin(browser)
    first = "return document.querySelector('.p-family tbody tr').innerText"
    assert browser.execute_script(first).split() == ["3", "⇄", "1"]
    assert not browser.find_elements("css selector", ".p-made_of")  # no meta-SAE of its place
    page("/latent?d=heads&i=3", ".kin")
    come_to_kin(browser)
    assert "No other width" in browser.find_element("css selector", ".p-family").text  # a meta-SAE is no family
    _, (made,) = served.ask("/api/made_of?d=heads&i=3")
    unit = one_site(home / "heads").W_dec
    unit = unit / unit.norm(dim=1, keepdim=True)
    acts, indices = (unit[3] @ unit[:24].T).relu().topk(4)
    assert [row["meta"] for row in made["rows"]] == indices.tolist()
    assert [row["given"] for row in made["rows"]] == pytest.approx((acts**2).tolist(), rel=1e-3)
    shown = [one.text for one in browser.find_elements("css selector", ".p-made_of tbody a")]
    assert shown == [str(i) for i in indices.tolist()]
    assert complaints(browser) == []


def test_a_latent_of_the_service(page, served):
    """The service is the server itself: `NEURONPEDIA_SITE` says so."""
    browser = page("/public?u=" + quote("https://www.neuronpedia.org/tiny/1-resid_post/3?embed=true"), "article h1")
    shown = browser.find_element("css selector", "article h1").text
    assert shown == served.ask("/api/latent?d=sae&i=3")[1]["explanation"]["label"]
    assert browser.find_elements("css selector", ".examples li")
    assert complaints(browser) == []
    page("/public?u=" + quote("tiny/1-resid_post/64"), ".failed[role=alert]")
    until(browser, "return document.querySelector('.failed[role=alert]').innerText.includes('no latent')")
    browser.get_log("browser")


def test_what_an_example_is_without_the_latent(page):
    browser = page("/latent?d=sae&i=10", ".effect button")
    browser.execute_script("document.querySelector('.effect button').click()")
    until(browser, "return document.querySelector('.effect .tok') !== null")
    over = "new MouseEvent('mousemove', {bubbles: true, clientX: 300, clientY: 400})"
    browser.execute_script(f"document.querySelector('.effect .tok').dispatchEvent({over})")
    until(browser, "return document.querySelector('.tip')?.textContent.includes('it raises')")
    click(browser, "More from the model's weights")
    until(browser, "return document.querySelector('.p-set_effects') !== null")
    assert browser.find_elements("css selector", ".p-patterns")
    assert complaints(browser) == []


def test_an_attention_latent_says_where_it_comes_from(page):
    browser = page("/latent?d=heads&i=10&t=" + quote("the cat sat on the mat"), ".p-sources .matrix")
    assert len(browser.find_elements("css selector", ".p-sources tbody tr")) == 5
    assert complaints(browser) == []


def test_a_sweep_is_filtered_and_read(page):
    browser = page("/sweep?d=sae", ".grid tbody button")
    assert browser.find_element("css selector", ".count").text == "12 of 24"
    texts = "[...document.querySelectorAll('.grid tbody button')].map(b => b.textContent)"
    until(browser, f"return {texts}.length === 12 && !{texts}.includes('…')")  # each row has what was written
    page("/sweep?d=sae&all=1&f=" + quote("value=40"), ".grid tbody button")
    until(browser, "return document.querySelector('.count').textContent === '12 of 24'")
    until(browser, "return document.querySelectorAll('.written').length === 2")
    steer = browser.find_element("css selector", ".cloud a.button[href*='steer']").get_attribute("href")
    assert "how=set" in steer
    assert complaints(browser) == []


def test_a_file_of_another_tool_says_what_not_to_rely_on(page, served):
    browser = page("/files?d=sae", "article h1")
    assert len(browser.find_elements("css selector", ".remarks li")) > 4
    click(browser, "next ›")
    until(browser, "return document.querySelector('.kicker').textContent.startsWith('Latent 1')")
    assert complaints(browser) == []
    assert served.ask("/api/file?n=0&i=2")[0] == served.ask("/api/file?n=1&i=0")[0] == 404


def test_a_line_around_points_makes_a_list(page, served):
    browser = page("/map?d=sae", ".scatter canvas")
    until(browser, "return document.querySelector('canvas').width > 300")
    draw = """
        const canvas = document.querySelector('canvas'), box = canvas.getBoundingClientRect();
        const say = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {bubbles: true, pointerId: 1,
          clientX: box.left + x, clientY: box.top + y}));
        canvas.setPointerCapture = () => {};
        const right = box.width - 1, low = box.height - 1;
        const corners = [[1, 1], [right, 1], [right, low], [1, low], [1, 2], [1, 1]];
        const later = () => new Promise(done => setTimeout(done, 60));
        const done = arguments[0];
        (async () => { say('pointerdown', 1, 1); await later();
          for (const corner of corners) { say('pointermove', ...corner); await later(); }
          say('pointerup', 1, 1); await later(); done(); })();
    """
    browser.execute_async_script(draw)
    until(browser, "return location.search.includes('c=')")
    until(browser, "return document.querySelector('main').innerText.includes('64 chosen')")
    browser.execute_script(
        "const f = document.querySelector('[aria-label=\"Name of the list\"]'); f.value = 'all of them';"
        "f.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    click(browser, "Keep as a list")
    until(browser, "return location.pathname === '/lists'")
    until(browser, "return document.querySelector('main').innerText.includes('all of them')")
    assert len(served.ask("/api/notes")[1]["lists"]["all of them"]) == 64


def test_axes_are_told_at_round_values(page):
    told = {
        (4.2, 1238): [10, 100, 1000],
        (0.3, 60): [0.5, 1, 2, 5, 10, 20, 50],
        (1e-9, 2): [1e-9, 1e-7, 1e-5, 1e-3, 0.1],
        (-6.3, -0.31): [-6, -5, -4, -3, -2, -1],
        (-0.02, 0.31): [0, 0.1, 0.2, 0.3],
        (0.99, 1.01): [0.99, 0.995, 1, 1.005, 1.01],
        (1, 1.00001): [1],
    }
    browser = page("/lists")
    ticks = "import('scatter').then(own => done(all.map(one => own.ticksOf(own.axisOf(one)))))"
    found = browser.execute_async_script(f"const [all, done] = arguments; {ticks}", [list(ends) for ends in told])
    assert found == [pytest.approx(values) for values in told.values()]
