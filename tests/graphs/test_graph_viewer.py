"""The viewer in a real browser: nodes, selection, pins, groups, search, exports, and nothing fetched."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from monosem import graphs
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.graphs.evidence import evidence
from monosem.latents import build_index
from tiny import tiny_model
from tiny_latents import MODEL, STORE, TOPK, dictionary

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def graph():
    made = graphs.attribution_graph(tiny_model("llama"), "the cat sat on the mat", n_nodes=60, quiet=True).prune()
    made.tokens[1] = HOSTILE  # as a token of a hostile tokenizer
    made.nodes.loc[made.kinds == "token", "label"] = HOSTILE
    return made


@pytest.fixture(scope="module")
def page(graph, tmp_path_factory):
    if not (shutil.which(CHROMIUM) and shutil.which(DRIVER)):
        pytest.skip(f"needs {CHROMIUM} and {DRIVER} (apt-get install chromium chromium-driver)")
    selenium = pytest.importorskip("selenium.webdriver")
    folder = tmp_path_factory.mktemp("viewer")
    units = [one for one, kind in zip(graph.nodes["id"], graph.kinds) if kind == "neuron"][:3]
    heads = [graphs.qk_attribution(graph, 1, 2, query=4, key=1)]
    path = graph.save(
        folder / "graph.html", title=HOSTILE, supernodes={HOSTILE: units[:2]}, pinned=units[2:], heads=heads
    )
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking")
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        *flags,
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1400,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(Path(path).as_uri())
    browser.implicitly_wait(10)
    browser.find_element("css selector", ".node")
    browser.implicitly_wait(0)
    yield browser
    browser.quit()


def script(page, text, *values):
    return page.execute_script(text, *values)


def press(page, key):
    event = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
    script(page, event, key)


def test_every_token_and_logit_is_there_and_nothing_is_fetched(page, graph):
    for kind in ("token", "logit"):
        marks = page.find_elements("css selector", f".node.{kind}")
        assert {mark.get_attribute("data-id") for mark in marks} == set(graph.nodes.id[graph.kinds == kind])
    assert [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.find_elements("css selector", "#graph img, main img") == []
    assert page.title == HOSTILE


def test_a_click_shows_what_goes_in_and_out(page, graph):
    unit = graph.nodes.id[graph.kinds == "neuron"].iloc[-1]
    script(
        page,
        f"document.querySelector('[data-id=\"{unit}\"]').dispatchEvent(new MouseEvent('click', {{bubbles: true}}))",
    )
    rows = page.find_elements("css selector", ".panel .row")
    named = {row.get_attribute("data-id") for row in rows}
    inputs, outputs = graph.inputs(unit, 5), graph.outputs(unit, 5)
    inputs = inputs[inputs.kind != "bias"]
    assert set(inputs.id) | set(outputs.id) <= named
    assert page.find_elements("css selector", ".node.chosen")[0].get_attribute("data-id") == unit
    words = page.find_element("css selector", ".panel").text
    assert "promotes" in words
    assert "suppresses" in words


def test_pins_and_groups_are_in_the_exported_file(page, graph):
    file = script(page, "return window.graph.pins()")
    ((label, *members),) = file["qParams"]["supernodes"]
    assert label == HOSTILE
    assert len(members) == 2
    unit = graph.nodes.id[graph.kinds == "neuron"].iloc[-1]
    script(page, "window.graph.select(arguments[0])", unit)
    press(page, "p")
    assert unit in script(page, "return window.graph.pins()")["qParams"]["pinnedIds"]
    press(page, "g")
    supernodes = script(page, "return window.graph.pins()")["qParams"]["supernodes"]
    assert [len(one) - 1 for one in supernodes] == [2, 2]
    assert file["links"] == graphs.graph_json(graph)["links"]


def test_search_marks_nodes_and_escape_clears(page):
    script(
        page,
        "const s = document.querySelector('input[type=search]'); s.value = 'layer 2 neuron';"
        "s.dispatchEvent(new Event('input'))",
    )
    found = page.find_elements("css selector", ".node.found")
    assert found
    assert all(mark.get_attribute("data-id").startswith("2_") for mark in found)
    press(page, "Escape")
    assert page.find_elements("css selector", ".node.found, .node.chosen") == []


def test_arrows_follow_the_strongest_edge(page, graph):
    logit = graph.nodes.id[graph.kinds == "logit"].iloc[0]
    script(page, "window.graph.select(arguments[0])", logit)
    press(page, "ArrowDown")
    best = graph.inputs(logit, 2)
    expected = best[best.kind != "bias"].id.iloc[0]
    assert page.find_element("css selector", ".node.chosen").get_attribute("data-id") == expected


def test_what_is_found_is_listed(page):
    script(page, "window.graph.select(null)")
    set_to = "const s = document.querySelector('input[type=search]'); s.value = arguments[0];"
    script(page, set_to + "s.dispatchEvent(new Event('input'))", "layer 2 neuron")
    marked = {mark.get_attribute("data-id") for mark in page.find_elements("css selector", ".node.found")}
    listed = {row.get_attribute("data-id") for row in page.find_elements("css selector", ".panel .row")}
    assert marked
    assert marked <= listed
    assert all(one.startswith("2_") for one in listed)
    press(page, "Escape")


def test_a_first_token_that_has_most_starts_hidden(page, graph, tmp_path):
    """Its nodes read no other token: picture and list begin with the others, say so, and show them on a click."""
    sink = (graph.nodes["position"] == 0) & (graph.kinds == "neuron")
    edges = graph.edges.clone()
    edges[:, sink.to_numpy().nonzero()[0].tolist()] *= 1000
    before, made = page.current_url, replace(graph, edges=edges)
    page.get(made.save(tmp_path / "sink.html").as_uri())
    page.implicitly_wait(10)
    page.find_element("css selector", ".node")
    page.implicitly_wait(0)
    ids = set(graph.nodes["id"][sink])

    def drawn(kind):
        return ids & {mark.get_attribute("data-id") for mark in page.find_elements("css selector", kind)}

    assert drawn(".node") == drawn(".row") == set()
    words = page.find_element("css selector", ".panel").text
    assert "Nodes at the first token are hidden" in words
    units = made.table[(made.kinds == "neuron") | (made.kinds == "latent")]
    share = units.influence[units.position == 0].sum() / units.influence.sum()
    assert f"have {share:.0%}".replace("%", " %") in words
    assert made.at_first_token == pytest.approx(share)
    script(page, "document.querySelector('[data-do=first]').click()")
    assert drawn(".node")
    assert drawn(".row")
    page.get(before)
    page.implicitly_wait(10)
    page.find_element("css selector", ".node")
    page.implicitly_wait(0)


def test_sliders_hide_nodes(page):
    script(page, "window.graph.select(null)")
    set_to = (
        "const s = document.querySelector('[data-for=share]'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))"
    )
    script(page, set_to, 1)
    every = len(page.find_elements("css selector", ".node"))
    script(page, set_to, 0)
    few = page.find_elements("css selector", ".node")
    assert len(few) < every
    script(page, set_to, 1)


def test_a_head_shows_the_pairs_that_make_its_score(page, graph):
    script(page, "window.graph.select(null)")
    script(page, "document.querySelector('[data-do=head]').click()")
    found = graphs.qk_attribution(graph, 1, 2, query=4, key=1)
    words = page.find_element("css selector", ".panel").text
    assert "head 2 of layer 1" in words
    assert len(page.find_elements("css selector", ".panel .pair")) == min(14, len(found.table))
    known = {*graph.nodes.id[graph.kinds != "bias"]}
    first = found.table.iloc[:14]
    expected = [one for pair in first.itertuples() for one in (pair.query_node, pair.key_node) if one in known]
    links = page.find_elements("css selector", ".panel .pair button")
    assert [link.get_attribute("data-id") for link in links] == expected
    script(page, "document.querySelector('.panel .row').click()")
    assert page.find_elements("css selector", ".node.chosen")


def test_the_picture_stands_alone(page):
    svg = script(page, "return window.graph.picture()")
    parsed = script(
        page, "return new DOMParser().parseFromString(arguments[0], 'image/svg+xml').documentElement.tagName", svg
    )
    assert parsed == "svg"
    assert "var(--" not in svg


def test_latents_come_with_where_they_fire(tmp_path):
    """An index of a transcoder: its examples and values are those that the index quotes."""
    coder = dictionary(site="mlp_input.1", site_out="mlp_out.1", transcoder=True)
    index = build_index(MODEL, coder, STORE, tmp_path / "index.sqlite", quiet=True)
    made = graphs.attribution_graph(MODEL, "the cat sat on the moon", coder, neurons="none", quiet=True)
    assert "examples" not in next(iter(evidence(made).values()))
    found = evidence(made, indexes=[index])
    latents = made.nodes[made.kinds == "latent"]
    assert len(latents) > 3
    for node in latents.to_dict("records"):
        about = index.evidence(node["index"])
        first = found[node["id"]]["examples"][0]
        assert first["tokens"] == about.examples[0].tokens
        assert first["values"] == about.examples[0].activations
        assert first["most"] == about.maximum
    page = made.save(tmp_path / "graph.html", indexes=[index]).read_text(encoding="utf-8")
    assert "Where it fires in the corpus" in page
    with pytest.raises(Mismatch, match="index of no transcoder"):
        made.save(tmp_path / "b.html", indexes=[build_index(MODEL, TOPK, STORE, tmp_path / "sae.sqlite", quiet=True)])


def test_wrong_names_are_refused(graph, tmp_path):
    with pytest.raises(UnknownName, match="no node 'x'"):
        graph.save(tmp_path / "a.html", pinned=["x"])
    with pytest.raises(BadInput):
        graph.save(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []
