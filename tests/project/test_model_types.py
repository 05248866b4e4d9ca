"""The recipe of docs/models.md: a type that is read, one that looks ahead, one that is not, and another release."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "recipes/model_types.py"


def test_the_page_of_model_types(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("model_types", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    rows = [recipe.look_at(kind) for kind in ("llama", "qwen3_next", "musicgen")]
    assert [row.way for row in rows] == ["table", "table", ""]
    assert rows[0].blocks == "attn attention, mlp: 0-3"
    assert rows[0].generates == "yes"
    assert 0 < rows[0].error < 1e-4
    assert rows[1].blocks.count(";") >= 1  # several kinds of layers
    assert rows[2].why
    page = recipe.page(rows)
    assert "3 causal language models" in page
    assert "2 are read, 2 through a row" in page
    before = json.loads(json.dumps({"version": "5.0", "rows": [asdict(row) for row in rows[1:]]}))
    before["rows"][0] |= {"why": "for a reason", "blocks": ""}
    more = recipe.differences(rows, before)
    assert "0 of 2 types are read. Types that it does not have yet: llama." in more
    assert "| qwen3_next | for a reason |" in more
    assert "musicgen |" not in more
