"""What the benchmarks share: text, fair timing, and a description of the machine."""

import argparse
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from monosem.data import Document, packed
from monosem.models import Model

SITE = "resid_post.15"
LAYERS = 16  # blocks up to and including SITE's


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each contestant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything runs")
    return parser.parse_args()


def resident(what: str) -> float:
    """Memory of this process, now (VmRSS) or at its highest (VmHWM), in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[what].split()[0]) * 1024 / 1e6


def forget_highest() -> None:
    """The highest memory counts from here."""
    Path("/proc/self/clear_refs").write_text("5")


def windows(model: Model, context: int) -> Int[Tensor, "n context"]:
    """English that every Python carries (its language reference, about 100,000 tokens), so nothing is downloaded."""
    documents = (Document(name, topics[name]) for name in sorted(topics))
    return torch.cat(list(packed(model, documents, context)))


def interleaved(
    contestants: dict[str, Callable[[], Any]],
    rounds: int,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call, `rounds` per contestant after one untimed (unless not `warm`).

    A shared machine drifts, so the contestants take turns, and each round starts with another one.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1 if warm else 0, rounds):
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            start = clock()
            contestants[name]()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def row(name: str, tokens: int, seconds: dict[str, list[float]], baseline: str) -> dict[str, Any]:
    """One line of a table. `baseline_is_times_as_fast` is the median over rounds of this contestant's seconds by the
    baseline's of the same round: the two ran next to each other, so a slow spell of the machine hits both."""
    own = seconds[name]
    return {
        "name": name,
        "tokens_per_second": tokens / statistics.median(own),
        "fastest": tokens / min(own),
        "slowest": tokens / max(own),
        "baseline_is_times_as_fast": statistics.median(mine / base for mine, base in zip(own, seconds[baseline])),
        "seconds": [round(s, 4) for s in own],
    }


def machine(threads: int, packages: list[str]) -> dict[str, Any]:
    """Processor, threads, load and versions; no names of machines or users."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    return {
        "processor": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "bf16_instructions": "avx512_bf16" in text or "amx_bf16" in text,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }
