"""Saved heatmaps: plotly.js where they are narrow, a compressed grid without it where they are wide."""

import base64
import gzip
import html
import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem import lenses, patching
from monosem.data import TokenPairs
from monosem.pages import page_of, palette
from monosem.plots import DIVERGING, WORDS_FIT, by_layer, heatmap, lines, literal, style
from tiny import model_of, tiny_model

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"


def held(page: str) -> Any:
    packed = re.search(r'<script id="data" type="text/plain">([^<]*)</script>', page)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_what_has_a_sign_is_blue_above_0_and_orange_below_on_pages_and_in_figures() -> None:
    def reds_and_blues(colour: str) -> tuple[int, int]:
        found = [int(part) for part in re.findall(r"\d+", colour)] if "rgb" in colour else bytes.fromhex(colour[1:])
        return found[0], found[2]

    shown = {sign: [DIVERGING[end][1]] for sign, end in (("plus", -1), ("minus", 0))}
    for sign, light, dark in re.findall(
        r"--(plus|minus)(?:-line)?: light-dark\((#\w+|rgb\([^)]*\)), ([^;]*)\);", palette()
    ):
        shown[sign] += [light, dark]
    assert len(shown["plus"]) == len(shown["minus"]) == 5
    assert all(blue > 1.5 * red for red, blue in map(reds_and_blues, shown["plus"]))
    assert all(red > 1.5 * blue for red, blue in map(reds_and_blues, shown["minus"]))


def test_a_wide_lens_is_a_small_page_with_every_cell(tmp_path: Path) -> None:
    model = tiny_model("llama", max_position_embeddings=600)
    ids = [(7 * n) % 90 + 5 for n in range(600)]
    seen = lenses.logit(model, [ids], quiet=True)
    page = seen.save(tmp_path / "lens.html").read_text()
    figure = seen.plot()
    (grid,) = held(page)
    assert len(page) < 2_000_000
    assert "plotly" not in page.lower()
    assert len(grid["x"]) == len(ids)
    torch.testing.assert_close(torch.tensor(grid["z"]), torch.tensor(figure.data[0].z).float(), rtol=1e-3, atol=1e-6)
    assert grid["text"] == [list(row) for row in figure.data[0].text]
    assert figure.data[0].texttemplate is None  # no word fits


@pytest.mark.parametrize("columns", [WORDS_FIT, WORDS_FIT + 1, 101, 600])
def test_words_and_pages_by_width(columns: int) -> None:
    values = torch.linspace(-1, 2, 3 * columns).reshape(3, columns)
    values[1, 2] = torch.nan
    text = [[f"w{r}{c}" for c in range(columns)] for r in range(3)]
    hover = [[f"<b>{r}</b><br></script><img src=x>{c}" for c in range(columns)] for r in range(3)]
    labels = [f"t{c}" for c in range(columns)]
    figure = heatmap(values, labels, "abc", text=text, hover=hover, title="a </script> title", unit="nats")
    assert (figure.data[0].texttemplate is not None) == (columns <= WORDS_FIT)
    page = page_of(figure)
    assert ("plotly" in page.lower()) == (columns <= WORDS_FIT)
    bare = page_of(heatmap(values, labels, "abc"))
    assert ("plotly" in bare.lower()) == (columns <= 100)
    if columns > WORDS_FIT:
        (grid,) = held(page)
        assert page.count("</script>") == 2
        assert grid["z"][1][2] is None
        assert grid["z"][2][-1] == pytest.approx(2)
        assert (grid["x"], grid["text"], grid["hover"]) == (labels, text, hover)
        assert (grid["low"], grid["high"]) == (-2, 2)
        assert grid["colors"][0][1] == [0xC2, 0x57, 0x1A]


STRANGE = "<s>&amp;<b>x</b><br>"


