"""Put a finished comparison of methods into docs/comparison.md: its table, and its picture into docs/pictures.

    python recipes/concept_files.py TASKS_FOLDER runs/concepts
    monosem compare-methods runs/concepts --dictionary smollm2/resid_post.15 --dtype float32 --out runs/methods
    python recipes/comparison_page.py runs/methods

Needs the dev install; Chromium draws (kaleido).
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from monosem.methods.report import figures, written
from monosem.methods.verdicts import predict_control, summary
from monosem.pages import number

os.environ.setdefault("BROWSER_PATH", shutil.which("chromium") or "")
DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = DOCS / "comparison.md", DOCS / "pictures" / "methods.webp"
BEGIN, END = "<!-- measured: written by recipes/comparison_page.py -->\n", "<!-- end of measured -->\n"


def table(results: dict[str, Any]) -> str:
    lines = ["| method | AUROC | above `shuffled` | shift | score | above `shuffled` |", "|---|--:|--:|--:|--:|--:|"]
    for row in summary(results["concepts"], results["config"]["budget"]):
        columns = ("auroc", "auroc_over", "shift", "score", "score_over")
        cells = [f"`{row['method']}`", *(written(row, key) if key in row else "–" for key in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def text(results: dict[str, Any]) -> str:
    config, origin, concepts = results["config"], results["origin"], results["concepts"]
    together = predict_control(concepts, config["budget"])["together"]
    minutes = sum(one["processor_seconds"] for one in concepts.values()) / 60
    value, low, high = (number(together[key], 2) for key in ("value", "low", "high"))
    made = f"{origin['model']} ({origin['dtype']}), {len(concepts)} concepts ({', '.join(concepts)})"
    return f"""
Measured on {made}, seed {config["seed"]}:
means over concepts with 95 % intervals (concepts drawn again; the split of the texts was drawn once, and what it does
is not in them), shift at {config["budget"]:g} nats.
It took {minutes:.0f} minutes of processor time on one thread. Spearman's correlation of detection with steering, the
mean over concepts: {value} [{low}, {high}], {together["said"]}.

{table(results)}

![Test AUROC of each method on each concept](pictures/{PICTURE.name})

"""


def main() -> None:
    results = json.loads((Path(sys.argv[1]) / "results.json").read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN) if BEGIN in page else (page.rstrip("\n") + "\n\n## Measured\n\n", END)
    PAGE.write_text(before + BEGIN + text(results) + END + rest.split(END)[1], encoding="utf-8")
    figure = figures(results)["detection"][0]
    figure.update_layout(paper_bgcolor="white", plot_bgcolor="white")
    figure.write_image(PICTURE, width=860, height=figure.layout.height, scale=1.25)


if __name__ == "__main__":
    main()
