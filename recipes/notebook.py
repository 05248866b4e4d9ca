"""Run a notebook and keep its outputs, with still pictures beside the interactive ones (for viewers without scripts).

    python recipes/notebook.py docs/notebooks/ioi.ipynb

Needs the dev install; Chromium draws the pictures (kaleido).
"""

import os
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype+png")
os.environ.setdefault("BROWSER_PATH", shutil.which("chromium") or "")


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this machine
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