def strings(value: Any) -> Iterator[str]:
    """Every text of a figure as JSON."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(item)


def test_words_are_text_and_never_markup() -> None:
    go = pytest.importorskip("plotly.graph_objects")
    bars = go.Figure(go.Bar(x=[STRANGE], y=[1.0], name=STRANGE, text=[STRANGE]))
    figures = [
        heatmap(torch.eye(2), [STRANGE, 1], [STRANGE, 2], x_title=STRANGE, title=STRANGE, unit=STRANGE),
        lines({STRANGE: ([1.0, 2.0], None)}, [STRANGE, "b"], x_title=STRANGE, y_title=STRANGE, title=STRANGE),
        style(bars, STRANGE, STRANGE, STRANGE),
    ]
    grids = [heatmap(torch.eye(2), [STRANGE, "b"], "ab", title=STRANGE) for _ in range(2)]
    figures.append(patching.sweeps.pictures._side_by_side(grids, [STRANGE, STRANGE]))
    for figure in figures:
        held = json.loads(figure.to_json())
        for trace in held["data"]:
            trace.pop("meta", None)  # of the page that is a grid, whose script takes text as text
        found = [text for text in strings(held) if "amp" in text]
        assert len(found) >= 3
        assert {html.unescape(text) for text in found} == {STRANGE}
        assert not any("<" in text for text in found)
    assert literal("a\nb") == "a<br>b"


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        (["resid_post.3@last", "resid_post.10@last"], ([3, 10], "layer of resid_post, last")),
        (["resid_mid2.0", "resid_mid2.1"], ([0, 1], "layer of resid_mid2")),
        (
            ["encoder.mlp_out.1 mean:user", "encoder.mlp_out.2 mean:user"],
            ([1, 2], "layer of encoder.mlp_out, mean:user"),
        ),
        (["resid_post.3 last", "resid_post.3 mean"], None),
        (["resid_pre.3 last", "resid_post.3 last"], None),
        (["resid_post.0…resid_post.9@last", "embed@last"], None),
        (["resid_post.3 last"], None),
    ],
)
def test_places_that_differ_by_their_layer_stand_at_its_number(places: list[str], wanted: Any) -> None:
    assert by_layer(places) == (wanted or (places, "place"))


def brightness(figure: Any, end: int) -> int:
    """Of the colour of the least (0) or the largest number (-1)."""
    colour = figure.data[0].colorscale[end][1]
    return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_bright_is_good() -> None:
    model = tiny_model("llama")
    seen = lenses.logit(model, "the cat sat on the mat")
    for value in ("kl", "entropy", "cross_entropy", "js", "tv", "rank"):
        assert brightness(seen.plot(value), 0) > brightness(seen.plot(value), -1), value
    for value in ("probability", "log_probability", "logsumexp"):
        assert brightness(seen.plot(value), 0) < brightness(seen.plot(value), -1), value
    two = lenses.trajectory(model, "the cat sat", "the dog sat")
    assert brightness(two.plot("js"), 0) > brightness(two.plot("js"), -1)


def test_in_a_browser_words_stay_in_their_cells_and_legends_clear_of_the_buttons(tmp_path: Path) -> None:
    if not (shutil.which(CHROMIUM) and shutil.which(DRIVER)):
        pytest.skip(f"needs {CHROMIUM} and {DRIVER} (apt-get install chromium chromium-driver)")
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1000,800"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    words = [[f"<s>{'word' if column % 2 else 'wwwwwwww'}{row}" for column in range(WORDS_FIT)] for row in range(40)]
    escaped = [[literal(word) for word in row] for row in words]
    grid = heatmap(torch.rand(40, WORDS_FIT), ["<b>x</b>"] * WORDS_FIT, range(40), text=escaped, title="<i>t</i>")
    several = {f"<s>a rather long name of a line, number {n}": (torch.rand(5), None) for n in range(5)}
    curves = lines(several, list("abcde"), title="a title " * 12)
    (tmp_path / "grid.html").write_text(page_of(grid))
    (tmp_path / "curves.html").write_text(page_of(curves))
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    try:
        browser.get((tmp_path / "grid.html").as_uri())
        boxes = "return [...document.querySelectorAll(arguments[0])].map(e => {const b = e.getBoundingClientRect(); "
        boxes += "return [e.textContent, b.left, b.right, b.top, b.bottom]})"
        cells = browser.execute_script(boxes, ".heatmap-label")
        assert sorted(text for text, *_ in cells) == sorted(word for row in words for word in row)
        assert {text for text, *_ in browser.execute_script(boxes, ".xtick text")} == {"<b>x</b>"}
        assert browser.execute_script(boxes, ".gtitle")[0][0] == "<i>t</i>"
        by_row = sorted(cells, key=lambda cell: (round(cell[3]), cell[1]))
        for (_, _, right, top, bottom), (_, left, _, below, _) in pairwise(by_row):
            assert (left >= right) if round(top) == round(below) else (below >= bottom - 3)
        browser.get((tmp_path / "curves.html").as_uri())
        (_, left, right, top, bottom), *_ = browser.execute_script(boxes, ".legend")
        (_, first, last, above, below), *_ = browser.execute_script(boxes, ".modebar")
        assert right <= first or left >= last or top >= below or bottom <= above
        assert {text for text, *_ in browser.execute_script(boxes, ".legendtext")} == set(several)
    finally:
        browser.quit()


def test_sweeps_over_many_positions_are_grids(tmp_path: Path) -> None:
    model = model_of("llama")
    pairs = TokenPairs.of(model, [[7, 8, 9]], [[7, 9, 9]], [11], [12])  # type: ignore[arg-type]
    found = patching.sweep(model, pairs, ["attn_out", "mlp_out"], layers=[0], quiet=True)
    assert "plotly" in found.save(tmp_path / "few.html").read_text().lower()
    wide = [heatmap(torch.zeros(2, 150), range(150), range(2), title=site) for site in ("attn_out", "mlp_out")]
    page = page_of(patching.sweeps.pictures._side_by_side(wide, ["attn_out", "mlp_out"]))
    assert [grid["title"] for grid in held(page)] == ["attn_out", "mlp_out"]
