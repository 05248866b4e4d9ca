"""The Python of pages about directions, probes and interventions runs from the top of a page to its end: on a tiny
model with smollm2's layers and vocabulary, so that what is checked is that the calls fit together, not the numbers."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import monosem as ms
from monosem.models import Model, load_model
from tiny import tiny_hf

DOCS = Path(__file__).parents[2] / "docs"
FEWEST = {"directions": 12, "probes": 15, "interventions": 25}  # statements of a page, else nothing was run


@pytest.fixture(scope="module")
def little(smollm2: Model) -> Model:
    sizes = {"vocab_size": smollm2.cfg.d_vocab, "num_hidden_layers": smollm2.cfg.n_layers}
    return load_model(tiny_hf("llama", **sizes), tokenizer=smollm2.tokenizer, quiet=True)


@pytest.mark.smollm2
@pytest.mark.parametrize("page", FEWEST)
def test_a_page_runs(page: str, little: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ms, "load_model", lambda name, **own: {"smollm2": little}[name])
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    space: dict[str, Any] = {}
    ran = 0
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        for statement in ast.parse(block).body:
            exec(compile(ast.Module([statement], []), f"docs/{page}.md", "exec"), space)
            ran += 1
    assert ran >= FEWEST[page]
