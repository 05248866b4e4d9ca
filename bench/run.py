"""Run the benchmarks, keep the numbers in results.json and show them in README.md.

Called by `make bench` with the Python of .venv-bench; the newer TransformerLens is in a folder of that environment.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
UNFINISHED = HERE.parent / "runs" / "bench"
NEWER_LENS = HERE.parent / ".venv-bench" / "transformer-lens-4"
DASHBOARD_PEERS = HERE.parent / ".venv-bench" / "dashboard-peers"
DIRECTION_PEERS = HERE.parent / ".venv-bench" / "direction-peers"
BEGIN, END = "<!-- results: written by run.py -->\n", "<!-- end of results -->\n"
QUIET = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}

Result = dict[str, Any]


def measured(script: str, options: list[str], kept: Path | None, **environment: str) -> Result:
    """What the script wrote. Each runs in a process of its own. A long one goes on from the file that it `kept`."""
    with tempfile.TemporaryDirectory() as folder:
        out = kept or Path(folder) / "out.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-W", "ignore", str(HERE / script), "--out", str(out), *options]
        subprocess.run(command, check=True, env=os.environ | QUIET | environment)
        return json.loads(out.read_text())


# ---------------------------------------------------------------------- tables
def table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---", *["--:"] * (len(head) - 1)], *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in rows)


def speeds(row: Result) -> list[str]:
    spread = f"{row['slowest']:,.0f} – {row['fastest']:,.0f}"
    return [f"{row['tokens_per_second']:,.0f}", spread, f"{row['baseline_is_times_as_fast']:.2f}"]


def by_case(
    results: list[Result], key: str, case: Callable[[Result], str], line: Callable[[Result], list[str]]
) -> dict[str, list[list[str]]]:
    """Rows grouped into tables. A later process adds only its peers; their ratios are within that process."""
    lines: dict[str, list[list[str]]] = {}
    for number, result in enumerate(results):
        for row in result[key]:
            if number == 0 or row["name"].startswith("TransformerLens"):
                lines.setdefault(case(row), []).append([row["name"], *line(row)])
    return lines


def harvest_tables(results: list[Result]) -> str:
    lines = by_case(
        results,
        "rows",
        lambda row: f"{row['dtype']}, {row['batch'][0]} windows of {row['batch'][1]} tokens",
        lambda row: [*speeds(row), f"{row['median_error']:.1e}", f"{row['largest_error']:.1e}"],
    )
    head = ["tokens/s", "slowest – fastest", "`monosem run` is × as fast", "median error", "largest error"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def sweep_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        times = sorted(480 / row[key] for key in ("fastest", "slowest"))
        spread = "{:.1f} – {:.1f}".format(*times)
        ratio = f"{row['baseline_is_times_as_fast']:.1f}"
        return [f"{480 / row['tokens_per_second']:.1f}", spread, ratio, str(row["cells"]), f"{row['error']:.0e}"]

    lines = by_case(results, "rows", lambda row: row["dtype"], line)
    head = ["seconds", "fastest – slowest", "`monosem sweep` is × as fast", "cells timed", "largest difference (nats)"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def overhead_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        slower = f"{100 * (row['baseline_is_times_as_fast'] - 1):+.1f} %"
        return [f"{row['sites']}", f"{1000 * median_seconds(row):,.0f}", slower]

    def tiny_line(row: Result) -> list[str]:
        each = f"{row['extra_us'] / row['sites']:,.0f}" if row["sites"] > 1 else ""
        return [f"{row['sites']}", f"{1e6 * median_seconds(row):,.0f}", f"{row['extra_us']:,.0f}", each]

    lines = by_case(results, "rows", lambda row: "smollm2, {} × {} tokens".format(*row["batch"]), line)
    tiny = by_case(
        results, "tiny", lambda row: "12 layers of width 64, {} × {} tokens".format(*row["batch"]), tiny_line
    )
    head, tiny_head = ["sites", "ms", "slower than Hugging Face"], ["sites", "µs", "extra µs", "extra µs a site"]
    tables = [table([case, *head], rows) for case, rows in lines.items()]
    return "\n".join([*tables, *(table([case, *tiny_head], rows) for case, rows in tiny.items())])


def median_seconds(row: Result) -> float:
    return row["batch"][0] * row["batch"][1] / row["tokens_per_second"]


def generation_tables(results: list[Result]) -> str:
    lines = by_case(
        results,
        "rows",
        lambda row: row["case"],
        speeds,
    )
    head = ["new tokens/s", "slowest – fastest", "its time by the first row's"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def step_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        memory = f"{row['mb']:,.0f}" if row.get("mb") is not None else "not measured"
        return [*speeds(row), memory, "{:.2f} → {:.2f}".format(*row["fve"])]

    lines = by_case(
        results,
        "rows",
        lambda row: "{kind}: d = {d}, {width:,} latents, k = {k}, batch {batch}".format(**row),
        line,
    )
    head = ["tokens/s", "slowest – fastest", "`monosem` is × as fast", "MB held", "explained variance, first → last"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def shards_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        spread = f"{row['slowest']:.1f} – {row['fastest']:.1f}"
        return [f"{row['mb_per_second']:.1f}", spread, f"{row['baseline_is_times_as_fast']:.2f}"]

    lines = by_case(results, "rows", lambda row: f"{row['site']}, {row['mb']:,.0f} MB", line)
    head = ["MB/s", "slowest – fastest", "`monosem` is × as fast"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def loading_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        slowest, fastest = (1000 / row[key] for key in ("slowest", "fastest"))
        spread = f"{fastest:,.1f} – {slowest:,.1f}"
        return [f"{1000 / row['tokens_per_second']:,.1f}", spread, f"{row['baseline_is_times_as_fast']:.2f}"]

    lines = by_case(results, "rows", lambda row: f"{row['case']}, {row['width']:,} latents", line)
    head = ["ms", "fastest – slowest", "`monosem` is × as fast"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def inferring_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        spread = " – ".join(f"{1 / row[key]:.2f}" for key in ("fastest", "slowest"))
        ratios = [f"{row[key]:.2f}" for key in ("of_medians", "baseline_is_times_as_fast")]
        return [f"{1 / row['tokens_per_second']:.2f}", spread, *ratios]

    lines = by_case(results, "rows", lambda row: row["case"], line)
    head = ["processor seconds", "fastest – slowest", "ratio of medians", "median of the rounds' ratios"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def explorer_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        median, fastest, slowest = (1000 / row[key] for key in ("tokens_per_second", "fastest", "slowest"))
        return [row["name"], f"{median:,.0f}", f"{fastest:,.0f} – {slowest:,.0f}"]

    lines = [line(row) for row in results[0]["rows"]]
    return table(["what", "ms", "fastest – slowest"], lines)


def indexing_tables(results: list[Result]) -> str:
    head = ["processor seconds", "without reading", "`monosem index` is × as fast", "without reading, ×"]
    found, tables = results[0], []
    for case in found["cases"]:
        parts, lines = case["parts"], []
        pass_alone = parts["reading the activations alone"]["pass"]
        index = parts["monosem index"]["whole"] - pass_alone
        for row in case["rows"]:
            seconds, own = case["tokens"] / row["tokens_per_second"], parts[row["name"]]
            rest = seconds - own["first batch"] + own["next batch"] if "next batch" in own else seconds - pass_alone
            after = (
                ["in each batch", ""]
                if row["name"].endswith("its defaults")
                else [f"{rest:,.0f}", f"{rest / index:.1f}"]
            )
            times = f"{row['baseline_is_times_as_fast']:.1f}"
            lines.append([row["name"], f"{seconds:,.0f}", after[0], times, after[1]])
        tables.append(table([f"{case['tokens']:,} tokens, {found['latents']:,} latents", *head], lines))
    return "\n".join(tables)


def quality_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        names = ("fve", "ce_recovered", "l0", "dead")
        shown = ["{:.4f} ± {:.4f}".format(*row[name]) for name in names[:2]]
        return [f"{row['lr']:.0e}", *shown, *(f"{row[name][0]:.3g}" for name in names[2:])]

    case = "{kind}: {width:,} latents, k = {k}, {tokens:,} activations".format
    lines = by_case(results, "rows", lambda row: case(**row), line)
    head = ["best lr", "FVE ± sd of seeds", "CE recovered ± sd", "L0", "share never active"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def probe_tables(results: list[Result]) -> str:
    result = results[0]
    places, n, d = result["shape"]
    head = ["fits/s", "slowest – fastest", "`monosem` is × as fast", "largest error of a weight"]
    lines = [[one["name"], *speeds(one), f"{one['error']:.0e}"] for one in result["rows"]]
    found = table([f"{result['fits']} fits: {places} layers, {n} texts, d = {d}", *head], lines)
    if "chosen" in result:  # not in what was measured before it was asked
        lines = [[one["name"], *speeds(one), f"{one['auroc']:.2f}"] for one in result["chosen"]["rows"]]
        head = ["layers/s", "slowest – fastest", "`probes.fit` is × as fast", "mean AUROC, held out"]
        found += "\n" + table(["one probe a layer, its strength chosen", *head], lines)
    return found


def direction_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        return [*speeds(row), "" if row["error"] is None else f"{row['error']:.0e}"]

    lines = by_case(results, "rows", lambda row: row["case"], line)
    head = [
        "prompts/s (new tokens/s)",
        "slowest – fastest",
        "its time by the baseline's",
        "largest difference of a vector",
    ]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def graph_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        spread = " – ".join(f"{1 / row[key]:.2f}" for key in ("fastest", "slowest"))
        apart = "" if row["apart"] is None else f"{row['apart']:.0e}"
        return [f"{1 / row['tokens_per_second']:.2f}", spread, f"{row['baseline_is_times_as_fast']:.1f}", apart]

    head = ["processor seconds", "fastest – slowest", "`monosem` is × as fast", "largest difference"]
    lines = by_case(results, "rows", lambda row: row["case"], line)
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def edge_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        median, fastest, slowest = (1000 / row[key] for key in ("tokens_per_second", "fastest", "slowest"))
        return [f"{median:,.0f}", f"{fastest:,.0f} – {slowest:,.0f}", f"{row['baseline_is_times_as_fast']:.2f}"]

    lines = by_case(results, "rows", lambda row: row["case"], line)
    head = ["processor ms", "fastest – slowest", "its time by a pass's"]
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


def circuit_tables(results: list[Result]) -> str:
    def line(row: Result) -> list[str]:
        spread = " – ".join(f"{row['pairs'] / row[key]:.1f}" for key in ("fastest", "slowest"))
        seconds = f"{row['pairs'] / row['tokens_per_second']:.1f}"
        memory, apart = f"{row['memory']:,.0f}", f"{row['apart']:.0e}"
        return [seconds, spread, f"{row['baseline_is_times_as_fast']:.1f}", memory, apart]

    head = ["processor seconds", "fastest – slowest", "`monosem` is × as fast", "MB", "largest difference"]
    lines = by_case(results, "rows", lambda row: row["case"], line)
    return "\n".join(table([case, *head], rows) for case, rows in lines.items())


@dataclass(frozen=True)
class Benchmark:
    title: str
    tables: Callable[[list[Result]], str]
    processes: int = 2  # the second with the newer TransformerLens
    peers: Path | None = None  # a folder of packages that only this one imports
    alone: bool = False  # only where it is asked for


BENCHMARKS = {
    "sweep": Benchmark("Patching sweep of resid_pre, 30 layers × 16 positions, smollm2", sweep_tables),
    "overhead": Benchmark("A pass with sites captured", overhead_tables),
    "harvest": Benchmark("Harvest at resid_post.15 of smollm2", harvest_tables),
    "generate": Benchmark("Generation with smollm2, float32", generation_tables, processes=1),
    "probes": Benchmark("Logistic probes at all layers and strengths, smollm2, one thread", probe_tables, processes=1),
    "directions": Benchmark(
        "Directions, and a condition, smollm2, one thread", direction_tables, processes=1, peers=DIRECTION_PEERS
    ),
    "sae_step": Benchmark("SAE training step", step_tables, processes=1),
    "shards": Benchmark("Activations to disk, smollm2, float32", shards_tables, processes=1),
    "loading": Benchmark("Loading a wide SAE", loading_tables, processes=1),
    "inferring": Benchmark("Loading a model whose row is inferred, one thread", inferring_tables, processes=1),
    "indexing": Benchmark(
        "Pages of all latents of smollm2's `resid_post.15`, one thread",
        indexing_tables,
        processes=1,
        peers=DASHBOARD_PEERS,
    ),
    "explorer": Benchmark("The explorer with the shipped index", explorer_tables, processes=1),
    "circuits": Benchmark("Scores of all edges of smollm2, float32", circuit_tables, processes=1, alone=True),
    "exact_edges": Benchmark("An edge of smollm2 patched exactly, float32, one thread", edge_tables, processes=1),
    "graphs": Benchmark("Attribution graphs of smollm2, float32, one thread", graph_tables, processes=1),
    "quality": Benchmark("What training gives, held out", quality_tables, processes=1, alone=True),
}


USUAL = ",".join(name for name, benchmark in BENCHMARKS.items() if not benchmark.alone)


def machine_line(result: Result) -> str:
    m = result["machine"]
    bf16 = "with" if m["bf16_instructions"] else "without"
    return (
        f"{m['processor']}, {m['cores']} cores ({bf16} bf16 instructions), {m['threads']} threads, "
        f"load {m['load_before']} before the start; Python {m['python']}, "
        + ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    )


def report(results: dict[str, list[Result]]) -> str:
    """A section for each benchmark that has results."""
    return "\n".join(
        f"### {benchmark.title}\n\n{benchmark.tables(results[name])}\n{machine_line(results[name][0])}.\n"
        for name, benchmark in BENCHMARKS.items()
        if name in results
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, two rounds, nothing kept: does it all run?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=USUAL, help="such as sweep,overhead; the others' numbers stay")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    chosen = parser.parse_args()
    options = ["--tiny", "--rounds", "2"] if chosen.tiny else ["--rounds", str(chosen.rounds)]
    options += ["--threads", str(chosen.threads)]
    results: dict[str, list[Result]] = {}
    for name in chosen.only.split(","):
        own = BENCHMARKS[name].peers
        first = {} if own is None else {"PYTHONPATH": str(own)}
        newer = [first, {"PYTHONPATH": str(NEWER_LENS)}][: BENCHMARKS[name].processes]
        kept_at = UNFINISHED / f"{name}.json" if BENCHMARKS[name].alone and not chosen.tiny else None
        results[name] = [measured(f"{name}.py", options, kept_at, **environment) for environment in newer]
        if chosen.tiny:
            print(report({name: results[name]}))
            continue
        kept = (json.loads(RESULTS.read_text()) if RESULTS.exists() else {}) | results
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        text, readme = report(kept), HERE / "README.md"
        before, rest = readme.read_text().split(BEGIN)
        readme.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1])
        if kept_at is not None:
            kept_at.unlink()
        print(report({name: results[name]}), flush=True)


if __name__ == "__main__":
    main()
