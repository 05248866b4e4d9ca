"""The notebooks run from top to bottom in a fresh kernel, and say what their committed copies say."""

import base64
import gzip
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "notebooks"
QUICK = {  # what a test puts after the parameters of a notebook
    "lab": """
from monosem.studies import StudyConfig
new_tokens, openings = 2, 2
styles = list(StudyConfig.load("sentiment").styles.items())[:2]
few = {name: {"positive": style.positive[:3], "negative": style.negative[:3]} for name, style in styles}
report = {"max_new_tokens": 2, "random_latents": 3, "random_continuations": 1, "doses": [1.0], "values": [],
          "candidates": 1, "styles": few, "test": ["My first day at school was"], "control": ["Lead is heavier than"]}
""",
    "practical": "first, every, new_tokens = 16, 1024, 4",
    "saelens": "",
}


def printed(notebook: nbformat.NotebookNode) -> str:
    """What the code cells printed or showed as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [o.get("text", "") for o in outputs if o.get("name") == "stdout"]
    return "\n".join([*texts, *(o["data"].get("text/plain", "") for o in outputs if "data" in o)])


@pytest.mark.smollm2
def test_ioi_tutorial(monkeypatch):
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    notebook = nbformat.read(FOLDER / "ioi.ipynb", as_version=4)
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


def run_quickly(name, folder):
    """(as committed, as run in `folder` with small sizes)."""
    committed = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    made = nbformat.from_dict(committed)
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            if "parameters" in cell.metadata.get("tags", []):
                cell.source += "\n" + QUICK[name]
    NotebookClient(made, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return committed, made


def check_stable(committed, made):
    """Cells that no size changes give the committed words, and its numbers nearly."""
    number = r"[-+]?\d+(?:\.\d+)?"
    stable = [i for i, cell in enumerate(committed.cells) if "stable" in cell.metadata.get("tags", [])]
    assert len(stable) >= 2
    for i in stable:
        old, new = (printed(nbformat.from_dict({**book, "cells": [book.cells[i]]})) for book in (committed, made))
        assert re.sub(number, "#", new).split() == re.sub(number, "#", old).split()
        values = [[float(value) for value in re.findall(number, text)] for text in (new, old)]
        assert values[0] == pytest.approx(values[1], abs=0.02, rel=0.02)


@pytest.mark.smollm2
def test_lab(monkeypatch, tmp_path):
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    committed, made = run_quickly("lab", tmp_path)
    check_stable(committed, made)
    made_files = tmp_path / "runs" / "lab"
    packed = (made_files / "evidence.html").read_text().partition('type="text/plain">')[2].partition("<")[0]
    assert json.loads(gzip.decompress(base64.b64decode(packed)))[0]["examples"]
    assert {"report.html", "report.md", "results.json"} <= {path.name for path in (made_files / "report").iterdir()}


@pytest.mark.smollm2
def test_practical(tmp_path):
    committed, made = run_quickly("practical", tmp_path)
    check_stable(committed, made)
    files = tmp_path / "runs" / "practical"
    assert len((files / "sentences.txt").read_text().splitlines()) == 8
    swept = re.findall(r"^== latent (\d+)$", (files / "sweep" / "sweep.txt").read_text(), re.MULTILINE)
    assert swept == [str(i) for i in range(16)]
    assert "== latent 5120" in (files / "all" / "sweep.txt").read_text()


@pytest.mark.smollm2
def test_saelens(tmp_path):
    check_stable(*run_quickly("saelens", tmp_path))


@pytest.mark.parametrize("name", ["lab", "practical", "saelens"])
def test_notebooks_are_small_linked_and_say_what_other_models_need(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 300_000
    for page in ("README.md", "docs/README.md"):
        assert f"notebooks/{name}.ipynb" in (ROOT / page).read_text()
    text = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert all(model in text for model in ("GPT-2 small", "Gemma", "Llama"))
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)  # it is kept as it ran
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
