"""Saved heatmaps: plotly.js where they are narrow, a compressed grid without it where they are wide."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem import lenses, patching
from monosem.data import TokenPairs
from monosem.pages import page_of
from monosem.plots import WORDS_FIT, heatmap
from tiny import model_of, tiny_model


def held(page: str) -> Any:
    packed = re.search(r'<script id="data" type="text/plain">([^<]*)</script>', page)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


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
    assert ("plotly" in page.lower()) == (columns <= 100)
    if columns > 100:
        (grid,) = held(page)
        assert page.count("</script>") == 2
        assert grid["z"][1][2] is None
        assert grid["z"][2][-1] == pytest.approx(2)
        assert (grid["x"], grid["text"], grid["hover"]) == (labels, text, hover)
        assert (grid["low"], grid["high"]) == (-2, 2)
        assert grid["colors"][0][1] == [0xC2, 0x57, 0x1A]


def test_sweeps_over_many_positions_are_grids(tmp_path: Path) -> None:
    model = model_of("llama")
    pairs = TokenPairs.of(model, [[7, 8, 9]], [[7, 9, 9]], [11], [12])  # type: ignore[arg-type]
    found = patching.sweep(model, pairs, ["attn_out", "mlp_out"], layers=[0], quiet=True)
    assert "plotly" in found.save(tmp_path / "few.html").read_text().lower()
    wide = [heatmap(torch.zeros(2, 150), range(150), range(2), title=site) for site in ("attn_out", "mlp_out")]
    page = page_of(patching.sweeps.pictures._side_by_side(wide, ["attn_out", "mlp_out"]))
    assert [grid["title"] for grid in held(page)] == ["attn_out", "mlp_out"]
