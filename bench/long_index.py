"""Reading a long text alone, and indexing it: the seconds of a pass for a latent index, apart by what they are for.

One pass of `build_index` with its defaults (windows of 256), processor time of one thread. What `harvest` takes is
timed inside the pass, so that a change of the machine's speed hits all parts alike; what is left is what an index adds.
With `--alone` nothing is counted: to see that reading takes as long without the rest.

    .venv-bench/bin/python bench/long_index.py --text PATH --tokens 1000000
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from common import machine
from monosem import load_model
from monosem.activations import harvest
from monosem.activations.harvesting import Harvest
from monosem.data import TokenStore, interleaved, texts
from monosem.dictionaries import load_dictionary
from monosem.latents import IndexConfig, build_index, indexing
from monosem.latents.corpus_pass import CorpusPass

DICTIONARY, CONTEXT, BATCH = "smollm2/resid_post.15", 256, 16
seconds: Counter[str] = Counter()


def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*values: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return function(*values, **named)
        finally:
            seconds[part] += time.process_time() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="files or folders, read in turns")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--alone", action="store_true", help="read, and count nothing")
    parser.add_argument("--log", type=Path, help="a line of JSON for each pass of the model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = machine(1, ["torch", "transformers", "monosem"])
    model, dictionary = load_model("smollm2", dtype="float32", quiet=True), load_dictionary(DICTIONARY)
    documents = interleaved([texts(path) for path in options.text])
    store = TokenStore.build(model, documents, CONTEXT, tokens=options.tokens, quiet=True)
    tokens = len(store) * CONTEXT

    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            found = function(*values)
            if options.log:
                with options.log.open("a") as file:
                    file.write(json.dumps({"of": tokens, "load": os.getloadavg()[0], **seconds}) + "\n")
            return found

        return run

    Harvest.read = timed("reading", Harvest.read)  # type: ignore[method-assign]
    if options.alone:
        Harvest.read = logged(Harvest.read)  # type: ignore[method-assign]
        for _ in harvest(model, store, dictionary.site, batch_size=BATCH, skip=dictionary.skip):
            pass
    else:
        CorpusPass.add = logged(timed("counting", CorpusPass.add))  # type: ignore[method-assign]
        CorpusPass.save = timed("saving", CorpusPass.save)  # type: ignore[method-assign]
        indexing.write = timed("writing", indexing.write)
        start = time.process_time()
        with TemporaryDirectory() as folder, torch.no_grad():
            build_index(model, dictionary, store, Path(folder) / "index.sqlite", IndexConfig(), quiet=True)
        seconds["rest"] = time.process_time() - start - seconds.total()
    print(json.dumps({"machine": about, "tokens": tokens, "seconds": seconds}, indent=1))
    print(f"{seconds.total() / seconds['reading']:.3f} times what reading alone takes")


if __name__ == "__main__":
    main()
