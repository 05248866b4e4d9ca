"""The tutorial runs from top to bottom in a fresh kernel, and says what its text says."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "ioi.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    """What the code cells printed or showed as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [o.get("text", "") for o in outputs if o.get("name") == "stdout"]
    return "\n".join([*texts, *(o["data"].get("text/plain", "") for o in outputs if "data" in o)])


@pytest.mark.smollm2
def test_ioi_tutorial(monkeypatch):
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = printed(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()  # its own asserts hold, too
    now = printed(notebook)
    figures = sum(
        "application/vnd.plotly.v1+json" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", [])
    )
    assert figures >= 9
    # the numbers that stand in the committed copy are those that the code gives (to the printed precision, nearly)
    pattern = r"(?:mean logit difference|L23H3 adds|right name:|wrong name:|->) ([-+]?\d+\.\d+)"
    before, after = ([float(x) for x in re.findall(pattern, text)] for text in (stored, now))
    assert len(after) == len(before) == 5
    assert after == pytest.approx(before, abs=0.02)
    assert "' Mary'" in now
