"""Processor seconds of `load_model`, with its row in the table of families and with the row inferred.

Each load has a process of its own, whose imports are not counted. *smollm2* is the embedded model, from the page cache,
in float32; its type's row is taken out of the table before it is inferred. *tiny* is a Llama of four layers of width 64
that transformers has made already.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import warnings
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from common import arguments, machine, row
from monosem.models import InferredFamily, load_model
from monosem.models.checking import infer

WAYS = {"row of the table": "table", "row inferred": "inferred"}
TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}


def given(model: str) -> Any:
    return LlamaForCausalLM(LlamaConfig(**TINY, num_attention_heads=4)) if model == "tiny" else model


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def load(model: str, way: str) -> None:
    """In a process of its own: prints the seconds."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    if way == "inferred":
        infer.BY_TYPE.pop("llama")
    warnings.simplefilter("ignore", InferredFamily)
    source = given(model)
    start = spent()
    load_model(source, quiet=True)
    print(spent() - start)


def seconds(model: str, way: str, threads: int) -> float:
    command = [sys.executable, "-W", "ignore", __file__, model, way]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return float(subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout)


def measured(model: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    seconds(model, "inferred", threads)  # fills the page cache
    for number in range(rounds):
        for name in [*WAYS] if number % 2 else [*WAYS][::-1]:
            found[name].append(seconds(model, WAYS[name], threads))
    base, *_ = found
    whole = {name: statistics.median(each) / statistics.median(found[base]) for name, each in found.items()}
    return [{"case": model, **row(name, 1, found, base), "of_medians": whole[name]} for name in found]


def main() -> None:
    options = arguments(__doc__)
    found: dict[str, Any] = {"machine": machine(1, ["torch", "transformers", "monosem"]), "rows": []}
    for model in ["tiny"] if options.tiny else ["smollm2", "tiny"]:
        found["rows"] += measured(model, options.rounds, 1)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2] in WAYS.values():
        load(*sys.argv[1:])
    else:
        main()
