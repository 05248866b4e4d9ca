"""The page that shows how to write a row: its code runs, and its model is refused without the row."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem.errors import UnknownName
from monosem.models import load_model

PAGE = Path(__file__).parents[2] / "docs" / "your-model.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(code, names)
    return names


def test_without_the_row_the_model_is_refused_as_the_page_says(page):
    with pytest.raises(UnknownName, match="add up to its stream .*, identity 'resid_pre . other_out' at resid_mid"):
        load_model(page["hf"], quiet=True)


def test_what_the_row_reads_is_what_the_block_computes(page):
    block, run = page["hf"].blocks[1], page["run"]
    stream = page["model"].run([[3, 5, 7, 9]], capture="resid_pre.1")["resid_pre.1"]
    pooled = 0.5 * block.pool(block.norm_a(stream))
    torch.testing.assert_close(run["pool_out.1"], pooled)
    torch.testing.assert_close(run["resid_mid.1"], stream + pooled)
    torch.testing.assert_close(run["mlp_post.1"], block.feed.up(block.norm_b(stream + pooled)).relu())


def test_it_generates_without_a_cache(page):
    made = page["model"].generate([[3, 5, 7]], max_new_tokens=2, stop_at_eos=False)
    ids = torch.tensor([[3, 5, 7]])
    for _ in range(2):
        ids = torch.cat([ids, page["hf"](ids).logits[:, -1].argmax(-1)[:, None]], 1)
    assert made.new == ids[:, 3:].tolist()
