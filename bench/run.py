"""Run every benchmark, keep the numbers in results.json and show them in README.md.

Called by `make bench` with the Python of .venv-bench; the newer TransformerLens is in a folder of that environment.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEWER_LENS = HERE.parent / ".venv-bench" / "transformer-lens-4"
BEGIN, END = "<!-- results: written by run.py -->\n", "<!-- end of results -->\n"
QUIET = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}

Result = dict[str, Any]


def measured(script: str, options: list[str], **environment: str) -> Result:
    """What the script wrote. Each runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-W", "ignore", str(HERE / script), "--out", str(out), *options]
        subprocess.run(command, check=True, env=os.environ | QUIET | environment)
        return json.loads(out.read_text())


def table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---", *["--:"] * (len(head) - 1)], *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in rows)


def speeds(row: Result) -> list[str]:
    spread = f"{row['slowest']:,.0f} – {row['fastest']:,.0f}"
    return [f"{row['tokens_per_second']:,.0f}", spread, f"{row['baseline_is_times_as_fast']:.2f}"]


def harvest_tables(results: list[Result]) -> str:
    """One table a dtype and shape. The second process adds only its own peer; its ratio is within that process."""
    lines: dict[str, list[list[str]]] = {}
    for number, result in enumerate(results):
        lens = result["machine"]["versions"]["transformer-lens"]
        kind = "HookedTransformer" if lens < "4" else "TransformerBridge"
        for row in result["rows"]:
            is_lens = row["name"] == "TransformerLens"
            if number and not is_lens:
                continue
            name = f"TransformerLens {lens} `{kind}`" if is_lens else row["name"]
            case = f"{row['dtype']}, {row['batch'][0]} windows of {row['batch'][1]} tokens"
            lines.setdefault(case, []).append(
                [name, *speeds(row), f"{row['median_error']:.1e}", f"{row['largest_error']:.1e}"]
            )
    head = ["tokens/s", "slowest – fastest", "`monosem run` is × as fast", "median error", "largest error"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def step_table(result: Result) -> str:
    head = ["tokens/s", "slowest – fastest", "`monosem TopK` is × as fast", "explained variance at first → last look"]
    lines = [[row["name"], *speeds(row), "{:.2f} → {:.2f}".format(*row["fve"])] for row in result["rows"]]
    return table(
        [f"d = {result['d']}, {result['width']} latents, k = {result['k']}, batch {result['batch']}", *head], lines
    )


def machine_line(result: Result) -> str:
    m = result["machine"]
    bf16 = "with" if m["bf16_instructions"] else "without"
    return (
        f"{m['processor']}, {m['cores']} cores ({bf16} bf16 instructions), {m['threads']} threads, "
        f"load {m['load_before']} before the start; Python {m['python']}, "
        + ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    )


def report(results: Result) -> str:
    return (
        f"Machine: {machine_line(results['sae_step'])}.\n\n"
        f"### Harvest at resid_post.15 of smollm2\n\n{harvest_tables(results['harvest'])}\n"
        f"### SAE training step\n\n{step_table(results['sae_step'])}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, two rounds, nothing kept: does it all run?")
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    options = ["--tiny", "--rounds", "2"] if chosen.tiny else ["--rounds", str(chosen.rounds)]
    results = {
        "harvest": [
            measured("harvest.py", options),
            measured("harvest.py", options, PYTHONPATH=str(NEWER_LENS)),
        ],
        "sae_step": measured("sae_step.py", options),
    }
    text = report(results)
    print(text)
    if not chosen.tiny:
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        readme = HERE / "README.md"
        before, rest = readme.read_text().split(BEGIN)
        readme.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
