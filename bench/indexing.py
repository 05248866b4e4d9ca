"""Pages of all latents of a shipped dictionary: reading the activations alone, monosem's index, sae-dashboard.

Same weights and windows of 128 tokens. sae-dashboard runs twice. As its own runner for Neuronpedia does: 128 latents at
a time, 32 prompts a pass, activations of the first pass kept on disk and read again. And as its `SaeVisConfig` comes:
256 latents at a time, 64 prompts a pass, nothing kept, so that the model runs for each batch of latents; only which
tokens do not count is set. Of each, two batches of latents are timed; the second stands for all that follow. Each
contestant has a process of its own; processor time. `INDEXING_WINDOWS=882` measures a longer text, too (128 are usual).
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

import peers
from common import arguments, machine, row, windows
from monosem import load_model
from monosem.activations import harvest
from monosem.data import as_store
from monosem.dictionaries import load_dictionary
from monosem.latents import IndexConfig, build_index, indexing
from monosem.models.loading.catalogue import EMBEDDED
from monosem.models.loading.embedded import ensure

DICTIONARY, CONTEXT = "smollm2/resid_post.15", 128
DASHBOARD, DEFAULTS = "sae-dashboard 0.8.0, its runner for Neuronpedia", "sae-dashboard 0.8.0, its defaults"
LATENTS = {DASHBOARD: 128, DEFAULTS: 256}  # a batch
LONG = int(os.environ.get("INDEXING_WINDOWS", "0"))  # 882 are all of the text
clock = time.process_time

Measured = tuple[dict[str, float], Float[np.ndarray, "latents"]]  # seconds of the parts; maxima of the first latents


def reading(n: int, folder: Path) -> Measured:
    """The activations, and nothing done with them."""
    model, dictionary = load_model("smollm2", dtype="float32", quiet=True), load_dictionary(DICTIONARY)
    thresholds = dictionary.skipper(model).thresholds
    store = as_store(model, windows(model, CONTEXT)[:n], CONTEXT)
    source = harvest(model, store, dictionary.site, batch_size=16, skip=dictionary.skip, thresholds=thresholds)
    start = clock()
    for first in range(0, n, 16):
        source.read(torch.arange(first, min(first + 16, n)))
    return {"pass": clock() - start}, np.zeros(0)


def index(n: int, folder: Path) -> Measured:
    """`build_index` with its defaults."""
    model, dictionary = load_model("smollm2", dtype="float32", quiet=True), load_dictionary(DICTIONARY)
    dictionary.skipper(model)
    ids, parts, write = windows(model, CONTEXT)[:n], {}, indexing.write

    def timed(*values: Any) -> None:
        before = clock()
        write(*values)
        parts["writing"] = clock() - before

    indexing.write = timed
    start = clock()
    made = build_index(model, dictionary, ids, folder / "index.sqlite", IndexConfig(context=CONTEXT), quiet=True)
    parts["pass"] = clock() - start - parts["writing"]
    return parts, made.maxima.numpy()


def dashboard(name: str, n: int, folder: Path) -> Measured:
    """Two batches as `NeuronpediaRunner.run` makes them, or as they come from `SaeVisRunner`."""
    from sae_dashboard.components_config import (
        ActsHistogramConfig,
        Column,
        FeatureTablesConfig,
        LogitsHistogramConfig,
        LogitsTableConfig,
        SequencesConfig,
    )
    from sae_dashboard.layout import SaeVisLayoutConfig
    from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter
    from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE

    dictionary = load_dictionary(DICTIONARY)
    ids = windows(load_model("smollm2", quiet=True), CONTEXT)[:n]
    dictionary.save(folder / "sae")
    sae, model = SAE.load_from_disk(str(folder / "sae")), peers.lens(str(ensure(EMBEDDED["smollm2"])), torch.float32)
    special = {getattr(model.tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")} - {None}
    words = {i: word for word, i in model.tokenizer.vocab.items()}
    about = NeuronpediaRunnerConfig("shipped", "here", str(folder), model_id="smollm2", layer=15)
    sequences = SequencesConfig(
        stack_mode="stack-all",
        buffer=None,
        compute_buffer=True,
        n_quantiles=5,
        top_acts_group_size=20,
        quantile_group_size=5,
    )
    tables = LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3)
    batch, settings = LATENTS[name], {}
    if name == DASHBOARD:
        settings = {
            "minibatch_size_features": batch,
            "minibatch_size_tokens": 32,
            "feature_centric_layout": SaeVisLayoutConfig(columns=[Column(sequences, ActsHistogramConfig(), *tables)]),
            "cache_dir": folder / "activations",
        }
    parts, maxima = {}, []
    for part, first in (("first batch", 0), ("next batch", batch)):
        start = clock()
        config = SaeVisConfig(
            hook_point="blocks.15.hook_resid_post",
            features=list(range(first, first + batch)),
            ignore_tokens=special,
            ignore_positions=[0],
            ignore_high_activation_norm_multiple=10.0,
            **settings,
        )
        assert config.minibatch_size_features == batch
        made = SaeVisRunner(config).run(encoder=sae, model=model, tokens=ids)
        (folder / f"{first}.json").write_text(NeuronpediaConverter.convert_to_np_json(model, made, about, words))
        parts[part] = clock() - start
        maxima += [
            one["activations"][0]["bin_max"] for one in json.loads((folder / f"{first}.json").read_text())["features"]
        ]
    return parts, np.array(maxima) / dictionary.W_dec[: 2 * batch].norm(dim=1).numpy()


CONTESTANTS: dict[str, Callable[[int, Path], Measured]] = {
    "reading the activations alone": reading,
    "monosem index": index,
    DASHBOARD: partial(dashboard, DASHBOARD),
    DEFAULTS: partial(dashboard, DEFAULTS),
}


def work(pipe: Connection, name: str, n: int, threads: int) -> None:
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder, torch.no_grad():
        pipe.send(CONTESTANTS[name](n, Path(folder)))


def measured(name: str, n: int, threads: int) -> Measured:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, name, n, threads))
    process.start()
    there.close()
    found: Measured = here.recv()
    process.join()
    print(name, found[0], flush=True)
    return found


def case(n: int, rounds: int, width: int) -> dict[str, Any]:
    """All contestants on so many windows."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        found = {name: measured(name, n, 1) for name in CONTESTANTS}
        ours = found["monosem index"][1]
        for name, (parts, maxima) in found.items():
            if name in LATENTS:
                own = ours[: len(maxima)]
                same = np.abs(maxima - own) <= 2e-3 * own + 1e-3  # theirs have three decimals
                assert same.mean() > 0.9, f"not the same: {maxima[~same]} {own[~same]}"  # outliers may differ
                parts["whole"] = parts["first batch"] + (width // LATENTS[name] - 1) * parts["next batch"]
            else:
                parts["whole"] = sum(parts.values())
            seconds[name].append(parts["whole"])
    rows = [row(name, n * CONTEXT, seconds, "monosem index") for name in seconds]
    return {"tokens": n * CONTEXT, "rows": rows, "parts": {name: parts for name, (parts, _) in found.items()}}


def main() -> None:
    options = arguments(__doc__)
    about = machine(1, ["torch", "transformers", "monosem", "sae-lens", "transformer-lens"])
    width = load_dictionary(DICTIONARY).width
    rounds = 1 if options.tiny else max(1, options.rounds // 3)
    cases = [case(n, rounds, width) for n in ([32] if options.tiny else [128, LONG]) if n]
    options.out.write_text(json.dumps({"machine": about, "latents": width, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
